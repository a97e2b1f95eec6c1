"""What is done for the tasks of the Runware dialect, wherever they came in."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4
from weakref import WeakValueDictionary

from pydantic import ValidationError
from starlette.requests import HTTPConnection

from ltx2.dialects.callers import order_of, owner_of
from ltx2.dialects.links import file_url, output_url
from ltx2.dialects.runware_answers import Item, Refused, ack, failure, refusal, said, view, wrong
from ltx2.dialects.runware_bodies import (
    NAME,
    TASKS,
    Authentication,
    Camel,
    GetResponse,
    ImageUpload,
    MediaStorage,
    Ping,
    VideoInference,
    canonical,
    is_uuid,
    own_id_of,
    uuid_of,
)
from ltx2.dialects.runware_request import VIDEO, check_model, to_request
from ltx2.errors import InvalidRequest, LTX2Error, NotFound, TimedOut, Unauthorized, UnknownFile
from ltx2.payload import Source
from ltx2.studio.job import Job
from ltx2.studio.studio import Studio

MOST_TASKS: Final = 100
"""In one array."""
SEEDS: Final = 2**63
IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/webp"})
MEDIA: Final = IMAGES | {"audio/wav", "audio/flac", "audio/ogg", "audio/mpeg", "audio/aac", "video/mp4"}
"""What may be kept. A sound may come in a video."""


@dataclass
class Done:
    """What became of an array of tasks."""

    data: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    wrong: LTX2Error | None = None
    """What is wrong with the first task that was not done. A clip that failed is an error too, but was asked for."""
    waiting: list[tuple[list[Job], str]] = field(default_factory=list)
    """The clips of each task that is answered with them, and its UUID."""

    def refuse(self, entry: dict[str, Any], error: LTX2Error | None = None) -> None:
        """Tell that something was not done, for an error where that is the task's own."""
        self.errors.append(entry)
        self.wrong = self.wrong or error

    @property
    def body(self) -> dict[str, Any]:
        """As it is answered."""
        given = {"data": self.data, "errors": self.errors}
        return {name: entries for name, entries in given.items() if entries} or {"data": []}


class Desk:
    """Does tasks. Belongs to the event loop."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._making: set[asyncio.Task[list[Job]]] = set()

    async def work(self, tasks: object, connection: HTTPConnection) -> Done:
        """Do what an array asks for, one task after the other. What is wrong with one does not stop the others.

        Args:
            tasks: as they were sent, whatever that is.
            connection: they came by. An authentication among them says whose it is from then on.

        Raises:
            Refused: it is no array of tasks.
        """
        if not isinstance(tasks, list) or not tasks:
            raise Refused("invalidRequestBody", "must be an array of tasks, also where there is only one")
        if len(tasks) > MOST_TASKS:
            raise Refused("maxTasksExceeded", f"{len(tasks)} tasks are more than the {MOST_TASKS} of one array")
        done = Done()
        for task in tasks:
            try:
                await self._do(task, connection, done)
            except LTX2Error as error:
                done.refuse(refusal(error, task), error)
        return done

    async def _do(self, task: object, connection: HTTPConnection, done: Done) -> None:
        body = _checked(task, connection)
        match body:
            case VideoInference():
                await self._make(body, connection, done)
            case GetResponse():
                await self._look(body, connection, done)
            case ImageUpload():
                record = await self._studio.keep_media("image", body.image, owner_of(connection), IMAGES)
                url = file_url(record.id, self._studio, str(connection.base_url))
                done.data.append(ack(body, image_uuid=uuid_of(record.id), image_url=url))
            case MediaStorage():
                done.data.append(await self._store(body, connection))
            case Authentication():
                done.data.append(self._authenticate(body, connection))
            case _:
                done.data.append(said(Item(task_type="ping", pong=True)))

    def _authenticate(self, body: Authentication, connection: HTTPConnection) -> dict[str, Any]:
        try:
            connection.scope["state"]["owner"] = self._studio.keys.owner(body.api_key)
        except Unauthorized as error:
            raise Unauthorized(error.message, field="apiKey") from None
        given = body.connection_session_uuid or ""
        session = given if is_uuid(given) else str(uuid4())
        return said(Item(task_type="authentication", connection_session_uuid=session))

    async def _make(self, body: VideoInference, connection: HTTPConnection, done: Done) -> None:
        owner, name = owner_of(connection), canonical(body.task_uuid)
        lock = self._locks.setdefault((owner, name), asyncio.Lock())
        # who leaves in the middle of it has ordered all clips or none
        making = asyncio.create_task(self._make_all(body, name, connection, lock))
        self._making.add(making)
        making.add_done_callback(self._made)
        jobs = await asyncio.shield(making)
        if body.delivery_method == "sync":
            done.waiting.append((jobs, body.task_uuid))
        else:
            done.data.append(ack(body))

    def _made(self, making: asyncio.Task[list[Job]]) -> None:
        self._making.discard(making)
        if not making.cancelled():
            making.exception()  # it was told, unless who asked has left

    async def _make_all(
        self, body: VideoInference, name: str, connection: HTTPConnection, lock: asyncio.Lock
    ) -> list[Job]:
        """Order every clip of a task, or none. The same task again is the same clips."""
        check_model(body, self._studio.settings)
        request, sources = to_request(body, self._studio.settings)
        if request.video is not None:
            sources = {**sources, VIDEO: await self._clip(body, sources[VIDEO], owner_of(connection))}
        notes = {"taskUUID": body.task_uuid, "numberResults": body.number_results, "includeCost": body.include_cost}
        order = order_of(
            connection,
            NAME,
            batch=name,
            notes=notes,
            webhook_url=body.webhook_url,
            upload_url=body.upload_endpoint,
            clip_seconds=body.ttl,
        )
        owner, jobs = order.owner, list[Job]()
        async with lock:
            earlier = await self._batch(owner, name)
            if earlier and earlier[0].order.notes.get("numberResults") != body.number_results:
                raise _conflict()
            # of one task all share the files of the first
            shared = earlier[0].inputs if earlier else {}
            try:
                for number in range(body.number_results):
                    seed = None if request.seed is None else (request.seed + number) % SEEDS
                    named = replace(order, idempotency_key=f"{NAME}:{name}:{number}")
                    given = {**sources, **shared} if number else sources
                    jobs.append(await self._studio.submit(request.model_copy(update={"seed": seed}), given, named))
                    shared = shared or jobs[0].inputs
            except LTX2Error as error:
                known = {job.id for job in earlier}
                for job in jobs:
                    if job.id not in known:
                        await self._studio.forget(job.id, owner)
                if error.field == "Idempotency-Key":
                    raise _conflict() from None
                raise
        return jobs

    async def _clip(self, body: VideoInference, source: Source, owner: str) -> Source:
        """A video, where it is one of ours by the job that made it: its UUID may be that of an upload as well."""
        if body.video is not None and is_uuid(body.video):
            with suppress(NotFound):
                return (await self._studio.job(own_id_of("job", body.video), owner)).id
        return source

    async def _batch(self, owner: str, name: str) -> list[Job]:
        return [job for job in await self._studio.batch(owner, name) if job.order.dialect == NAME]

    async def _look(self, body: GetResponse, connection: HTTPConnection, done: Done) -> None:
        owner = owner_of(connection)
        jobs = await self._batch(owner, canonical(body.task_uuid))
        if not jobs:
            try:
                jobs = [await self._studio.job(own_id_of("job", body.task_uuid), owner)]
            except NotFound as error:
                raise NotFound("there is no such task", field="taskUUID", hint=error.hint) from None
        # The library that says its name so adds up what each of its polls calls a success, and would take the first
        # clip for the others too. Remove once runware (0.5.24) knows a result by its UUID.
        adds_up = "x-sdk-name" in connection.headers and not all(job.is_over for job in jobs)
        for job in jobs:
            self._tell(job, body.task_uuid, connection, done, is_held=adds_up)

    def _tell(self, job: Job, task_uuid: str, connection: HTTPConnection, done: Done, *, is_held: bool = False) -> None:
        if job.state in ("failed", "canceled"):
            done.refuse(failure(job, task_uuid))
        else:
            url = output_url(job, self._studio, str(connection.base_url))
            price = self._studio.settings.price_per_second
            done.data.append(view(job, task_uuid, url, price, is_held=is_held))

    async def wait(self, jobs: Iterable[Job], task_uuid: str, connection: HTTPConnection, done: Done) -> None:
        """Wait for all clips of a task on behalf of a caller who waits, and tell of them."""
        for job in jobs:
            await self._wait(job, task_uuid, connection, done)

    async def _wait(self, job: Job, task_uuid: str, connection: HTTPConnection, done: Done) -> None:
        try:
            with suppress(LTX2Error):
                await self._studio.result(job)
            job = await self._studio.job(job.id, job.order.owner)
            if not job.is_over:
                hint = "it is still being made: ask for it with getResponse"
                raise TimedOut("the clip is not finished, and nobody waits for it any longer", hint=hint)
        except LTX2Error as error:
            task = {"taskType": "videoInference", "taskUUID": task_uuid}
            done.refuse(refusal(error, task, video_uuid=uuid_of(job.id)), error)
        else:
            self._tell(job, task_uuid, connection, done)

    async def told(self, job: Job) -> Mapping[str, Any]:
        """What a webhook says of a job that is over."""
        done = Done()
        price, uuid = self._studio.settings.price_per_second, str(job.order.notes.get("taskUUID", job.order.batch))
        if job.state == "succeeded":
            done.data.append(view(job, uuid, output_url(job, self._studio), price))
        else:
            done.refuse(failure(job, uuid))
        return done.body

    async def _store(self, body: MediaStorage, connection: HTTPConnection) -> dict[str, Any]:
        owner, named = owner_of(connection), body.media_uuid or body.media
        if named is None:
            raise Refused("missingParameter", "Field required", field="media")
        if body.operation == "upload":
            record = await self._studio.keep_media("media", named, owner, MEDIA)
            url = file_url(record.id, self._studio, str(connection.base_url))
            return ack(body, operation="upload", media_uuid=uuid_of(record.id), media_url=url)
        if not is_uuid(named):
            raise InvalidRequest("must be the UUID of an upload", field="media")
        try:
            await self._studio.on_disk(self._studio.files.delete, own_id_of("file", named), owner)
        except NotFound as error:
            raise UnknownFile(error.message, field="media") from None
        return ack(body, operation="delete", media_uuid=named)


def _checked(task: object, connection: HTTPConnection) -> Camel:
    if not isinstance(task, dict):
        raise Refused("invalidTask", "must be an object")
    kind = task.get("taskType")
    if kind is None:
        raise Refused("missingParameter", "Field required", field="taskType")
    known = TASKS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise Refused("unsupportedTaskType", "known here are " + ", ".join(TASKS), field="taskType")
    if known not in (Authentication, Ping):
        owner_of(connection)  # what a stranger's task has is nobody's business
    try:
        return known.model_validate(task)
    except ValidationError as error:
        raise wrong(error, task) from None


def _conflict() -> Refused:
    return Refused("conflictTaskUUID", "this taskUUID was used for another task", field="taskUUID")
