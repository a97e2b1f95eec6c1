"""What goes out when a job has ended: signed webhooks, and clips to where the caller wants them.

Each delivery is a row that survives restarts and keeps its id, so that a receiver can tell a repetition.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Row, select, update
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from ltx2.errors import LTX2Error, NotFound
from ltx2.media.fetch import Unreachable, send
from ltx2.payload import view
from ltx2.settings import Settings
from ltx2.studio.database import Database, deliveries, jobs
from ltx2.studio.files import Files
from ltx2.studio.job import Job
from ltx2.studio.store import job_of

log = logging.getLogger(__name__)

MOST_TRIES = 8
"""With the default first wait of 5 seconds, the last try is eight hours after the first."""
GROWTH = 4
WEBHOOK_SECONDS = 20.0
UPLOAD_SECONDS = 600.0
AT_ONCE = 32
PER_HOST = 4
"""At the same time: a receiver that takes its time must not hold up the others."""
LOOKED_AT = 500
LONGEST_PAUSE = 60.0
NEVER_AGAIN = 410
"""The status by which a receiver says that it is gone for good."""


def event(job: Job) -> dict[str, Any]:
    """What a webhook says of a job that is over. No media, no secrets, and nothing that anybody wrote."""
    data: dict[str, Any] = {"id": job.id, "status": job.state, "created_at": job.created_at}
    if job.result is not None:
        result = {name: value for name, value in view(job.request, job.result).items() if name != "prompt"}
        data |= {"file_id": job.file_id, "video_bytes": job.file_size, "result": result}
    if job.failure is not None:
        failure = job.failure
        data["error"] = {
            "code": failure.code,
            "message": failure.message,
            "field": failure.field,
            "hint": failure.hint,
        }
    ended = datetime.fromtimestamp(job.finished_at or job.created_at, UTC)
    return {"type": f"job.{job.state}", "timestamp": ended.isoformat(), "data": data}


Announce = Callable[[Job], Awaitable[Mapping[str, Any]]]
"""What a webhook says of a job that is over, in the words of the dialect it came in by."""


def _host(delivery: Row[Any]) -> str:
    return str(urlsplit(delivery.url).netloc)


class Outbox:
    """Delivers what jobs have left to be delivered. Belongs to the event loop.

    Args:
        settings: limits.
        secret: what webhooks are signed with, ``whsec_…``.
        database: where deliveries are written down.
        files: where clips are.
    """

    def __init__(self, settings: Settings, secret: str, database: Database, files: Files) -> None:
        self._settings = settings
        self._database = database
        self._files = files
        self._signer = Webhook(secret)
        self._wake = asyncio.Event()
        self._trying: dict[str, asyncio.Task[None]] = {}
        self._hosts: dict[str, str] = {}
        self.events: dict[str, Announce] = {}
        """By dialect; :func:`event` where there is none."""

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def deliver(self) -> None:
        """Deliver for ever."""
        try:
            while True:
                await self._begin_what_is_due()
        finally:
            for task in self._trying.values():
                task.cancel()
            await asyncio.gather(*self._trying.values(), return_exceptions=True)

    async def _begin_what_is_due(self) -> None:
        """Each delivery is a task of its own."""
        self._wake.clear()
        try:
            due, pause = await asyncio.to_thread(self._due, dict(self._hosts))
        except (LTX2Error, SQLAlchemyError) as error:
            log.warning("deliveries wait for the database (%s)", type(error).__name__)
            due, pause = [], self._settings.webhook_retry_seconds
        for row in due:
            self._hosts[row.id] = _host(row)
            task = self._trying[row.id] = asyncio.create_task(self._try(row))
            task.add_done_callback(partial(self._tried, row.id))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()

    def _tried(self, delivery_id: str, _task: asyncio.Task[None]) -> None:
        del self._trying[delivery_id], self._hosts[delivery_id]
        self.wake()

    def _due(self, hosts: dict[str, str]) -> tuple[list[Row[Any]], float | None]:
        """What is to be delivered now; and in how many seconds to look again, if nothing wakes us before.

        Args:
            hosts: of what is being delivered already, by its id.
        """
        now = time.time()
        others = (deliveries.c.state == "waiting") & deliveries.c.id.not_in(list(hosts))
        first = select(deliveries).where(others).order_by(deliveries.c.next_at).limit(LOOKED_AT)
        with self._database.read() as connection:
            rows = list(connection.execute(first))
        busy = Counter(hosts.values())
        due: list[Row[Any]] = []
        for row in rows:
            if row.next_at > now:
                # the clock may be set meanwhile
                return due, min(row.next_at - now, LONGEST_PAUSE)
            if busy[_host(row)] < PER_HOST and busy.total() < AT_ONCE:
                busy[_host(row)] += 1
                due.append(row)
        return due, None

    async def _try(self, delivery: Row[Any]) -> None:
        try:
            job = await asyncio.to_thread(self._job, delivery.job_id)
            deliver = self._webhook if delivery.kind == "webhook" else self._upload
            status = await deliver(delivery, job)
            outcome, is_done, is_hopeless = str(status), 200 <= status < 300, status == NEVER_AGAIN
        except NotFound:
            outcome, is_done, is_hopeless = "nothing left to deliver", False, True
        except (Unreachable, LTX2Error) as error:
            outcome, is_done, is_hopeless = str(error), False, False
        except Exception as error:  # noqa: BLE001 - one that nobody foresaw ends no others, and may quote the job
            outcome, is_done, is_hopeless = type(error).__name__, False, False
        tries = delivery.tries + 1
        values: dict[str, Any] = {"tries": tries}
        if is_done or is_hopeless or tries >= MOST_TRIES:
            values |= {"state": "done" if is_done else "failed", "url": None}
        else:
            values["next_at"] = time.time() + self._settings.webhook_retry_seconds * GROWTH ** (tries - 1)
        level = logging.INFO if is_done else logging.WARNING
        what = (delivery.kind, delivery.id, delivery.job_id, tries, outcome)
        log.log(level, "%s id=%s job=%s try=%d: %s", *what)
        try:
            await asyncio.to_thread(self._update, delivery.id, values)
        except (LTX2Error, SQLAlchemyError) as error:
            log.warning("delivery %s will be repeated (%s)", delivery.id, type(error).__name__)
            await asyncio.sleep(self._settings.webhook_retry_seconds)

    def _job(self, job_id: str) -> Job:
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound("there is no such job")
        return job_of(row)

    def _update(self, delivery_id: str, values: dict[str, Any]) -> None:
        with self._database.write() as connection:
            connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(values))

    async def _webhook(self, delivery: Row[Any], job: Job) -> int:
        told = self.events.get(job.order.dialect)
        says = event(job) if told is None else await told(job)
        # one with a clip inside takes half a second
        body, headers = await asyncio.to_thread(self._signed, delivery.id, says)
        allow = self._settings.allowed_targets
        return await send("POST", delivery.url, body, headers, allow=allow, seconds=WEBHOOK_SECONDS)

    def _signed(self, delivery_id: str, says: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
        body = json.dumps(says, allow_nan=False)
        now = datetime.now(UTC)
        return body.encode(), {
            "Content-Type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(delivery_id, now, body),
        }

    async def _upload(self, delivery: Row[Any], job: Job) -> int:
        if job.file_id is None:
            raise NotFound("there is no file")
        with ExitStack() as stack:
            # a remote store downloads the file first
            local = self._files.local(job.file_id, job.order.owner)
            record, path = await asyncio.to_thread(stack.enter_context, local)
            headers = {"Content-Type": record.content_type}
            allow = self._settings.allowed_targets
            return await send("PUT", delivery.url, path, headers, allow=allow, seconds=UPLOAD_SECONDS)
