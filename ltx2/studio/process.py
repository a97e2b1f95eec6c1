"""An engine in a process of its own, so that whatever becomes of the model, the server answers.

What crashes, hangs or gives no memory back ends with that process, and the next request gets a new one. Nothing here
polls: whoever waits is woken by what the process says, by its end or by a cancel. What takes too long is killed, which
is an end.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, Failure, LastFailure, LTX2Error, NotReady, WorkerCrashed, not_in_time, too_long
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.child import SECONDS_TO_END, Cancel, Child, Ended, Event, Generate, Start, Woken

log = logging.getLogger(__name__)

GB = 1e9
ENGINES = {"local": "ltx2.model.local:LocalEngine", "fake": "ltx2.fake:FakeEngine"}
"""What makes the clips, in a process of its own. A server never imports torch."""
SECONDS_TO_HEED = 60.0
"""How long a process may go on after a cancel before it is taken for one that hangs."""
MARK = b"ltx2.studio.child"
"""Stands in the command line of every process of ours."""


class ProcessEngine:
    """Implements :class:`ltx2.engine.Engine` by a process that is started when it is needed.

    A clip has to be moved before the next generation begins: what lies in the process's folder then may be removed.

    Args:
        settings: those of the server; the process writes to a folder of its own below the data folder.
        build: the class of the engine that the process makes, as ``package.module:Class``.
        seconds_to_heed: how long after a cancel a process is killed that goes on all the same.
    """

    def __init__(self, settings: Settings, build: str, *, seconds_to_heed: float = SECONDS_TO_HEED) -> None:
        folder = settings.data_dir.absolute() / "engine"
        self._settings = settings.without_secrets().model_copy(update={"data_dir": folder})
        self._note = folder / "pid"
        self._build = build
        self._seconds_to_heed = seconds_to_heed
        self._ttl_seconds = settings.ttl_seconds
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._known = EngineStatus((), 0.0, round(memory / GB, 1), fake=build == ENGINES["fake"])
        # a model that is not kept is loaded when it is wanted, so that its absence keeps no request from starting
        self._is_ready = self._ttl_seconds is not None
        self._fault: str | None = None
        self._restarts = 0
        self._used_at = time.monotonic()
        self._users = 0
        self._turn = threading.Lock()
        """Held by whoever starts the process, has it generate, or ends it because nobody uses it."""
        self._lock = threading.Lock()
        """Held for moments, so that no process and no timer starts after ``close``."""
        self._is_closed = False
        self._child: Child | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The process; None when there is none."""
        child = self._child
        return child.pid if child is not None and not child.is_over else None

    def status(self) -> EngineStatus:
        child = self._child
        held = child.status if child is not None and not child.is_over else None
        return EngineStatus(
            loaded=held.loaded if held else (),
            resident_gb=held.resident_gb if held else 0.0,
            budget_gb=self._known.budget_gb,
            fake=self._known.fake,
            ready=self._is_ready,
            fault=self._fault,
            idle_seconds=0.0 if self._users else time.monotonic() - self._used_at,
            ttl_seconds=self._ttl_seconds,
            restarts=self._restarts,
            model=self._known.model,
        )

    def load(self) -> None:
        """As :class:`ltx2.engine.Engine` has it. Any thread may call it, also during a generation."""
        with self._in_use():
            with self._turn:
                child = self._running()
            come_to = child.loaded.result()
            if isinstance(come_to, Failure):
                child.finish()
                raise come_to.error
            if isinstance(come_to, Ended):
                if self._is_closed:
                    raise _closed()
                raise NotReady(f"{come_to} while it was loading", hint=come_to.hint)

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        with self._in_use(), self._turn:
            try:
                return self._generate(Generate(request, dict(media)), on_progress, cancelled)
            finally:
                if self._ttl_seconds == 0 and self._child is not None:
                    self._child.end()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            child, timer = self._child, self._timer
        if timer is not None:
            timer.cancel()
        if child is not None:
            child.end()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The model is not idle within this, and is let go some time after it where that was set."""
        with self._lock:
            self._users += 1
            if self._timer is not None:
                self._timer.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._used_at = time.monotonic()
                if self._ttl_seconds and not self._users and not self._is_closed:
                    self._timer = threading.Timer(self._ttl_seconds, self._expire, [self._ttl_seconds])
                    self._timer.daemon = True
                    self._timer.start()

    def _expire(self, seconds: float) -> None:
        """End a process that nobody used for so long, unless it is wanted at this very moment."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            is_idle = not self._users and time.monotonic() - self._used_at >= seconds
            if is_idle and self.pid is not None and self._child is not None:
                log.info("the model was not used for %g s and is let go", seconds)
                self._child.end()
        finally:
            self._turn.release()

    def _running(self) -> Child:
        """The process, started if there is none."""
        if self._child is not None:
            if not self._child.is_over:
                return self._child
            self._child.finish()  # the next one needs the memory of this one
        end_left(self._note)
        self._sweep()
        with self._lock:
            if self._is_closed:
                raise _closed()
            try:
                self._child = Child(Start(self._settings, self._build), self._heard, self._note)
            except (OSError, RuntimeError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise NotReady(f"no process could be started for the model: {reason}") from error
            return self._child

    def _sweep(self) -> None:
        """Remove what a lost process has left. Only one server uses a data folder, and no process runs now."""
        with contextlib.suppress(OSError):
            for left in self._settings.work_dir.iterdir():
                log.info("removing %s, left by a process that ended early", left.name)
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    def _heard(self, child: Child, event: Event) -> None:
        """Keep account of a process. Called by its own thread."""
        if isinstance(event, EngineStatus):
            child.status = self._known = event
            self._is_ready, self._fault = True, None
        elif isinstance(event, LastFailure):
            child.is_over = True
            if child.status is None:
                child.is_wanted = self._is_ready = False
                self._fault = event.message
        elif isinstance(event, Ended) and child.is_wanted:
            log.warning("%s", event)
            self._restarts += 1
            if child.status is None:
                self._is_ready, self._fault = False, str(event)

    def _generate(self, order: Generate, on_progress: OnProgress, cancelled: CancelFlag) -> Clip:
        if cancelled():
            raise Canceled("the generation was cancelled")
        began = time.perf_counter()
        child = self._running()
        limit = _Limit(child)

        def wake() -> None:
            child.events.put(Woken())
            limit.set(self._seconds_to_heed)

        try:
            limit.set(self._settings.deadline_seconds)
            cancelled.when_set(wake)
            if child.status is None:
                on_progress(Progress("loading"))
                self._wait_for_model(child, limit, cancelled)
            waited = time.perf_counter() - began
            answer = self._answer(child, order, on_progress, cancelled)
        finally:
            limit.end()
        if isinstance(answer, Clip):
            seconds = {**answer.seconds, "loading": answer.seconds.get("loading", 0.0) + waited}
            return replace(answer, seconds=seconds)
        if isinstance(answer, Failure):
            if isinstance(answer, LastFailure):
                child.finish()
            raise answer.error
        self._sweep()
        raise self._loss(answer, limit, cancelled)

    def _wait_for_model(self, child: Child, limit: "_Limit", cancelled: CancelFlag) -> None:
        while child.status is None:
            event = child.events.get()
            if cancelled():
                raise Canceled("the generation was cancelled")
            match event:
                case Failure():
                    child.finish()
                    raise event.error
                case Ended() if self._is_closed:
                    raise _closed()
                case Ended() if limit.is_reached:
                    raise not_in_time("the model was not loaded", self._settings.deadline_seconds)
                case Ended():
                    # the request may be luckier with the next process
                    raise WorkerCrashed(f"{event} while it was loading", hint=event.hint)

    def _answer(
        self, child: Child, order: Generate, on_progress: OnProgress, cancelled: CancelFlag
    ) -> Clip | Failure | Ended:
        """What a generation has come to."""
        try:
            child.send(order)
            is_told = False
            while True:
                if cancelled() and not is_told:
                    child.send(Cancel())
                    is_told = True
                event = child.events.get()
                if isinstance(event, Progress):
                    on_progress(event)
                elif isinstance(event, Clip | Failure | Ended):
                    return event
        except BaseException:
            child.end()  # or its answer would be taken for that to the next request
            raise

    def _loss(self, ended: Ended, limit: "_Limit", cancelled: CancelFlag) -> LTX2Error:
        """What to say of a generation that had no answer: the process ended, or had to be."""
        if self._is_closed:
            return WorkerCrashed("the server was shut down in the middle of the generation")
        if not limit.is_reached:
            return WorkerCrashed(f"{ended} in the middle of the generation", hint=ended.hint)
        if cancelled():  # which was not heeded
            return Canceled("the generation was cancelled")
        return too_long(self._settings.deadline_seconds)


class _Limit:
    """Kills a process that takes too long for one generation, so that all that is waited for is its end."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._has_ended = False
        self.is_reached = False

    def set(self, seconds: float) -> None:
        """From now on it may take so long; an earlier limit holds, too."""
        with self._lock:
            if not self._has_ended:
                timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._reach)
                timer.daemon = True
                timer.start()
                self._timers.append(timer)

    def end(self) -> None:
        """The generation is over, and the process is somebody else's."""
        with self._lock:
            self._has_ended = True
        for timer in self._timers:
            timer.cancel()

    def _reach(self) -> None:
        with self._lock:
            if not self._has_ended and not self._child.is_over:
                self.is_reached = True
                self._child.kill()


def end_left(note: Path) -> None:
    """Kill the process that a note names, if it is one of ours: it did not notice that its server was killed.

    It holds memory that the next one needs. Only Linux, where servers run, says which process is whose.
    """
    if sys.platform != "linux":
        return
    try:
        pid = int(note.read_text())
        if MARK not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        log.warning("killing process %d, which holds a model for a server that is no more", pid)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + SECONDS_TO_END
        # one that has ended is a zombie until somebody asks for its status
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            if time.monotonic() > until:
                log.warning("process %d does not end", pid)
                return
            time.sleep(0.02)
    except (OSError, ValueError):
        return  # there is no note, or no such process


def _closed() -> NotReady:
    return NotReady("the server is being shut down", hint="send the request again")
