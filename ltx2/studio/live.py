"""A job while it waits and runs: its latest state, told to everybody who watches."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ltx2.engine import CancelFlag, Progress
from ltx2.errors import LTX2Error, TimedOut
from ltx2.studio.job import Job


class Live:
    """Belongs to the event loop; only the flag may be touched from elsewhere."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.flag = CancelFlag()
        self.changed = asyncio.Event()
        """Set when there is another state; then there is another event."""
        self.callers = 0
        """Those who wait for the result in one request."""
        self.is_forgotten = False
        self.late: LTX2Error | None = None
        """Why its generation was stopped, when nobody cancelled it."""
        self.expiry: asyncio.TimerHandle | None = None
        """Ends a job that is not over in time."""
        self.returns = 0
        """How often it went back to the queue."""
        self.noted_at = 0.0
        """When its progress was last written down, by the monotonic clock."""
        self._mark: tuple[float, float] | None = None
        self._run_seconds: float | None = None
        self._limit: asyncio.TimerHandle | None = None

    def publish(self, job: Job) -> None:
        """Tell everybody. Who is slow misses what is overtaken."""
        self.job = job
        if job.state != "running":
            self._mark = None  # another try has a speed of its own
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def cancel(self) -> None:
        """Let the generation end, and tell everybody that it will."""
        self.flag.set()
        if not self.job.is_over:
            self.publish(replace(self.job, cancel_requested=True))

    def time_out(self, error: LTX2Error) -> None:
        """Let the generation end, and the job fail with this."""
        self.late = self.late or error
        self.flag.set()

    @contextmanager
    def limited(self, seconds: float | None) -> Iterator[None]:
        """Stop a generation that takes longer within this. What it waits for its turn elsewhere does not count."""
        self._run_seconds = seconds
        self._count(True)
        try:
            yield
        finally:
            self._count(False)
            self._run_seconds = None

    def _count(self, is_counting: bool) -> None:
        if not is_counting and self._limit is not None:
            self._limit.cancel()
            self._limit = None
        elif is_counting and self._limit is None and (seconds := self._run_seconds) is not None:
            late = TimedOut(f"the generation took longer than the {seconds:g} seconds that were asked for")
            self._limit = asyncio.get_running_loop().call_later(seconds, self.time_out, late)

    def progress(self, progress: Progress) -> None:
        """Tell everybody how far the generation is."""
        if self.job.state != "running":
            return
        self._count(progress.phase != "queued")
        self.publish(replace(self.job, progress=progress))
        if progress.stretch in ("loading", "encoding"):
            self._mark = None
        elif self._mark is None:
            self._mark = (time.monotonic(), self.job.fraction)

    @property
    def seconds_left(self) -> float | None:
        """An estimate, by the speed since denoising began; None before that."""
        if self._mark is None or self.job.state != "running":
            return None
        since, done = self._mark
        advanced = self.job.fraction - done
        return (time.monotonic() - since) * (1 - self.job.fraction) / advanced if advanced > 0 else None

    async def ended(self) -> Job:
        """The job when it is over."""
        while not self.job.is_over:
            await self.changed.wait()
        return self.job
