"""What runs on the machines of a Ray cluster: an engine, and the methods that Ray calls of it.

An actor says what becomes of its engine, and what is logged, in one stream that never ends by itself: so its end is
the actor's end, and nobody has to ask whether it lives. Each generation is a stream of its own.
"""

import contextlib
import faulthandler
import fcntl
import importlib
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path

from ltx2.checker import checked
from ltx2.engine import CancelFlag, Clip, Engine, EngineStatus, Progress, has_lost_gpu
from ltx2.errors import Failure, Internal, LastFailure, LTX2Error, NotReady
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**23
"""Clips travel in pieces of this size."""
METHODS = 8
"""As many may run at the same time: the stream, a generation, a cancel, and what is late of those before."""
PREFIX = "ltx2-actor-"
_SETTLED_SECONDS = 60.0
"""A folder that is younger may belong to an actor that has not locked it yet."""


@dataclass(frozen=True)
class Started:
    """The actor has its place, and begins to load."""

    host: str
    pid: int


@dataclass(frozen=True)
class _Order:
    request: GenerationRequest
    media: Mapping[str, bytes]
    flag: CancelFlag
    answers: "queue.SimpleQueue[Answer]"


Said = Started | EngineStatus | Failure | logging.LogRecord
"""Of the engine: the first status says that it is loaded, a failure that it cannot be."""
Answer = Progress | Clip | Failure
"""Of a generation, and between them the bytes of the clip. Anything but progress is the last."""


class Actor:
    """Has one engine, in a thread of its own; Ray calls the methods in others.

    Args:
        settings: those of the server; clips are first written to a folder of this actor's own.
        build: the class of the engine, as ``package.module:Class``.
        folder: where the server was started. Relative paths mean the same here, where that folder is here, too.
    """

    def __init__(self, settings: Settings, build: str, folder: Path) -> None:
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._number = 0
        self._flag = CancelFlag()
        self._build = build
        # whoever hears it says when and by whom
        logging.basicConfig(
            level=settings.log_level, format="%(message)s", handlers=[QueueHandler(self._said)], force=True
        )
        with contextlib.suppress(OSError):
            faulthandler.enable()
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._settings = settings.model_copy(update={"data_dir": own_folder()})

    def serve(self) -> Iterator[Said]:
        """Load the engine, and tell what becomes of it. Called once."""
        yield Started(os.uname().nodename, os.getpid())
        threading.Thread(target=self._work, name="engine", daemon=True).start()
        while True:
            yield self._said.get()

    def generate(
        self, number: int, request: GenerationRequest, media: Mapping[str, bytes]
    ) -> Iterator[Progress | bytes | Clip | Failure]:
        """Make a clip. Its bytes come before it does; then it is not here any more.

        Args:
            number: greater than that of any generation before.
        """
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._orders.put(_Order(request, media, self._flag_of(number), answers))
        while isinstance(answer := answers.get(), Progress):
            yield answer
        if isinstance(answer, Clip):
            try:
                with answer.path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        yield chunk
            finally:
                answer.path.unlink(missing_ok=True)
        yield answer

    def cancel(self, number: int) -> None:
        """Cancel a generation, even if Ray calls this before it has called that."""
        self._flag_of(number).set()

    def clear(self) -> None:
        """Remove everything this actor has written. It is killed after that."""
        shutil.rmtree(self._settings.data_dir, ignore_errors=True)

    def _flag_of(self, number: int) -> CancelFlag:
        with self._lock:
            if number > self._number:
                self._number, self._flag = number, CancelFlag()
            return self._flag if number == self._number else CancelFlag()

    def _work(self) -> None:
        try:
            engine = self._loaded()
            while engine is not None:
                self._answer(engine, self._orders.get())
        except BaseException:
            # what would end a process ends this one, so that nobody waits for it
            log.exception("the engine has ended")
            os._exit(1)

    def _loaded(self) -> Engine | None:
        try:
            module, _, name = self._build.partition(":")
            engine = checked(getattr(importlib.import_module(module), name)(self._settings), self._settings)
            engine.load()
        except LTX2Error as error:
            self._said.put(LastFailure.of(error))
        except Exception:
            log.exception("the model cannot be used")
            failed = NotReady("the model could not be loaded; the server's log says why")
            self._said.put(LastFailure.of(failed))
        else:
            self._said.put(engine.status())
            return engine
        return None

    def _answer(self, engine: Engine, order: _Order) -> None:
        answer: Clip | Failure
        try:
            answer = engine.generate(order.request, order.media, order.answers.put, order.flag)
        except LTX2Error as error:
            answer = Failure.of(error)
        except Exception as error:
            log.exception("a generation failed")
            failed = Internal("the generation failed; the server's log says why")
            answer = LastFailure.of(failed) if has_lost_gpu(error) else Failure.of(failed)
        self._said.put(engine.status())
        order.answers.put(answer)


def own_folder() -> Path:
    """A new folder for one actor, locked as long as its process lives. Those that nobody locks are removed."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > _SETTLED_SECONDS and left.lstat().st_uid == os.getuid():
                with left.open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    fcntl.flock(os.open(folder / "lock", os.O_CREAT | os.O_WRONLY, 0o600), fcntl.LOCK_EX)
    return folder
