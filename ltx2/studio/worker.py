"""Runs jobs on the engine, and writes down what became of them."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ltx2.engine import Clip, Engine, Progress
from ltx2.errors import (
    Canceled,
    EngineDown,
    Failure,
    Internal,
    InvalidRequest,
    LTX2Error,
    NotFound,
    NotReady,
    StorageFull,
    WorkerCrashed,
)
from ltx2.studio.files import FileRecord, Files
from ltx2.studio.job import MOST_TRIES, Job
from ltx2.studio.live import Live
from ltx2.studio.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_NOTES = 1.0
"""Progress is written down no more often: it is for those who come after a restart."""
LONGEST_PAUSE = 30.0
DOWN_SECONDS = 1.0
"""How long nothing is begun after the engine could not be reached, whatever it says of itself."""


class JobWorker:
    """Belongs to the event loop.

    Args:
        engine: asked for clips by as many threads of this worker's own as it has seats, and loaded by another.
        store: where jobs are written down.
        files: where inputs come from and clips go.
        disk: threads for both.
    """

    def __init__(self, engine: Engine, store: Store, files: Files, disk: Executor) -> None:
        self._engine = engine
        self._store = store
        self._files = files
        self._disk = disk
        self.seats = engine.status().seats
        """How many jobs may run at the same time."""
        self._threads = ThreadPoolExecutor(max_workers=self.seats, thread_name_prefix="engine")
        self._notes: set[asyncio.Future[None]] = set()
        self._down_until = 0.0
        self.is_closing = False
        """What fails from now on has not failed: it is taken up by the next server."""

    def load(self) -> None:
        """Begin to load the model. A failure is logged, and told again to every job.

        In a thread of its own, so that a job that waits for the model can be cancelled.
        """
        threading.Thread(target=self._load, name="loading", daemon=True).start()

    def _load(self) -> None:
        try:
            self._engine.load()
        except LTX2Error as error:
            log.error("the model cannot be used: %s", error)  # noqa: TRY400 - a wrong setting has no traceback
        except Exception:
            log.exception("the model cannot be used")

    def close(self) -> None:
        """End the threads. The engine must have been closed."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def is_down(self) -> bool:
        """Whether no job should be begun, since it would only come back."""
        return time.monotonic() < self._down_until or self._fault is not None

    def check(self) -> None:
        """Raises EngineDown: nothing new should be accepted now."""
        if self._fault is not None:
            raise EngineDown(self._fault, hint="what was accepted waits for it; send this request again later")

    @property
    def _fault(self) -> str | None:
        status = self._engine.status()
        return status.fault if status.recovers else None

    async def run(self, live: Live) -> Job:
        """Run a queued job.

        Returns:
            The job when it is over; or queued again, to be tried once more. Both have been written down.
        """
        fake = self._engine.status().fake
        began = await self._written(partial(self._store.begin, fake=fake), live.job.id, time.time())
        if began is None:  # it was cancelled a moment ago
            return replace(live.job, state="canceled", finished_at=time.time())
        live.publish(began)
        with live.limited(began.order.run_seconds):
            return await self._generate(live, began)

    async def give_up(self, live: Live, error: LTX2Error | None = None) -> Job:
        """Let a job have failed that could not be run at all. If even that cannot be written, the next server may."""
        failure = Failure.of(error or Internal("the job could not be run; the server's log says why"))
        now = time.time()
        loop = asyncio.get_running_loop()
        try:
            if not await loop.run_in_executor(self._disk, self._store.give_up, live.job.id, failure, now):
                # it was cancelled a moment ago
                return await loop.run_in_executor(self._disk, self._store.get_any, live.job.id)
        except (LTX2Error, SQLAlchemyError):
            log.exception("job %s could not be written down", live.job.id)
        return replace(live.job, state="failed", finished_at=now, failure=failure)

    async def _generate(self, live: Live, job: Job) -> Job:
        loop = asyncio.get_running_loop()

        def on_progress(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._progressed, live, progress)

        try:
            media = await loop.run_in_executor(self._disk, self._inputs, job)
            clip = await loop.run_in_executor(
                self._threads, self._engine.generate, job.request, media, on_progress, live.flag
            )
            file = await self._kept(job, clip)
        except Canceled:
            if live.late is not None and not live.job.cancel_requested:
                return await self._failed(live, job, live.late)
            return await self._cancelled(live)
        except WorkerCrashed as error:
            return await self._crashed(live, job, error)
        except EngineDown as error:
            self._down_until = time.monotonic() + DOWN_SECONDS
            return await self._again(live, job, error, try_counts=False)
        except LTX2Error as error:
            return await self._failed(live, job, error)
        except Exception:
            log.exception("job %s failed", job.id)
            return await self._failed(live, job, Internal("the generation failed; the server's log says why"))
        return await self._succeeded(live, job, clip, file)

    def _inputs(self, job: Job) -> dict[str, bytes]:
        media = {}
        for name, file_id in job.inputs.items():
            try:
                media[name] = self._files.read(file_id, job.order.owner)
            except NotFound:
                raise InvalidRequest("its file was deleted before its turn came", field=name) from None
        return media

    def _progressed(self, live: Live, progress: Progress) -> None:
        live.progress(progress)
        now = time.monotonic()
        if now - live.noted_at >= SECONDS_BETWEEN_NOTES:
            live.noted_at = now
            note = asyncio.ensure_future(self._note(live.job.id, progress))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)

    async def _note(self, job_id: str, progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._disk, self._store.note, job_id, progress)
        except (LTX2Error, SQLAlchemyError):
            log.warning("the progress of job %s could not be written down", job_id)

    async def _note_last(self, live: Live) -> None:
        """How far a job came that did not succeed: who asks later must not be told less than who watched."""
        if self._notes:
            await asyncio.wait(self._notes)
        await self._note(live.job.id, live.job.progress)

    async def _kept(self, job: Job, clip: Clip) -> FileRecord:
        meta = {
            "job_id": job.id,
            "mode": job.request.mode,
            "width": clip.width,
            "height": clip.height,
            "num_frames": clip.num_frames,
            "fps": job.request.fps,
            "seed": clip.seed,
            "model": clip.model,
        }
        order = job.order
        adopt = partial(
            self._files.adopt,
            clip.path,
            owner=order.owner,
            filename=None,
            meta=meta,
            seconds=order.clip_seconds,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, adopt)
        except Exception:
            clip.path.unlink(missing_ok=True)
            raise

    async def _succeeded(self, live: Live, job: Job, clip: Clip, file: FileRecord) -> Job:
        now = time.time()
        facts = clip.facts
        if not await self._written(self._store.succeed, job.id, facts, file, now):
            await asyncio.get_running_loop().run_in_executor(self._disk, self._files.discard, file)
            return await self._cancelled(live)
        return replace(
            live.job,
            state="succeeded",
            finished_at=now,
            result=facts,
            file_id=file.id,
            file_size=file.size,
            progress=Progress("muxing"),
        )

    async def _cancelled(self, live: Live) -> Job:
        await self._note_last(live)
        now = time.time()
        await self._written(self._store.cancelled, live.job.id, now)
        return replace(live.job, state="canceled", finished_at=now)

    async def _failed(self, live: Live, job: Job, error: LTX2Error) -> Job:
        if self.is_closing:
            return await self._again(live, job, error, try_counts=False)
        await self._note_last(live)
        now = time.time()
        failure = Failure.of(error)
        await self._written(self._store.fail, job.id, failure, now)
        return replace(live.job, state="failed", finished_at=now, failure=failure)

    async def _crashed(self, live: Live, job: Job, error: WorkerCrashed) -> Job:
        if self.is_closing or job.tries < MOST_TRIES:
            return await self._again(live, job, error, try_counts=not self.is_closing)
        return await self._failed(live, job, error)

    async def _again(self, live: Live, job: Job, error: LTX2Error, *, try_counts: bool) -> Job:
        log.warning("job %s goes back to the queue: %s", job.id, error)
        if await self._written(lambda: self._store.requeue(job.id, try_counts=try_counts)):
            return replace(job, state="queued", progress=Progress("queued"))
        return await self._cancelled(live)

    async def _written(self, write: Callable[..., T], *arguments: Any) -> T:
        """Write to the database, however long that takes: what happened to a job must not be forgotten."""
        pause = 1.0
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._disk, write, *arguments)
            except (StorageFull, NotReady, SQLAlchemyError) as error:
                if self.is_closing:
                    raise
                log.error("the database refuses to write (%s); trying again", type(error).__name__)  # noqa: TRY400
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
