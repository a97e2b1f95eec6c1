"""Follows a job at RunPod until it is over."""

import logging
import time
from collections.abc import Callable
from typing import Final

from ltx2.engine import OnProgress, Progress
from ltx2.errors import Canceled, TimedOut, WorkerCrashed, too_long
from ltx2.fleet.answers import OVER, RUNNING, WAITING, progress_of
from ltx2.fleet.remote import Document, Lost, Refused, Remote, Unreached
from ltx2.fleet.watch import Watch

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.25
PAUSE: Final = 1.0
"""Seconds between two questions after a job."""
PAUSE_UNHEARD: Final = 5.0
"""The same while there are no answers."""
TIMES_UNKNOWN: Final = 3
"""RunPod may know nothing of a job yet, that long after it was sent; later it has forgotten it."""
CANCEL_PAUSES: Final = (0.0, 0.5, 1.5)


class Following:
    """One job.

    Args:
        remote: asked for it.
        job: its id.
        watch: ends waiting.
        on_progress: told what is new.
        on_silence: told when an answer is lost.
        seconds: how long it may take from when it began.
    """

    def __init__(
        self,
        remote: Remote,
        job: str,
        watch: Watch,
        *,
        on_progress: OnProgress,
        on_silence: Callable[[], None],
        seconds: float,
    ) -> None:
        self._remote = remote
        self._job = job
        self._watch = watch
        self._on_progress = on_progress
        self._on_silence = on_silence
        self._seconds = seconds
        self._told: Progress | None = None
        self._began: float | None = None
        self._heard = time.monotonic()
        self._times_unknown = 0

    def first(self) -> Document | None:
        """What RunPod says of a job that was begun long ago; None if it knows none. Raises as :meth:`until_over`."""
        while (document := self._ask()) is None and not self._times_unknown:
            self._wait(PAUSE_UNHEARD)
        return document

    def until_over(self, document: Document | None = None) -> Document:
        """What RunPod says of it in the end. Answers that are lost on the way mean nothing.

        Args:
            document: what it said last, if it was asked.

        Raises:
            Canceled: by the caller; it is cancelled at RunPod, too, as where it takes too long.
            EngineDown: the server ends.
            TimedOut: it takes too long.
            WorkerCrashed: RunPod does not know it any more, or was silent for as long as it may take.
        """
        pause = FIRST_PAUSE
        while True:
            if document is not None:
                self._hear(document)
                if document.get("status") in OVER:
                    return document
            self._wait(pause)
            document = self._ask()
            pause = min(2 * pause, PAUSE_UNHEARD if document is None else PAUSE)

    def _wait(self, pause: float) -> None:
        try:
            self._watch.sleep(pause)
            self._check()
        except (Canceled, TimedOut):
            self._cancel()
            raise

    def _cancel(self) -> None:
        """Have it stopped, if that can be said."""
        for pause in CANCEL_PAUSES:
            time.sleep(pause)
            try:
                self._remote.cancel(self._job)
            except Refused as error:
                if error.status == 404:  # it is over
                    return
            except (Lost, Unreached):
                pass
            else:
                return
        log.warning("job %s could not be cancelled at RunPod and may go on there", self._job)

    def _ask(self) -> Document | None:
        try:
            document = self._remote.status(self._job)
        except Refused as error:
            self._times_unknown = self._times_unknown + 1 if error.status == 404 else 0
            self._on_silence()
            return None
        except (Lost, Unreached):
            self._on_silence()
            return None
        self._times_unknown = 0
        return document if isinstance(document.get("status"), str) else None

    def _hear(self, document: Document) -> None:
        state = document["status"]
        self._heard = time.monotonic()
        if state not in (WAITING, RUNNING):
            return
        if state == WAITING:
            self._began = None  # perhaps again: its worker was lost
        elif self._began is None:
            self._began = self._heard
        progress = progress_of(document) or (Progress("loading") if self._told in (None, Progress("queued")) else None)
        if progress is not None and progress != self._told:
            self._told = progress
            self._on_progress(progress)

    def _check(self) -> None:
        now = time.monotonic()
        if self._began is not None and now - self._began > self._seconds:
            raise too_long(self._seconds)
        if self._times_unknown >= TIMES_UNKNOWN:
            raise WorkerCrashed("RunPod does not know the generation any more")
        if now - self._heard > self._seconds:
            raise WorkerCrashed(f"nothing was heard of the generation for {self._seconds:g} seconds")
