"""The process that holds the model: how a server starts it and listens to it, and what runs in it.

It lives no longer than the server does. The connection between them ends with either, even if that one is killed, and
each end takes that for the other's end.
"""

import contextlib
import faulthandler
import importlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from ltx2.checker import checked
from ltx2.engine import CancelFlag, Clip, Engine, EngineStatus, Progress, has_lost_gpu
from ltx2.errors import Failure, Internal, LastFailure, LTX2Error, NotReady
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

SECONDS_TO_END = 5.0
"""How long a process may take to end when it should."""
ROOT = Path(__file__).parents[2]
# Not -m: that would look for our package in the folder the server was started in, and that has to stay this process's
# folder too, since relative paths of the settings start there.
_PROGRAM = "import sys; sys.path[0] = sys.argv[1]; from ltx2.studio.child import main; main(int(sys.argv[2]))"


@dataclass(frozen=True)
class Start:
    """The first message: which engine to make and load."""

    settings: Settings
    build: str
    """Where its class is: ``package.module:Class``."""


@dataclass(frozen=True)
class Generate:
    """Make a clip. The next one is sent after the answer to this one."""

    request: GenerationRequest
    media: Mapping[str, bytes]


@dataclass(frozen=True)
class Cancel:
    """Cancel what was sent last."""


@dataclass(frozen=True)
class Ended:
    """The process is no more."""

    status: int
    """As :class:`subprocess.Popen` has it: negative is a signal."""
    is_ours: bool = False
    """Whether this program has killed it."""

    def __str__(self) -> str:
        return f"the process that holds the model ended {self.how}"

    @property
    def how(self) -> str:
        if self.status >= 0:
            return f"with status {self.status}"
        with contextlib.suppress(ValueError):
            return f"by the signal {signal.Signals(-self.status).name}"
        return f"by the signal {-self.status}"

    @property
    def hint(self) -> str:
        if self.status == -signal.SIGKILL and not self.is_ours:
            return "the kernel kills what takes too much memory: ask for fewer frames or a smaller picture"
        return "send the request again; the server's log may say more"


@dataclass(frozen=True)
class Woken:
    """Nothing came from the process, but somebody cancels."""


Order = Start | Generate | Cancel
"""What the process is told."""
Answer = EngineStatus | Progress | Clip | Failure
"""What it tells: the first status says that the model is loaded, a clip or a failure ends a generation."""
Event = Answer | Ended | Woken
"""What a server waits for."""


class Child:
    """The process as the server sees it.

    Args:
        start: what to load.
        heard: told of everything the process says, and of its end, before ``events`` has it. Called by a thread of
            this object's own.
        note: the file that names the process as long as there is one.

    Raises:
        OSError, RuntimeError: no process can be started, or no thread that listens to it.
    """

    def __init__(self, start: Start, heard: Callable[["Child", Event], None], note: Path) -> None:
        self._heard = heard
        self._note = note
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.status: EngineStatus | None = None
        """The last one told; None while the model is being loaded."""
        self.loaded: Future[EngineStatus | Failure | Ended] = Future()
        """What loading the model has come to, for any number of threads that wait for it."""
        self.is_over = False
        """It takes no more requests."""
        self.is_wanted = True
        """Nobody meant it to end."""
        self._is_killed = False
        self._sending = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            self._process = subprocess.Popen(  # noqa: S603 - the program is ours
                [sys.executable, "-c", _PROGRAM, str(ROOT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for the server alone
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._connection: Connection[Order, Answer] = Connection(os.dup(self._socket.fileno()))
            undo.callback(self._connection.close)
            self._reader = threading.Thread(target=self._read, name="model process", daemon=True)
            self._write_note()
            undo.callback(self._remove_note)
            self._reader.start()
            undo.pop_all()
        self.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Tell it something. Where it has ended, that is an event, and no error here."""
        with contextlib.suppress(OSError), self._sending:
            self._connection.send(order)

    def end(self) -> None:
        """End it on purpose, and wait for that. Several threads may do this at the same time."""
        self.is_wanted = False
        self.finish()

    def finish(self) -> None:
        """Wait until it has ended, as it does once nobody talks to it."""
        self.is_over = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # to close it would not wake the thread that reads
        self._reader.join(SECONDS_TO_END)
        if self._reader.is_alive():
            self.kill()
            self._reader.join(SECONDS_TO_END)

    def kill(self) -> None:
        """End it whatever it does, and wake whoever sends to it. Does not wait."""
        self.is_over = self._is_killed = True
        self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            while True:
                self._tell(self._connection.recv())
        except (EOFError, OSError):
            pass  # it has ended, or is about to
        finally:
            self.is_over = True
            try:
                status = self._process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._is_killed = True
                self._process.kill()
                status = self._process.wait()
            self._remove_note()
            with self._sending:
                self._connection.close()
            self._socket.close()
            self._tell(Ended(status, self._is_killed))

    def _tell(self, event: Answer | Ended) -> None:
        self._heard(self, event)
        self.events.put(event)
        if not self.loaded.done() and isinstance(event, EngineStatus | Failure | Ended):
            self.loaded.set_result(event)

    def _write_note(self) -> None:
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(f"{self.pid}\n")
        except OSError as error:
            log.warning("the model's process cannot be written down: %s", error.strerror)

    def _remove_note(self) -> None:
        with contextlib.suppress(OSError):
            self._note.unlink()


def main(descriptor: int) -> NoReturn:
    """In the process: serve whoever is at the other end of a socket until they let go of it."""
    # programs that the engine starts must not keep the connection open
    os.set_inheritable(descriptor, False)
    # whether a generation is interrupted is for the server to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()
    connection: Connection[Answer, Order] = Connection(descriptor)
    try:
        start = connection.recv()
    except (EOFError, OSError):
        os._exit(0)
    if isinstance(start, Start):
        logging.basicConfig(level=start.settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _Worker(connection).serve(start)
    # at once: to clean up after a broken GPU may hang, and the kernel does it anyway
    logging.shutdown()
    os._exit(1)


class _Worker:
    """Has the engine in the main thread, and listens to the server in another one."""

    def __init__(self, connection: "Connection[Answer, Order]") -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Generate, CancelFlag]] = queue.SimpleQueue()

    def serve(self, start: Start) -> None:
        """Load the engine and answer. Returns when it is of no more use, after the answer that says so."""
        threading.Thread(target=self._listen, name="server", daemon=True).start()
        engine = self._loaded(start)
        while engine is not None and self._answer(engine, *self._orders.get()):
            pass

    def _loaded(self, start: Start) -> Engine | None:
        try:
            module, _, name = start.build.partition(":")
            engine = checked(getattr(importlib.import_module(module), name)(start.settings), start.settings)
            engine.load()
        except LTX2Error as error:
            self._tell(LastFailure.of(error))
        except Exception:
            log.exception("the model cannot be used")
            failed = NotReady("the model could not be loaded; the server's log says why")
            self._tell(LastFailure.of(failed))
        else:
            self._tell(engine.status())
            return engine
        return None

    def _answer(self, engine: Engine, order: Generate, flag: CancelFlag) -> bool:
        """Make a clip, and say whether another one can be made."""
        answer: Clip | Failure
        is_last = False
        try:
            answer = engine.generate(order.request, order.media, self._tell, flag)
        except LTX2Error as error:
            answer = Failure.of(error)
        except Exception as error:
            log.exception("a generation failed")
            is_last = has_lost_gpu(error)
            failed = Internal("the generation failed; the server's log says why")
            answer = LastFailure.of(failed) if is_last else Failure.of(failed)
        self._tell(engine.status())
        self._tell(answer)
        return not is_last

    def _tell(self, answer: Answer) -> None:
        # where the server has ended, the thread that listens to it is about to end this process
        with contextlib.suppress(OSError), self._sending:
            self._connection.send(answer)

    def _listen(self) -> None:
        flag = CancelFlag()
        try:
            while True:
                order = self._connection.recv()
                if isinstance(order, Generate):
                    flag = CancelFlag()
                    self._orders.put((order, flag))
                else:
                    flag.set()
        except (EOFError, OSError):
            pass  # the server has ended, or has no use for this process
        except Exception:
            log.exception("the server says what nobody understands")
        finally:
            # at once: nobody waits for what is being made, and the memory is wanted
            os._exit(0)
