"""Jobs as they are written down. Every change of state is guarded by the state it leaves: a terminal one never is."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, insert, or_, select, true, update
from sqlalchemy.exc import IntegrityError

from ltx2.engine import ClipFacts, Progress
from ltx2.errors import Failure, Internal, InvalidRequest, NotFound
from ltx2.request import GenerationRequest
from ltx2.studio.database import ANY_REQUEST, Database, deliveries, jobs
from ltx2.studio.files import FileRecord, insert_file
from ltx2.studio.job import MOST_TRIES, TERMINAL, Job, Order, State, new_id

log = logging.getLogger(__name__)

_FACTS = TypeAdapter(ClipFacts)
_ORDER = tuple(field.name for field in fields(Order))
_ASKED = ("dialect", "webhook_url", "upload_url", "run_seconds", "ttl_seconds", "clip_seconds")
"""What of an order makes another request of the same clip."""
_AGAIN: Mapping[str, Any] = {"state": "queued", "phase": "queued", "step": 0, "steps": 0}
"""What is written of a job that goes back to the queue."""
UNREADABLE = Failure("internal", "another version of this server has written a request that this one cannot read")
CRASHED = Failure(
    "worker_crashed",
    f"the server, or the process that holds the model, ended while this job ran, {MOST_TRIES} times",
    hint="the server's log says how; a smaller picture or fewer frames need less memory",
)


def fingerprint(request: GenerationRequest, sources: Mapping[str, str | bytes], order: Order) -> str:
    """A hash of all that a caller asked for, to know the same request when it is sent again.

    What is as it would be anyway does not count, so that versions with more fields find the same.
    """
    around = {name: value for name in _ASKED if (value := getattr(order, name)) is not None}
    media = {
        name: hashlib.sha256(source.encode(errors="surrogatepass") if isinstance(source, str) else source).hexdigest()
        for name, source in sources.items()
    }
    asked = {"request": request.model_dump(mode="json", exclude_defaults=True), "order": around, "media": media}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Store:
    """Reads and writes jobs. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: Job, mark: str) -> Job:
        """Write a new job down.

        Args:
            job: queued.
            mark: its :func:`fingerprint`.

        Returns:
            It; or the job that was made with the same idempotency key before.

        Raises:
            InvalidRequest: that was another request.
        """
        order = job.order
        row = asdict(order) | {
            "id": job.id,
            "fingerprint": mark,
            "request": job.request.model_dump_json(),
            "inputs": dict(job.inputs),
            "state": job.state,
            "created_at": job.created_at,
            "tries": 0,
            "cancel_requested": False,
            "phase": "queued",
            "step": 0,
            "steps": 0,
            "file_size": 0,
            "fake": False,
            "hidden": False,
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(jobs), row)
        except IntegrityError:
            earlier = self.earlier(order, mark)
            if earlier is None:
                raise
            return earlier
        return job

    def earlier(self, order: Order, mark: str) -> Job | None:
        """The job that was made with the same idempotency key before.

        Raises:
            InvalidRequest: that was another request.
        """
        if order.idempotency_key is None:
            return None
        same = (jobs.c.owner == order.owner) & (jobs.c.idempotency_key == order.idempotency_key)
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(same)).one_or_none()
        if row is None:
            return None
        if row.fingerprint not in (mark, ANY_REQUEST):
            raise InvalidRequest(
                "this key was used for another request",
                field="Idempotency-Key",
                hint="use a new key for each request, and the same only to send one again",
            )
        return job_of(row)

    def get(self, job_id: str, owner: str) -> Job:
        """Raises NotFound: there is none, or it is somebody else's."""
        mine = (jobs.c.id == job_id) & (jobs.c.owner == owner) & jobs.c.hidden.is_(False)
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(mine)).one_or_none()
        if row is None:
            raise NotFound("there is no such job", hint="ended jobs are forgotten after LTX2_JOBS_HOURS")
        return job_of(row)

    def get_any(self, job_id: str) -> Job:
        """A job that is known to be there, whosever it is."""
        with self._database.read() as connection:
            return job_of(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())

    def batch(self, owner: str, name: str) -> list[Job]:
        """The jobs of an owner that go by this name in their dialect, the oldest first."""
        mine = (jobs.c.owner == owner) & (jobs.c.batch == name) & jobs.c.hidden.is_(False)
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(mine).order_by(jobs.c.created_at, jobs.c.id))
            return [job for row in rows if (job := _readable(row)) is not None]

    def newest(self, owner: str, limit: int, after: str | None = None, *, oldest: bool = False) -> list[Job]:
        """The newest jobs of an owner, the newest first; or the next ones after one of them.

        Args:
            owner: whose.
            limit: how many at most.
            after: id of the job before the first one.
            oldest: the oldest, the oldest first, instead.

        Raises:
            NotFound: there is no such job to go on after.
        """
        mine = (jobs.c.owner == owner) & jobs.c.hidden.is_(False)
        if after is not None:
            try:
                last = self.get(after, owner)
            except NotFound:
                raise NotFound("there is no such job to go on after", field="after") from None
            at, name = jobs.c.created_at, jobs.c.id
            beyond = at > last.created_at if oldest else at < last.created_at
            beside = name < last.id if oldest else name > last.id
            mine &= beyond | ((at == last.created_at) & beside)
        order = (jobs.c.created_at, jobs.c.id.desc()) if oldest else (jobs.c.created_at.desc(), jobs.c.id)
        first = select(jobs).where(mine).order_by(*order).limit(limit)
        with self._database.read() as connection:
            return [job for row in connection.execute(first) if (job := _readable(row)) is not None]

    def begin(self, job_id: str, now: float, *, fake: bool = False) -> Job | None:
        """queued → running, one try more. None when it is not queued any more."""
        values = {"state": "running", "started_at": now, "tries": jobs.c.tries + 1, "fake": fake}
        with self._database.write() as connection:
            if not _move(connection, job_id, ("queued",), values):
                return None
            return job_of(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())

    def note(self, job_id: str, progress: Progress) -> None:
        """Write down how far a running job is."""
        with self._database.write() as connection:
            _move(connection, job_id, ("running",), asdict(progress))

    def requeue(self, job_id: str, *, try_counts: bool) -> bool:
        """running → queued, unless it was cancelled meanwhile."""
        values = _AGAIN if try_counts else {**_AGAIN, "tries": jobs.c.tries - 1}
        with self._database.write() as connection:
            return _move(connection, job_id, ("running",), values, jobs.c.cancel_requested.is_(False))

    def succeed(self, job_id: str, result: ClipFacts, file: FileRecord, now: float) -> bool:
        """running → succeeded, together with the record of its file. False when it is not running, or forgotten."""
        values = {
            "state": "succeeded",
            "finished_at": now,
            "result": _FACTS.dump_json(result).decode(),
            "file_id": file.id,
            "file_size": file.size,
            **asdict(Progress("muxing")),
        }
        with self._database.write() as connection:
            if _end(connection, job_id, ("running",), values, jobs.c.hidden.is_(False)):
                insert_file(connection, file)
                return True
            # written before, when only the answer of the database was lost?
            ours = (jobs.c.id == job_id) & (jobs.c.state == "succeeded") & (jobs.c.file_id == file.id)
            return connection.execute(select(jobs.c.id).where(ours)).one_or_none() is not None

    def fail(self, job_id: str, failure: Failure, now: float) -> bool:
        """running → failed. False when it is not running any more."""
        values = {"state": "failed", "finished_at": now, "failure": asdict(failure)}
        with self._database.write() as connection:
            return _end(connection, job_id, ("running",), values)

    def give_up(self, job_id: str, failure: Failure, now: float) -> bool:
        """queued or running → failed. False when it is over."""
        values = {"state": "failed", "finished_at": now, "failure": asdict(failure)}
        with self._database.write() as connection:
            return _end(connection, job_id, ("queued", "running"), values)

    def cancelled(self, job_id: str, now: float) -> bool:
        """running → canceled, when its generation has stopped."""
        with self._database.write() as connection:
            return _end(connection, job_id, ("running",), {"state": "canceled", "finished_at": now})

    def cancel(self, job_id: str, owner: str, now: float) -> Job:
        """queued → canceled; of a running one, write down that it is to stop. Of an ended one, nothing.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self._database.write() as connection:
            mine = jobs.c.owner == owner
            if not _end(connection, job_id, ("queued",), {"state": "canceled", "finished_at": now}, mine):
                _move(connection, job_id, ("running",), {"cancel_requested": True}, mine)
        return self.get(job_id, owner)

    def forget(self, job_id: str, owner: str) -> Job:
        """Show a job to nobody any more, tell nobody of it, and let its idempotency key be used again. Returns it."""
        mine = (jobs.c.id == job_id) & (jobs.c.owner == owner)
        hidden = {"hidden": True, "idempotency_key": None, "webhook_url": None, "upload_url": None}
        waiting = (deliveries.c.job_id == job_id) & (deliveries.c.state == "waiting")
        with self._database.write() as connection:
            row = connection.execute(update(jobs).where(mine).values(hidden).returning(jobs)).one_or_none()
            if row is None:
                raise NotFound("there is no such job")
            connection.execute(delete(deliveries).where(waiting))
            return job_of(row)

    def recover(self, now: float) -> list[Job]:
        """Take up what a server before this one left: all queued jobs, the oldest first.

        What was running is tried once more, or has failed; what was to stop has stopped.
        """
        running = jobs.c.state == "running"
        with self._database.write() as connection:
            left = connection.execute(select(jobs.c.id, jobs.c.cancel_requested, jobs.c.tries).where(running)).all()
            for row in left:
                if row.cancel_requested:
                    _end(connection, row.id, ("running",), {"state": "canceled", "finished_at": now})
                elif row.tries >= MOST_TRIES:
                    values = {"state": "failed", "finished_at": now, "failure": asdict(CRASHED)}
                    _end(connection, row.id, ("running",), values)
                else:
                    _move(connection, row.id, ("running",), _AGAIN)
            queued = select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.created_at)
            found = {row.id: _readable(row) for row in connection.execute(queued).all()}
            for job_id in (job_id for job_id, job in found.items() if job is None):
                values = {"state": "failed", "finished_at": now, "failure": asdict(UNREADABLE)}
                _end(connection, job_id, ("queued",), values)
            return [job for job in found.values() if job is not None]

    def sweep(self, before: float) -> int:
        """Remove jobs that ended earlier than that or were forgotten, once they are delivered. Returns how many."""
        waiting = select(deliveries.c.job_id).where(deliveries.c.state == "waiting")
        forgotten = or_(jobs.c.finished_at < before, jobs.c.hidden.is_(True))
        old = jobs.c.state.in_(TERMINAL) & forgotten & jobs.c.id.not_in(waiting)
        with self._database.write() as connection:
            gone = connection.execute(delete(jobs).where(old)).rowcount
            orphans = deliveries.c.job_id.not_in(select(jobs.c.id))
            connection.execute(delete(deliveries).where(orphans))
            return gone

    def count(self, owner: str | None = None) -> dict[str, int]:
        """How many jobs there are in each state, of all owners or of one."""
        mine = true() if owner is None else (jobs.c.owner == owner) & jobs.c.hidden.is_(False)
        each = select(jobs.c.state, func.count().label("number")).where(mine).group_by(jobs.c.state)
        with self._database.read() as connection:
            return {row.state: row.number for row in connection.execute(each)}


def _move(
    connection: Connection, job_id: str, leaving: Iterable[State], values: Mapping[str, Any], *conditions: Any
) -> bool:
    """The one place where a job's row changes: only while it is in one of these states."""
    guarded = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(leaving), *conditions).values(dict(values))
    return connection.execute(guarded).rowcount == 1


def _end(
    connection: Connection, job_id: str, leaving: Iterable[State], values: Mapping[str, Any], *conditions: Any
) -> bool:
    """Bring a job to a terminal state, and what is to be delivered on its way, in one transaction."""
    if not _move(connection, job_id, leaving, values, *conditions):
        return False
    urls = connection.execute(select(jobs.c.webhook_url, jobs.c.upload_url).where(jobs.c.id == job_id)).one()
    wanted = {"webhook": urls.webhook_url, "upload": urls.upload_url if values["state"] == "succeeded" else None}
    for kind, url in wanted.items():
        if url is not None:
            row = {"id": new_id("msg"), "job_id": job_id, "kind": kind, "url": url}
            connection.execute(insert(deliveries), row | {"state": "waiting", "tries": 0, "next_at": 0.0})
    # such URLs are often secrets: each is kept in one place, for as long as it is needed
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(webhook_url=None, upload_url=None))
    return True


def _readable(row: Row[Any]) -> Job | None:
    """The job of a row; None where another version of this program wrote what this one cannot read."""
    try:
        return job_of(row)
    except Internal:
        log.warning("job=%s was written by another version of this server and cannot be read", row.id)
        return None


def job_of(row: Row[Any]) -> Job:
    """The job that a row of the table stands for.

    Raises:
        Internal: another version of this program wrote what this one cannot read.
    """
    try:
        return _job(row)
    except (ValueError, TypeError):
        raise UNREADABLE.error from None  # their words may be the caller's


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        order=Order(**{name: getattr(row, name) for name in _ORDER}),
        request=GenerationRequest.model_validate_json(row.request),
        inputs=row.inputs,
        state=row.state,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        tries=row.tries,
        cancel_requested=row.cancel_requested,
        progress=Progress(row.phase, row.step, row.steps),
        result=_FACTS.validate_json(row.result) if row.result else None,
        file_id=row.file_id,
        file_size=row.file_size,
        fake=row.fake,
        failure=Failure(**row.failure) if row.failure else None,
    )
