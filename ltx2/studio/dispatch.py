"""Which job runs next, and what happens to those that wait or run for too long."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ltx2.errors import LTX2Error, TimedOut
from ltx2.studio.job import Job, outline
from ltx2.studio.live import Live
from ltx2.studio.turns import Turns
from ltx2.studio.worker import JobWorker

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
"""How often an engine that is down is asked whether it still is."""


class Dispatcher:
    """Runs as many jobs at the same time as the engine has seats. Belongs to the event loop.

    Args:
        worker: runs them.
        on_end: told of each job that is over.
    """

    def __init__(self, worker: JobWorker, on_end: Callable[[Job], None]) -> None:
        self._worker = worker
        self._on_end = on_end
        self.live: dict[str, Live] = {}
        """The jobs that wait or run, by id; also those about to be written down."""
        self.turns = Turns()
        self._wake = asyncio.Event()
        self._is_closing = False
        self.running = 0
        """Jobs in hand."""
        self._runs: set[asyncio.Task[None]] = set()
        self._spawned: set[asyncio.Task[Any]] = set()

    def accept(self, job: Job) -> Job:
        """Let a job wait for its turn, for as long as its order says."""
        live = self.live.setdefault(job.id, Live(job))
        self.turns.add(job.id, job.order.owner, job.order.priority)
        ttl = job.order.ttl_seconds
        if ttl is not None and not self._is_closing:
            left = job.created_at + ttl - time.time()
            # the clock may have been set back
            live.expiry = asyncio.get_running_loop().call_later(min(max(0.0, left), ttl), self._expire, live)
        self._wake.set()
        return job

    def over(self, live: Live, job: Job) -> None:
        """A job has come to its end, which is written down."""
        if live.expiry is not None:
            live.expiry.cancel()
        live.publish(job)
        self.live.pop(job.id, None)
        self._on_end(job)
        log.info("%s", outline(job))

    @property
    def free_seats(self) -> int:
        """How many more jobs could run now."""
        return self._worker.seats - self.running

    async def run(self) -> None:
        """Run jobs until :meth:`close`, and wait for those in hand."""
        while not self._is_closing:
            self._wake.clear()
            is_down = self._worker.is_down
            job_id = None if is_down or self.free_seats <= 0 else self.turns.next()
            if job_id is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SECONDS_BETWEEN_LOOKS if is_down else None):
                        await self._wake.wait()
                continue
            self.running += 1
            task = asyncio.create_task(self._run(self.live[job_id]))
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)
        await asyncio.gather(*self._runs)

    async def _run(self, live: Live) -> None:
        try:
            job = await self._worker.run(live)
        except Exception:
            # the others must not wait for what cannot even be begun, or written down
            log.exception("job %s could not be run", live.job.id)
            if self._worker.is_closing:
                return  # the next server takes it up
            job = await self._worker.give_up(live)
        finally:
            self.running -= 1
            self._wake.set()
        if job.is_over:
            self.over(live, job)
        elif live.late is not None:
            await self._give_up(live, live.late)
        else:
            live.publish(job)
            self._return(live)

    def _return(self, live: Live) -> None:
        """A job has had its turn for nothing. The next one is at once, but only once: others wait, too."""
        live.returns += 1
        if live.returns == 1:
            self.turns.add_first(live.job.id, live.job.order.owner)
        else:
            self.turns.add(live.job.id, live.job.order.owner, live.job.order.priority)

    def close(self) -> None:
        """Begin no other job."""
        self._is_closing = True
        self._wake.set()

    async def settle(self) -> None:
        """Wait for what was spawned. Who is late from now on is seen to by the next server."""
        for live in self.live.values():
            if live.expiry is not None:
                live.expiry.cancel()
        await asyncio.gather(*self._spawned, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.create_task(work)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)

    def _expire(self, live: Live) -> None:
        """A job was not over when its caller wanted it to be."""
        seconds = live.job.order.ttl_seconds
        late = TimedOut(f"the job was not over {seconds:g} seconds after it was sent, as it had to be")
        if self.turns.remove(live.job.id):
            self.spawn(self._give_up(live, late))
        else:
            live.time_out(late)

    async def _give_up(self, live: Live, error: LTX2Error) -> None:
        self.over(live, await self._worker.give_up(live, error))
