"""An engine in a process of its own, so that whatever becomes of the model, the server answers.

What crashes, hangs or gives no memory back ends with that process, and the next request gets a new one. Nothing here
polls: whoever waits is woken by what the process says, by its end, by a cancel or by the deadline.
"""

import contextlib
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, LTX2Error, NotReady, TimedOut, WorkerCrashed
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.child import Cancel, Child, Ended, Event, Failure, Generate, Start, Woken

log = logging.getLogger(__name__)

GB = 1e9
FAKE = "ltx2.fake:FakeEngine"


class ProcessEngine:
    """Implements :class:`ltx2.engine.Engine` by a process that is started when it is needed.

    A clip has to be moved before the next generation begins: what lies in the process's folder then may be removed.

    Args:
        settings: those of the server; the process writes to a folder of its own below the data folder.
        build: the class of the engine that the process makes, as ``package.module:Class``.
    """

    def __init__(self, settings: Settings, build: str) -> None:
        self._settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute() / "engine"})
        self._build = build
        self._ttl_seconds = _ttl_seconds(settings.residency)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._known = EngineStatus((), 0.0, round(memory / GB, 1), fake=build == FAKE)
        # a model that is not kept is loaded when it is wanted, so that its absence keeps no request from starting
        self._is_ready = self._ttl_seconds is not None
        self._restarts = 0
        self._used_at = time.monotonic()
        self._is_busy = False
        self._turn = threading.Lock()
        """Held by whoever uses the process, or ends it because nobody does."""
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
            idle_seconds=0.0 if self._is_busy else time.monotonic() - self._used_at,
            ttl_seconds=self._ttl_seconds,
            restarts=self._restarts,
        )

    def load(self) -> None:
        with self._in_use():
            self._wait_for_model(self._running())

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        with self._in_use():
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
        with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            self._is_busy = True
            try:
                yield
            finally:
                self._used_at = time.monotonic()
                self._is_busy = False
                with self._lock:
                    if self._ttl_seconds and not self._is_closed:
                        self._timer = threading.Timer(self._ttl_seconds, self._expire, [self._ttl_seconds])
                        self._timer.daemon = True
                        self._timer.start()

    def _expire(self, seconds: float) -> None:
        """End a process that nobody used for so long, unless it is wanted at this very moment."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self.pid is not None and self._child is not None and time.monotonic() - self._used_at >= seconds:
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
        self._sweep()
        with self._lock:
            if self._is_closed:
                raise _closed()
            try:
                self._child = Child(Start(self._settings, self._build), self._heard)
            except OSError as error:
                raise NotReady(f"no process could be started for the model: {error.strerror}") from error
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
            self._is_ready = True
        elif isinstance(event, Failure) and event.is_last:
            child.is_over = True
            if child.status is None:
                child.is_wanted = self._is_ready = False
        elif isinstance(event, Ended) and child.is_wanted:
            log.warning("the process that holds the model has ended %s", event.how)
            self._restarts += 1
            if child.status is None:
                self._is_ready = False

    def _generate(self, order: Generate, on_progress: OnProgress, cancelled: CancelFlag) -> Clip:
        if cancelled():
            raise Canceled("the generation was cancelled")
        began = time.perf_counter()
        child = self._running()
        cancelled.when_set(lambda: child.events.put(Woken()))
        if child.status is None:
            on_progress(Progress("loading"))
            self._wait_for_model(child, cancelled)
        waited = time.perf_counter() - began
        try:
            answer = self._answer(child, order, on_progress, cancelled)
        except BaseException:
            child.end()  # or its answer would be taken for that to the next request
            raise
        if isinstance(answer, Clip):
            seconds = {**answer.seconds, "loading": answer.seconds.get("loading", 0.0) + waited}
            return replace(answer, seconds=seconds)
        if isinstance(answer, Failure):
            if answer.is_last:
                child.finish()
            raise answer.error
        if answer is None:
            child.kill()
        self._sweep()
        raise self._loss(answer, cancelled)

    def _wait_for_model(self, child: Child, cancelled: CancelFlag | None = None) -> None:
        while child.status is None:
            match child.events.get():
                case Failure() as failure:
                    child.finish()
                    raise failure.error
                case Ended() if self._is_closed:
                    raise _closed()
                case Ended() as ended:
                    message = f"the process that holds the model ended {ended.how} while it was loading"
                    # a request that waits for it may be luckier with the next process
                    raise (
                        NotReady(message, hint=ended.hint)
                        if cancelled is None
                        else WorkerCrashed(message, hint=ended.hint)
                    )
            if cancelled is not None and cancelled():
                raise Canceled("the generation was cancelled")

    def _answer(
        self, child: Child, order: Generate, on_progress: OnProgress, cancelled: CancelFlag
    ) -> Clip | Failure | Ended | None:
        """What a generation has come to; None when it took too long."""
        child.send(order)
        deadline = time.monotonic() + self._settings.deadline_seconds
        is_told = False
        while True:
            if cancelled() and not is_told:
                child.send(Cancel())
                is_told = True
            left = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            try:
                event = child.events.get(timeout=max(0.0, left))
            except queue.Empty:
                return None
            if isinstance(event, Progress):
                on_progress(event)
            elif isinstance(event, Clip | Failure | Ended):
                return event

    def _loss(self, ended: Ended | None, cancelled: CancelFlag) -> LTX2Error:
        """What to say of a generation that had no answer: the process ended, or had to be."""
        if self._is_closed:
            return WorkerCrashed("the server was shut down in the middle of the generation")
        if ended is not None:
            message = f"the process that holds the model ended {ended.how} in the middle of the generation"
            return WorkerCrashed(message, hint=ended.hint)
        if cancelled():  # which was not heeded
            return Canceled("the generation was cancelled")
        return TimedOut(
            f"the generation took longer than the {self._settings.deadline_seconds:g} seconds allowed here",
            hint="ask for fewer frames, fewer steps or a smaller picture; the server's limit is LTX2_DEADLINE_SECONDS",
        )


def _ttl_seconds(residency: str) -> float | None:
    """How long a model stays; None for ever."""
    kind, _, idle = residency.partition(":")
    return None if kind == "resident" else float(idle or 0)


def _closed() -> NotReady:
    return NotReady("the server is being shut down", hint="send the request again")
