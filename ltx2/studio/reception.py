"""How a request becomes a job: checked, its media kept, written down; or refused, with nothing of it left."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from ltx2.errors import InvalidRequest, NotFound, QueueFull, UnknownFile, UnsupportedMedia
from ltx2.media.fetch import check_target
from ltx2.media.sources import file_id_of, job_id_of
from ltx2.payload import Source, Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.direct import SEED_BITS
from ltx2.studio.files import FileRecord, Files, content_type
from ltx2.studio.intake import take, take_in
from ltx2.studio.job import Job, Order, new_id
from ltx2.studio.store import Store, fingerprint
from ltx2.studio.turns import Turns

T = TypeVar("T")

AT_ONCE = 16
"""Requests whose media are held in memory while they are fetched, checked and kept."""


class Reception:
    """Belongs to the event loop.

    Args:
        settings: limits.
        store: where jobs are written down.
        files: where their media are kept.
        intake: threads that decode.
        disk: threads that read and write.
        turns: the jobs that wait.
        room: how many may wait in all now.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        files: Files,
        intake: Executor,
        disk: Executor,
        turns: Turns,
        room: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._intake = intake
        self._disk = disk
        self._turns = turns
        self._room = room
        self._share = settings.queue_limit // max(1, len(settings.keys))
        self._places = asyncio.Semaphore(AT_ONCE)
        self._taking_in: Counter[str] = Counter()
        self._examining: Counter[str] = Counter()

    def __len__(self) -> int:
        """Requests that are neither refused nor jobs yet."""
        return self._taking_in.total()

    async def earlier(self, request: GenerationRequest, sources: Sources, order: Order) -> tuple[str, Job | None]:
        """A request's fingerprint, and the job that was made with the same idempotency key before.

        Raises:
            InvalidRequest: that was another request.
        """
        mark = await asyncio.get_running_loop().run_in_executor(self._intake, fingerprint, request, sources, order)
        return mark, await self._on_disk(self._store.earlier, order, mark) if order.idempotency_key else None

    async def admit(
        self, request: GenerationRequest, sources: Sources, order: Order
    ) -> tuple[GenerationRequest, Sources, dict[str, bytes]]:
        """Count a request among those who wait, and check it. After this it must be kept.

        Returns:
            It, as its media settle it; their sources, where a job has become the file of its clip; and these media.

        Raises:
            LTX2Error: it is refused, and does not count.
        """
        # who waits for less than a fair share is let in all the same: nobody may shut out the others
        crowd = len(self._turns) + len(self)
        if crowd >= self._room() and self._turns.waiting(order.owner) + self._taking_in[order.owner] >= self._share:
            raise QueueFull(f"{crowd} requests are waiting already", hint="try again later")
        self._taking_in[order.owner] += 1
        try:
            await self._on_disk(self._files.check_room)
            for field, url in (("webhook_url", order.webhook_url), ("upload_url", order.upload_url)):
                if url is not None:
                    await check_target(url, field=field, allow=self._settings.allowed_targets)
            return await self._take_in(request, sources, order.owner)
        except BaseException:
            self._leave(order)
            raise

    @asynccontextmanager
    async def examine(
        self, request: GenerationRequest, sources: Sources, owner: str
    ) -> AsyncIterator[GenerationRequest]:
        """Check a request as :meth:`admit` does, but keep nothing of it. It counts as looked at within the context.

        Yields:
            It, as its media settle it.

        Raises:
            LTX2Error: it would be refused, or too many are examined already.
        """
        if self._examining.total() >= AT_ONCE and self._examining[owner] >= AT_ONCE // max(1, len(self._settings.keys)):
            raise QueueFull(f"{self._examining.total()} requests are being looked at already", hint="try again later")
        self._examining[owner] += 1
        try:
            request, _, _ = await self._take_in(request, sources, owner)
            yield request
        finally:
            self._examining[owner] -= 1
            if not self._examining[owner]:
                del self._examining[owner]

    async def _take_in(
        self, request: GenerationRequest, sources: Sources, owner: str
    ) -> tuple[GenerationRequest, Sources, dict[str, bytes]]:
        read = partial(self._files.read, owner=owner)
        async with self._places:
            sources = await self._on_disk(self._with_clip, request.video, sources, owner)
            request, media = await take_in(request, sources, self._settings, self._intake, read)
            return request, sources, media

    async def keep(
        self,
        request: GenerationRequest,
        sources: Sources,
        media: dict[str, bytes],
        order: Order,
        mark: str,
        announce: Callable[[Job], None],
    ) -> tuple[Job, bool]:
        """Write an admitted request down. It may not be interrupted: its files and its job are kept both, or neither.

        Args:
            request: checked.
            sources: of its media; those that are files of the owner's already are not kept again.
            media: their bytes.
            order: who asks.
            mark: the request's fingerprint.
            announce: told of the job the moment before it is written down, since others may find it from then on.

        Returns:
            The job and True; or, and False, the one that was made with the same idempotency key in the meantime.
        """
        seed = secrets.randbits(SEED_BITS) if request.seed is None else request.seed
        inputs = {name: file_id for name in media if (file_id := file_id_of(sources[name])) is not None}
        made: list[FileRecord] = []
        is_new = False
        try:
            for name in media.keys() - inputs.keys():
                add = partial(self._files.add, media[name], owner=order.owner, filename=None, meta={"input": name})
                made.append(await self._on_disk(add))
                inputs[name] = made[-1].id
            request = request.model_copy(update={"seed": seed})
            job = Job(new_id("job"), order, request, inputs, "queued", created_at=time.time())
            announce(job)
            added = await self._on_disk(self._store.add, job, mark)
            is_new = added.id == job.id
            return added, is_new
        finally:
            self._leave(order)  # in the same moment it is counted among the jobs that wait
            if not is_new:
                for file in made:
                    await self._on_disk(self._files.delete, file.id, order.owner)

    async def keep_media(self, field: str, source: Source, owner: str, types: Container[str]) -> FileRecord:
        """Keep what one source has as a file, to be named in requests.

        Args:
            field: it was sent in.
            source: of the bytes.
            owner: whose file it becomes.
            types: media types it may have, by its content.

        Raises:
            LTX2Error: it cannot be had, is of another type, or there is no room; nothing is kept.
        """
        await self._on_disk(self._files.check_room)
        async with self._places:
            data = await take(field, source, self._settings, self._intake)
            found = content_type(data)
            if found not in types:
                raise UnsupportedMedia(f"{found} is not what can be used here", field=field)
            return await self._on_disk(partial(self._files.add, data, owner=owner, filename=None))

    def _with_clip(self, video: str | None, sources: Sources, owner: str) -> Sources:
        """The sources, with the file of its clip in place of the job that made a video.

        Raises:
            InvalidRequest: there is no such job, or it has no clip.
        """
        job_id = None if video is None else job_id_of(sources[video])
        if video is None or job_id is None:
            return sources
        try:
            job = self._store.get(job_id, owner)
        except NotFound as error:
            raise UnknownFile(error.message, field=video, hint=error.hint) from None
        if job.file_id is None:
            hint = "make another one" if job.is_over else "wait until it has succeeded"
            raise InvalidRequest(f"this job is {job.state} and has no clip", field=video, hint=hint)
        return {**sources, video: job.file_id}

    def _leave(self, order: Order) -> None:
        self._taking_in[order.owner] -= 1
        if not self._taking_in[order.owner]:
            del self._taking_in[order.owner]

    async def _on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)
