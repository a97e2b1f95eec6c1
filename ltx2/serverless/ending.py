"""How a worker ends that RunPod wants no longer."""

import asyncio
import logging
import os
import signal
from types import FrameType
from typing import Final

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 0.1
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """What SIGTERM does before there are jobs.

    The first process of a container does not hear signals that it does not listen for: it would go on loading, take a
    job, and be killed with it. Python's own way out would wait for the thread that loads.
    """
    os._exit(128 + number)


class Ending:
    """Ends the worker as soon as it was told to and has nothing in hand.

    RunPod's client alone would go on waiting for a job it asked for before, for up to a minute and a half, and never
    answer the one that it gets then. To be removed once it drops that question when it is told to end.
    """

    def __init__(self) -> None:
        self._is_prepared = False
        self._is_over = False

    def concurrency(self, current: int) -> int:
        """What RunPod's client calls in its loop before it asks for a job: as many at a time as before."""
        if not self._is_prepared:
            self._is_prepared = True
            loop = asyncio.get_running_loop()
            for number in SIGNALS:
                self._listen(number, loop)
        return current

    def _listen(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        others = signal.getsignal(number)

        def told(told_number: int, frame: FrameType | None) -> None:
            if self._is_over:  # and there may be no loop to tell
                return
            if callable(others):
                others(told_number, frame)
            loop.call_soon_threadsafe(self._end, loop)

        signal.signal(number, told)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_over:  # told more than once
            return
        # only the client knows whether the answer to a job has been sent
        from runpod.serverless.modules.worker_state import JobsProgress

        if JobsProgress().get_job_count():
            loop.call_later(SECONDS_BETWEEN_LOOKS, self._end, loop)
            return
        self._is_over = True
        log.info("the worker ends, as it was told to")
        raise SystemExit(0)
