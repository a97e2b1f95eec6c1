"""The one place every dialect brings its requests to, and where the life of each is decided."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ltx2.engine import Engine, EngineStatus
from ltx2.errors import Canceled, LTX2Error, NotReady, TimedOut
from ltx2.payload import Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.database import Database, lock_places
from ltx2.studio.delivery import Announce, Outbox
from ltx2.studio.dispatch import Dispatcher
from ltx2.studio.files import Files
from ltx2.studio.job import Job, Order
from ltx2.studio.keys import Keys, webhook_secret
from ltx2.studio.live import Live
from ltx2.studio.metrics import Metrics
from ltx2.studio.planner import Planner
from ltx2.studio.reception import Reception
from ltx2.studio.stills import Stills
from ltx2.studio.storage import open_storage
from ltx2.studio.store import Store
from ltx2.studio.worker import JobWorker

log = logging.getLogger(__name__)

T = TypeVar("T")
Media = dict[str, bytes]
SWEEP_SECONDS = 60


class Studio:
    """Takes requests, writes them down, has them run and remembers what became of them.

    All methods belong to one event loop.

    Args:
        settings: limits and places.
        engine: makes the clips.

    Raises:
        NotReady: the data folder cannot be used, or another server uses it.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings, self._engine = settings, engine
        self._locks = lock_places(settings)
        self.keys, secret, storage = Keys(settings), webhook_secret(settings), open_storage(settings)
        self._database = Database(settings)  # the last that may not be there
        self.files = Files(self._database, storage, settings)
        self.metrics = Metrics(engine.status, lambda: self.queue_len, lambda: self.running)
        self._store = Store(self._database)
        self._outbox = Outbox(settings, secret, self._database, self.files)
        # decoding what was sent must not wait for the model, nor take all cores from it
        self._intake = ThreadPoolExecutor(max_workers=2, thread_name_prefix="intake")
        self._disk = ThreadPoolExecutor(max_workers=4, thread_name_prefix="disk")
        self._looks = ThreadPoolExecutor(max_workers=2, thread_name_prefix="look")
        self._jobs_disk = ThreadPoolExecutor(max_workers=2, thread_name_prefix="job")
        self._worker = JobWorker(engine, self._store, self.files, self._jobs_disk)
        self._dispatcher = Dispatcher(self._worker, self._over)
        self._live, self._turns = self._dispatcher.live, self._dispatcher.turns
        self._reception = Reception(
            settings, self._store, self.files, self._intake, self._disk, self._turns, self._room
        )
        self.keep_media = self._reception.keep_media
        self._planner = Planner(settings, engine.status, self._reception, self._dispatcher)
        self.plan = self._planner.plan
        self._stills = Stills(self.files)
        self.still = self._stills.draw
        self.draining = asyncio.Event()  # who only watches leaves
        self._drained_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def announce(self, dialect: str, event: Announce) -> None:
        """Have webhooks of jobs that came in by a dialect say what this makes of them."""
        self._outbox.events[dialect] = event

    async def start(self) -> None:
        """Take up what a server before this one left, and begin to load the model."""
        for job in await self.on_disk(self._store.recover, time.time()):
            self._dispatcher.accept(job)
        await self.on_disk(self.files.remove_orphans)
        await self.on_disk(self._planner.remember, self._database)
        for left in self.settings.work_dir.glob("download-*"):
            left.unlink(missing_ok=True)
        if self.status.ttl_seconds is None:
            self._worker.load()
        self._tasks = [
            asyncio.create_task(work()) for work in (self._dispatcher.run, self._sweep, self._outbox.deliver)
        ]

    def drain(self) -> None:
        """Accept nothing more, and let those go who only watch. What was accepted goes on."""
        if not self.draining.is_set():
            self._drained_at = time.monotonic()
        self.draining.set()
        for live in self._live.values():
            live.publish(live.job)

    async def close(self) -> None:
        """Wait for the generation in hand, but not for long, and end. The next server takes up what has not ended."""
        self.drain()
        self._dispatcher.close()
        if self._tasks:
            dispatch, *others = self._tasks
            for task in others:
                task.cancel()
            spent = time.monotonic() - self._drained_at
            await asyncio.wait([dispatch], timeout=max(0.0, self.settings.shutdown_seconds - spent))
        self._worker.is_closing = True
        await asyncio.to_thread(self._engine.close)
        await asyncio.gather(*self._tasks, self._dispatcher.settle(), return_exceptions=True)
        self._worker.close()
        self._intake.shutdown(wait=True, cancel_futures=True)
        self._stills.close()
        self._planner.close()
        for pool in (self._disk, self._looks, self._jobs_disk):
            pool.shutdown(wait=True)
        self._database.close()
        self._locks.close()

    @property
    def status(self) -> EngineStatus:
        return self._engine.status()

    @property
    def is_ready(self) -> bool:
        """Whether a job could start."""
        return not self.draining.is_set() and self.status.ready and self.status.fault is None

    @property
    def queue_len(self) -> int:
        """Requests that were accepted and are not being generated yet."""
        return len(self._turns) + len(self._reception)

    @property
    def running(self) -> int:
        """Generations in hand."""
        return self._dispatcher.running

    def _room(self) -> int:
        # whose turn it is at once does not wait
        return self.settings.queue_limit + self._dispatcher.free_seats

    async def on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something with files or the database in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _look(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._looks, work, *arguments)

    async def submit(self, request: GenerationRequest, sources: Sources, order: Order) -> Job:
        """Accept a request: check it, keep its media, write it down. From then on it is not lost.

        Args:
            request: checked against no limits yet.
            sources: where the media it names come from. They are kept as files of the order's owner.
            order: who asks, and what is to be done around the generation.

        Returns:
            The job; or the one made with the same idempotency key before.

        Raises:
            LTX2Error: it is not accepted, and nothing of it is kept.
        """
        if self.draining.is_set():
            raise NotReady("the server is being shut down", hint="send the request again")
        mark, earlier = await self._reception.earlier(request, sources, order)
        if earlier is not None:
            return await self.job(earlier.id, order.owner)
        self._worker.check()
        request, sources, media = await self._reception.admit(request, sources, order)
        keeping = asyncio.create_task(self._keep(request, sources, media, order, mark))
        try:
            return await asyncio.shield(keeping)
        except asyncio.CancelledError:
            self._dispatcher.spawn(self._abandon(keeping))
            raise

    async def _keep(self, request: GenerationRequest, sources: Sources, media: Media, order: Order, mark: str) -> Job:
        announced: list[Job] = []

        def announce(job: Job) -> None:
            self._live[job.id] = Live(job)
            announced.append(job)

        is_new = False
        try:
            job, is_new = await self._reception.keep(request, sources, media, order, mark, announce)
        finally:
            if announced and not is_new:
                del self._live[announced[0].id]
        return self._dispatcher.accept(job) if is_new else await self.job(job.id, order.owner)

    async def _abandon(self, keeping: asyncio.Task[Job]) -> None:
        """The caller left while the request was written down."""
        await asyncio.wait([keeping])
        if keeping.exception() is None and (job := keeping.result()).order.idempotency_key is None:
            await self.cancel(job.id, job.order.owner)

    async def job(self, job_id: str, owner: str) -> Job:
        """Raises NotFound: there is none, or it is somebody else's."""
        live = self._mine(job_id, owner)
        return live.job if live else await self._look(self._store.get, job_id, owner)

    def _mine(self, job_id: str, owner: str) -> Live | None:
        live = self._live.get(job_id)
        return live if live and live.job.order.owner == owner and not live.is_forgotten else None

    async def jobs(self, owner: str, limit: int = 1000, after: str | None = None, *, oldest: bool = False) -> list[Job]:
        """The newest jobs of an owner, the newest first; or the next ones after one of them; or the oldest.

        Raises:
            NotFound: there is no such job to go on after.
        """
        newest = partial(self._store.newest, owner, limit, after, oldest=oldest)
        return self._latest(await self._look(newest))

    async def batch(self, owner: str, name: str) -> list[Job]:
        """The jobs of an owner that were ordered under this name, the oldest first."""
        return self._latest(await self._look(self._store.batch, owner, name))

    def waiting(self, owner: str) -> list[Job]:
        """The jobs of an owner whose turn has not come."""
        mine = (live.job for live in self._live.values() if live.job.order.owner == owner and not live.is_forgotten)
        return [job for job in mine if job.state == "queued"]

    async def count(self, owner: str) -> dict[str, int]:
        """How many jobs of an owner there are in each state."""
        return await self._look(self._store.count, owner)

    def _latest(self, written: Iterable[Job]) -> list[Job]:
        # what is written of a running job's progress may be a second old
        return [self._live[job.id].job if job.id in self._live else job for job in written]

    async def watch(self, job_id: str, owner: str) -> AsyncIterator[tuple[Job, float | None]]:
        """A job now and whenever it changes, up to its end, each with the seconds it may still take.

        Ends early when the server does.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        live = self._mine(job_id, owner)
        if live is None:
            yield await self.job(job_id, owner), None
            return
        while True:
            job, changed = live.job, live.changed
            yield job, live.seconds_left
            if job.is_over or self.draining.is_set():
                return
            await changed.wait()

    async def result(self, job: Job) -> Job:
        """Wait for a job on behalf of a caller who waits.

        When the caller leaves (the awaiting task is cancelled), the job is cancelled too, unless somebody else
        waits for it or it has an idempotency key, by which the caller may come back for it.

        Raises:
            TimedOut: it was not over after ``LTX2_SYNC_SECONDS``; it runs on.
            LTX2Error: it failed, or was cancelled.
        """
        live = self._mine(job.id, job.order.owner)
        job = await self._ended(live) if live else await self.job(job.id, job.order.owner)
        error = Canceled("the job was cancelled") if job.state == "canceled" else job.failure and job.failure.error
        if error:
            error.job_id = job.id
            raise error
        return job

    async def _ended(self, live: Live) -> Job:
        live.callers += 1
        try:
            async with asyncio.timeout(self.settings.sync_seconds):
                return await live.ended()
        except TimeoutError:
            late = TimedOut(
                f"the clip was not finished after {self.settings.sync_seconds:g} seconds",
                hint=f"it is still being made: ask for the job {live.job.id}",
            )
            late.job_id = live.job.id
            raise late from None
        except asyncio.CancelledError:
            if live.callers == 1 and live.job.order.idempotency_key is None:
                self._dispatcher.spawn(self.cancel(live.job.id, live.job.order.owner))
            raise
        finally:
            live.callers -= 1

    async def cancel(self, job_id: str, owner: str) -> Job:
        """Cancel a job: a queued one never starts, a running one stops within a step, an ended one stays as it is.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        live = self._mine(job_id, owner)
        if live is not None and live.job.state == "running":
            live.cancel()  # at once, whatever the disk says
        job = await self.on_disk(self._store.cancel, job_id, owner, time.time())
        if live is None:
            return job
        live.cancel()
        if job.state == "canceled" and self._turns.remove(job_id):
            self._dispatcher.over(live, job)
        return job if job.is_over else live.job

    async def forget(self, job_id: str, owner: str) -> Job:
        """Cancel a job and show it to nobody any more. Returns it as it was then: if it has no clip, it gets none.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        live = self._mine(job_id, owner)
        await self.cancel(job_id, owner)
        job = await self.on_disk(self._store.forget, job_id, owner)
        if live is not None:
            live.is_forgotten = True
        return job

    def _over(self, job: Job) -> None:
        self.metrics.ended(job)
        self._planner.learn(job)
        self._outbox.wake()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.on_disk(self.files.sweep, time.time())
                hours = self.settings.jobs_hours  # of those kept for ever, only the forgotten go
                await self.on_disk(self._store.sweep, time.time() - 3600 * hours if hours else 0.0)
            except (LTX2Error, SQLAlchemyError, OSError):
                log.exception("the sweep failed; it is tried again")
            await asyncio.sleep(SWEEP_SECONDS)
