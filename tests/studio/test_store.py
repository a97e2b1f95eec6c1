"""Jobs in a real database: what may become of each, and that nothing is lost, doubled or overwritten."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import inspect, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ltx2.engine import ClipFacts, Progress
from ltx2.errors import Failure, InvalidRequest, NotFound, NotReady, OutOfMemory
from ltx2.quality import QualityReport
from ltx2.request import AudioTrack, GenerationRequest, Guidance, Keyframe, Output
from ltx2.settings import Settings
from ltx2.studio.database import Database, deliveries, facts, files, jobs, lock_places
from ltx2.studio.files import FileRecord
from ltx2.studio.job import Job, Order, new_id
from ltx2.studio.store import Store, fingerprint

ROOT = Path(__file__).parent.parent.parent
REQUEST = GenerationRequest(prompt="x", width=64, height=64, num_frames=2, seed=1)
FACTS = ClipFacts(
    width=64,
    height=64,
    num_frames=2,
    fps=Fraction(24000, 1001),
    audio_sample_rate=48_000,
    seed=2**63 - 1,
    steps=8,
    stages=2,
    model="tiny",
    warnings=("Ünïcode ✓", "two"),
    seconds={"denoising": 0.1, "muxing": 1 / 3},
    quality=QualityReport(frozen_frames=0.25, loudness_lufs=-70 / 3, silence=0),
    retried_for=("silent", "frozen"),
)
FAILURE = Failure("out_of_memory", "too large", "width", "ask for less")
WEBHOOK, UPLOAD = "https://hooks.example/?token=hook", "https://bucket.example/?token=put"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(Settings(data_dir=tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


def new_job(order: Order | None = None, **values: Any) -> Job:
    given = {"request": REQUEST, "inputs": {}, "state": "queued", "created_at": time.time()} | values
    return Job(id=new_id("job"), order=order or Order("ann"), **given)


def add(store: Store, order: Order | None = None, **values: Any) -> Job:
    job = new_job(order, **values)
    return store.add(job, fingerprint(job.request, {}, job.order))


def clip_file(owner: str = "ann") -> FileRecord:
    return FileRecord(new_id("file"), owner, "clip.mp4", "video/mp4", 1234, time.time(), {})


def succeed(store: Store, job_id: str) -> bool:
    return store.succeed(job_id, FACTS, clip_file(), 3.0)


def rows_of(database: Database, table: Any = deliveries) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(table)))


STATES: dict[str, Callable[[Store, str], Any]] = {
    "queued": lambda *_: None,
    "running": lambda store, job_id: store.begin(job_id, 1.0),
    "stopping": lambda store, job_id: (store.begin(job_id, 1.0), store.cancel(job_id, "ann", 2.0)),
    "succeeded": lambda store, job_id: (store.begin(job_id, 1.0), succeed(store, job_id)),
    "failed": lambda store, job_id: (store.begin(job_id, 1.0), store.fail(job_id, FAILURE, 3.0)),
    "canceled": lambda store, job_id: store.cancel(job_id, "ann", 3.0),
    "stopped": lambda store, job_id: (store.begin(job_id, 1.0), store.cancelled(job_id, 3.0)),
}
"""How a job comes to a state. A job that is stopping is running, and has been cancelled."""
OPERATIONS: dict[str, Callable[[Store, str], Any]] = {
    "begin": lambda store, job_id: store.begin(job_id, 4.0) is not None,
    "note": lambda store, job_id: store.note(job_id, Progress("denoising", 3, 8)),
    "requeue": lambda store, job_id: store.requeue(job_id, try_counts=True),
    "requeue for free": lambda store, job_id: store.requeue(job_id, try_counts=False),
    "succeed": succeed,
    "fail": lambda store, job_id: store.fail(job_id, FAILURE, 4.0),
    "give up": lambda store, job_id: store.give_up(job_id, FAILURE, 4.0),
    "cancelled": lambda store, job_id: store.cancelled(job_id, 4.0),
    "cancel": lambda store, job_id: store.cancel(job_id, "ann", 4.0).state,
}
MOVES = {
    ("queued", "begin"): (True, "running"),
    ("queued", "give up"): (True, "failed"),
    ("queued", "cancel"): ("canceled", "canceled"),
    ("running", "note"): (None, "running"),
    ("running", "requeue"): (True, "queued"),
    ("running", "requeue for free"): (True, "queued"),
    ("running", "succeed"): (True, "succeeded"),
    ("running", "fail"): (True, "failed"),
    ("running", "give up"): (True, "failed"),
    ("running", "cancelled"): (True, "canceled"),
    ("running", "cancel"): ("running", "running"),
    ("stopping", "note"): (None, "running"),
    ("stopping", "succeed"): (True, "succeeded"),
    ("stopping", "fail"): (True, "failed"),
    ("stopping", "give up"): (True, "failed"),
    ("stopping", "cancelled"): (True, "canceled"),
}
"""What each operation answers and leads to; where it is not named it changes nothing, and says so."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_leaves_only_the_states_it_may(database: Database, store: Store, operation: str) -> None:
    for state, reach in STATES.items():
        job = add(store)
        reach(store, job.id)
        before = store.get(job.id, "ann")
        rows, sent = rows_of(database, jobs), rows_of(database)
        answered = OPERATIONS[operation](store, job.id)
        after = store.get(job.id, "ann")
        if (state, operation) in MOVES:
            assert (answered, after.state) == MOVES[state, operation], state
            assert after != before, state
        else:
            assert answered in (None, False, before.state), state
            assert after == before, state
            assert rows_of(database, jobs) == rows, state
            assert rows_of(database) == sent, state


def test_what_each_move_writes_down(store: Store) -> None:
    job = add(store)
    assert store.get(job.id, "ann") == job
    begun = store.begin(job.id, 1.5)
    assert begun == replace(job, state="running", started_at=1.5, tries=1)
    store.note(job.id, Progress("denoising", 3, 8))
    assert store.get(job.id, "ann") == replace(begun, progress=Progress("denoising", 3, 8))
    assert store.requeue(job.id, try_counts=True)
    assert store.get(job.id, "ann") == replace(begun, state="queued")
    assert store.begin(job.id, 2.5) == replace(begun, started_at=2.5, tries=2)
    assert store.requeue(job.id, try_counts=False)
    assert store.get(job.id, "ann").tries == 1
    assert store.begin(job.id, 3.5, fake=True) == replace(begun, started_at=3.5, tries=2, fake=True)
    file = clip_file()
    assert store.succeed(job.id, FACTS, file, 4.5)
    ended = replace(begun, state="succeeded", started_at=3.5, tries=2, finished_at=4.5, result=FACTS)
    written = replace(ended, file_id=file.id, file_size=1234, fake=True, progress=Progress("muxing"))
    assert store.get(job.id, "ann") == written


def test_a_failure_is_written_down_with_all_it_says(store: Store) -> None:
    job = add(store)
    store.begin(job.id, 1.0)
    assert store.fail(job.id, FAILURE, 2.0)
    failed = store.get(job.id, "ann")
    assert failed.failure == FAILURE
    assert failed.finished_at == 2.0
    with pytest.raises(OutOfMemory) as caught:
        raise failed.failure.error
    assert (caught.value.message, caught.value.field, caught.value.hint) == ("too large", "width", "ask for less")


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled", "stopped"])
def test_a_terminal_state_is_never_overwritten(database: Database, store: Store, state: str) -> None:
    job = add(store, Order("ann", webhook_url=WEBHOOK))
    STATES[state](store, job.id)
    before, sent = store.get(job.id, "ann"), rows_of(database)
    for _ in range(2):
        for operation in OPERATIONS.values():
            operation(store, job.id)
        assert store.recover(9.0) == []
    assert store.get(job.id, "ann") == before
    assert before.is_over
    assert rows_of(database) == sent
    assert len(sent) == 1


def test_a_job_that_did_not_succeed_leaves_no_record_of_a_file(database: Database, store: Store) -> None:
    job = add(store)
    store.begin(job.id, 1.0)
    store.cancelled(job.id, 2.0)
    assert not succeed(store, job.id)
    assert rows_of(database, files) == []


def test_everything_of_a_request_comes_back(store: Store) -> None:
    request = GenerationRequest(
        prompt='Ünïcode "quotes" \\ and\nlines ✓ 🎬',
        negative_prompt="",
        width=1280,
        height=704,
        num_frames=121,
        fps=24000 / 1001,
        guidance=Guidance(video_cfg=3.3, audio_cfg=1 / 3, video_stg=0.0, audio_rescale=0.7),
        num_inference_steps=40,
        seed=2**63 - 1,
        keyframes=(
            Keyframe(image="image_start", frame="first", strength=0.1),
            Keyframe(image="keyframes[0].image", frame=60),
            Keyframe(image="image_end", frame="last", strength=1 / 3),
        ),
        audio=AudioTrack(source="audio", strength=0.9, start=1.1),
        include_audio=False,
        pipeline="two_stage",
        output=Output(crf=0),
    )
    names = [keyframe.image for keyframe in request.keyframes] + ["audio"]
    notes = {"asked": {"nested": [1, None, "✓"]}}
    order = Order("ann", "kiapi", -1, "a key", WEBHOOK, UPLOAD, "batch", notes, "https://a/b/", 0.1, 1 / 3, 3600.0)
    assert None not in vars(order).values()  # no field was left out
    job = add(store, order, request=request, inputs={name: new_id("file") for name in names})
    found = store.get(job.id, "ann")
    assert found == job
    assert found.request.model_dump() == request.model_dump()
    assert found.request.exact_fps == Fraction(24000, 1001)


@pytest.mark.parametrize("fps", [1.0, 23.976, 24000 / 1001, 29.97, 30000 / 1001, 59.94, 119.88, 0.1 + 0.2 + 24, 120.0])
def test_a_frame_rate_comes_back_to_the_last_bit(store: Store, fps: float) -> None:
    job = add(store, request=REQUEST.model_copy(update={"fps": fps}))
    assert store.get(job.id, "ann").request.fps == fps


def test_the_same_key_and_request_is_the_same_job(store: Store) -> None:
    order = Order("ann", idempotency_key="k")
    first = add(store, order)
    assert add(store, order) == first
    assert add(store, replace(order, priority=1)).id == first.id
    assert store.earlier(order, fingerprint(REQUEST, {}, order)) == first
    store.begin(first.id, 1.0)
    store.fail(first.id, FAILURE, 2.0)
    assert add(store, order) == store.get(first.id, "ann")
    assert store.count() == {"failed": 1}


def test_the_same_key_and_another_request_is_refused(store: Store) -> None:
    order = Order("ann", idempotency_key="k")
    add(store, order)
    other = REQUEST.model_copy(update={"seed": 2})
    with pytest.raises(InvalidRequest) as caught:
        add(store, order, request=other)
    assert caught.value.field == "Idempotency-Key"
    with pytest.raises(InvalidRequest) as caught:
        store.earlier(order, fingerprint(other, {}, order))
    assert caught.value.field == "Idempotency-Key"
    assert store.count() == {"queued": 1}


def test_a_key_means_something_to_its_owner_only(store: Store) -> None:
    ann, bob = (add(store, Order(owner, idempotency_key="k"), request=REQUEST) for owner in ("ann", "bob"))
    assert ann.id != bob.id
    assert store.earlier(Order("eve", idempotency_key="k"), "") is None
    assert add(store, Order("ann")).id != add(store, Order("ann")).id  # without a key each is new


def test_a_key_is_free_again_when_its_job_is_forgotten(store: Store) -> None:
    order = Order("ann", idempotency_key="k")
    first = add(store, order)
    store.cancel(first.id, "ann", 1.0)
    with pytest.raises(NotFound):
        store.forget(first.id, "bob")
    assert add(store, order).id == first.id
    store.forget(first.id, "ann")
    second = add(store, order, request=REQUEST.model_copy(update={"seed": 2}))
    assert second.id != first.id
    with pytest.raises(NotFound):
        store.get(first.id, "ann")
    with pytest.raises(NotFound):
        store.cancel(first.id, "ann", 2.0)
    assert [job.id for job in store.newest("ann", 9)] == [second.id]


def test_what_is_forgotten_while_it_runs_gets_no_clip(store: Store) -> None:
    job = add(store)
    store.begin(job.id, 1.0)
    assert store.forget(job.id, job.order.owner).state == "running"
    assert not succeed(store, job.id)
    assert store.cancelled(job.id, 2.0)


def test_all_that_was_asked_for_makes_the_mark_of_a_request() -> None:
    order, sources = Order("ann"), {"a": "x", "b": b"y"}
    marks = {
        fingerprint(REQUEST, sources, order),
        fingerprint(REQUEST.model_copy(update={"seed": None}), sources, order),
        fingerprint(REQUEST, {"a": "y", "b": b"x"}, order),
        fingerprint(REQUEST, {"a": "x"}, order),
        fingerprint(REQUEST, {}, order),
        fingerprint(REQUEST, sources, replace(order, dialect="kiapi")),
        fingerprint(REQUEST, sources, replace(order, webhook_url=WEBHOOK)),
        fingerprint(REQUEST, sources, replace(order, upload_url=WEBHOOK)),
        fingerprint(REQUEST, sources, replace(order, run_seconds=7.0)),
        fingerprint(REQUEST, sources, replace(order, ttl_seconds=7.0)),
        fingerprint(REQUEST, sources, replace(order, clip_seconds=7.0)),
    }
    assert len(marks) == 11
    around = {"priority": 1, "idempotency_key": "k", "batch": "b", "notes": {"n": 1}, "base_url": "http://a/"}
    assert fingerprint(REQUEST, {"b": b"y", "a": "x"}, replace(order, **around)) in marks
    assert fingerprint(REQUEST, {"a": "\ud800"}, order) not in marks  # what is no text is still a source


def test_the_mark_of_a_request_outlives_versions_that_know_more_fields() -> None:
    class LaterOutput(Output):
        loudness: float | None = None

    class Later(GenerationRequest):
        output: LaterOutput = LaterOutput()
        style: str = "plain"

    asked = {"prompt": "ä", "seed": 7, "keyframes": (Keyframe(image="a", frame="last"),)}
    mark = fingerprint(GenerationRequest(**asked, output=Output(crf=3)), {"a": b"x"}, Order())
    assert fingerprint(Later(**asked, output=LaterOutput(crf=3)), {"a": b"x"}, Order()) == mark
    assert fingerprint(Later(**asked, style="grand", output=LaterOutput(crf=3)), {"a": b"x"}, Order()) != mark
    # saying what goes without saying is the same request
    said = GenerationRequest(**asked, fps=25.0, output=Output(crf=3, format="mp4"))
    assert fingerprint(said, {"a": b"x"}, Order()) == mark
    # an earlier version has written such marks down
    assert mark == "b6d5de02d1de9aa0cba00bf587aebe2f23521660b216b53f9e753cf561577284"


def test_what_a_server_left_is_taken_up(store: Store) -> None:
    names = ("queued", "running once", "running twice", "stopping", "succeeded", "failed", "canceled")
    left = {name: add(store, created_at=9.0 - age) for age, name in enumerate(names)}
    for name in names[1:6]:
        store.begin(left[name].id, 20.0)
    store.note(left["running once"].id, Progress("denoising", 3, 8))
    store.requeue(left["running twice"].id, try_counts=True)
    store.begin(left["running twice"].id, 21.0)
    store.cancel(left["stopping"].id, "ann", 22.0)
    succeed(store, left["succeeded"].id)
    store.fail(left["failed"].id, FAILURE, 23.0)
    store.cancel(left["canceled"].id, "ann", 24.0)
    ended = {name: store.get(left[name].id, "ann") for name in ("succeeded", "failed", "canceled")}

    taken_up = store.recover(30.0)

    assert [job.id for job in taken_up] == [left["running once"].id, left["queued"].id]  # the oldest first
    assert taken_up[0] == replace(left["running once"], started_at=20.0, tries=1)
    assert taken_up[1] == left["queued"]
    twice = store.get(left["running twice"].id, "ann")
    assert (twice.state, twice.finished_at, twice.tries) == ("failed", 30.0, 2)
    assert twice.failure is not None
    assert twice.failure.code == "worker_crashed"
    stopped = store.get(left["stopping"].id, "ann")
    assert (stopped.state, stopped.finished_at) == ("canceled", 30.0)
    for name, job in ended.items():
        assert store.get(job.id, "ann") == job, name
    assert store.recover(40.0) == taken_up


def test_many_that_were_running_are_all_taken_up(store: Store) -> None:
    left = [add(store, created_at=float(number)).id for number in range(300)]
    for job_id in left:
        store.begin(job_id, 1.0)
    assert [job.id for job in store.recover(2.0)] == left


def test_what_ends_by_a_restart_is_delivered_too(database: Database, store: Store) -> None:
    crashed, stopping = (add(store, Order("ann", webhook_url=f"{WEBHOOK}{name}", upload_url=UPLOAD)) for name in "ab")
    for _ in range(2):
        store.requeue(crashed.id, try_counts=True)
        store.begin(crashed.id, 1.0)
    store.begin(stopping.id, 1.0)
    store.cancel(stopping.id, "ann", 2.0)
    assert rows_of(database) == []
    store.recover(3.0)
    assert {(row.job_id, row.kind, row.url) for row in rows_of(database)} == {
        (crashed.id, "webhook", f"{WEBHOOK}a"),
        (stopping.id, "webhook", f"{WEBHOOK}b"),
    }


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled", "stopped"])
def test_urls_move_from_the_job_to_its_deliveries_when_it_ends(database: Database, store: Store, state: str) -> None:
    job = add(store, Order("ann", webhook_url=WEBHOOK, upload_url=UPLOAD))
    assert rows_of(database) == []
    STATES[state](store, job.id)
    (row,) = rows_of(database, jobs)
    assert (row.state, row.webhook_url, row.upload_url) == (store.get(job.id, "ann").state, None, None)
    assert not [value for value in row if "token" in str(value)]
    wanted = {("webhook", WEBHOOK), ("upload", UPLOAD)} if state == "succeeded" else {("webhook", WEBHOOK)}
    assert {(row.kind, row.url) for row in rows_of(database)} == wanted
    for row in rows_of(database):
        assert (row.job_id, row.state, row.tries) == (job.id, "waiting", 0)
        assert row.id.startswith("msg_")


def test_a_job_without_urls_leaves_nothing_to_deliver(database: Database, store: Store) -> None:
    for state in ("succeeded", "failed", "canceled", "stopped"):
        STATES[state](store, add(store).id)
    assert rows_of(database) == []


def test_old_jobs_are_swept_but_not_before_they_are_delivered(database: Database, store: Store) -> None:
    waiting = add(store, Order("ann", webhook_url=WEBHOOK))
    delivered = add(store, Order("ann", webhook_url=WEBHOOK))
    plain, hidden, queued, running = (add(store) for _ in range(4))
    for job in (waiting, delivered, plain, hidden, running):
        store.begin(job.id, 1.0)
    for job in (waiting, delivered, plain, hidden):
        store.fail(job.id, FAILURE, 100.0)
    store.forget(hidden.id, "ann")
    done = deliveries.c.job_id == delivered.id
    with database.write() as connection:
        connection.execute(update(deliveries).where(done).values(state="done", url=None))

    assert store.sweep(100.0) == 1  # what was forgotten goes at once
    assert store.sweep(100.1) == 2
    assert {job.id for job in store.newest("ann", 9)} == {waiting.id, queued.id, running.id}
    assert [row.job_id for row in rows_of(database)] == [waiting.id]
    with database.write() as connection:
        connection.execute(update(deliveries).values(state="failed", url=None))
    assert store.sweep(100.1) == 1
    assert rows_of(database) == []
    assert store.count() == {"queued": 1, "running": 1}


def test_nobody_sees_or_touches_what_is_somebody_elses(store: Store) -> None:
    job = add(store)
    for owner in ("bob", ""):
        with pytest.raises(NotFound):
            store.get(job.id, owner)
        with pytest.raises(NotFound):
            store.cancel(job.id, owner, 1.0)
        with pytest.raises(NotFound):
            store.forget(job.id, owner)
        assert store.newest(owner, 9) == []
    assert store.get(job.id, "ann") == job
    store.begin(job.id, 1.0)
    with pytest.raises(NotFound):
        store.cancel(job.id, "bob", 1.0)
    assert not store.get(job.id, "ann").cancel_requested


@pytest.mark.parametrize("job_id", ["", "..", "../jobs.db", "job_" + "0" * 32, "' OR 1=1 --", "%", "x" * 10**6])
def test_what_is_no_id_of_ours_is_not_found(store: Store, job_id: str) -> None:
    add(store)
    for ask in (store.get, lambda job_id, owner: store.cancel(job_id, owner, 1.0)):
        with pytest.raises(NotFound):
            ask(job_id, "ann")


def test_the_newest_come_first_and_no_more_than_asked(store: Store) -> None:
    made = [add(store, created_at=float(number)).id for number in (2, 0, 3, 1)]
    add(store, Order("bob"))
    assert [job.id for job in store.newest("ann", 9)] == [made[2], made[0], made[3], made[1]]
    assert [job.id for job in store.newest("ann", 2)] == [made[2], made[0]]


def test_a_power_cut_loses_nothing_that_was_promised(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
    with database.write() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2


def test_a_transaction_that_fails_leaves_nothing(database: Database, store: Store) -> None:
    job = add(store)

    def write() -> None:
        with database.write() as connection:
            connection.execute(update(jobs).values(state="failed"))
            assert connection.execute(select(jobs.c.state)).scalar_one() == "failed"
            connection.execute(update(jobs).values(fingerprint=None))

    with pytest.raises(IntegrityError):
        write()
    assert store.get(job.id, "ann") == job


def test_what_the_database_complains_about_says_nothing_of_the_request(database: Database, store: Store) -> None:
    order = Order("ann", webhook_url=WEBHOOK, upload_url=UPLOAD)
    job = new_job(order, request=REQUEST.model_copy(update={"prompt": "hush"}))
    with database.write() as connection:
        jobs.drop(connection)
    with pytest.raises(SQLAlchemyError) as caught:
        store.add(job, "")
    assert "no such table" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "token" not in str(caught.value)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each answered that was begun at the same moment, or raised."""
    gate = threading.Barrier(len(works))

    def work(one: Callable[[], Any]) -> Any:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def test_many_threads_write_at_once_and_nothing_is_lost(store: Store) -> None:
    def live() -> list[str]:
        made = []
        for _ in range(5):
            job = add(store)
            assert store.begin(job.id, 1.0)
            store.note(job.id, Progress("denoising", 1, 2))
            assert succeed(store, job.id)
            made.append(job.id)
        return made

    made = [job_id for its in at_once(*[live] * 8) for job_id in its]
    assert len(set(made)) == 40
    assert store.count() == {"succeeded": 40}
    assert {job.id for job in store.newest("ann", 99)} == set(made)


def test_of_many_who_begin_one_job_one_does(store: Store) -> None:
    for _ in range(5):
        job = add(store)
        begun = at_once(*[lambda job=job: store.begin(job.id, 1.0)] * 8)
        assert [found.tries for found in begun if found] == [1]


def test_of_many_who_send_one_key_one_makes_the_job(store: Store) -> None:
    for number in range(5):
        order = Order("ann", idempotency_key=str(number))
        assert len({job.id for job in at_once(*[lambda order=order: add(store, order)] * 8)}) == 1
    assert store.count() == {"queued": 5}


def test_of_all_ways_to_end_one_job_takes_one(database: Database, store: Store) -> None:
    for _ in range(10):
        job = add(store, Order("ann", webhook_url=WEBHOOK))
        store.begin(job.id, 1.0)
        file = clip_file()
        outcomes = at_once(
            lambda job=job, file=file: store.succeed(job.id, FACTS, file, 2.0),
            lambda job=job: store.fail(job.id, FAILURE, 2.0),
            lambda job=job: store.cancelled(job.id, 2.0),
        )
        assert sum(outcomes) == 1
        ended = store.get(job.id, "ann")
        assert ended.state == ("succeeded", "failed", "canceled")[outcomes.index(True)]
        assert (ended.result is not None) == (ended.state == "succeeded")
        assert (ended.failure is not None) == (ended.state == "failed")
    assert len(rows_of(database)) == 10


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "hunter2://ann:hunter2@127.0.0.1/jobs",
        "postgresql+hunter2://ann:hunter2@127.0.0.1:1/jobs",
        "postgresql://ann:hunter2@127.0.0.1:1/jobs",
        "postgresql://ann:hunter2@127.0.0.1:port/jobs",
        "mysql://ann:hunter2@127.0.0.1:1/jobs",
        "sqlite:////proc/hunter2/jobs.db",
        "sqlite:////dev/null/hunter2.db",
        "",
    ],
)
def test_a_database_that_cannot_be_opened_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(NotReady) as caught:
        Database(Settings(data_dir=tmp_path, database_url=url))
    assert "LTX2_DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_no_database_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"this is no database at all, but some text " * 100)
    with pytest.raises(NotReady, match="cannot be opened"):
        Database(Settings(data_dir=tmp_path))


def test_a_database_elsewhere_is_used_instead_of_the_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path}/elsewhere.db")
    first, second = Database(settings), Database(settings)
    job = add(Store(first))
    assert Store(second).get(job.id, "ann") == job
    assert not (tmp_path / "data" / "jobs.db").exists()
    first.close()
    second.close()


def test_a_reader_does_not_wait_for_who_writes(database: Database, store: Store) -> None:
    job = add(store)
    with database.write() as connection:
        connection.execute(update(jobs).values(tries=7))
        assert store.get(job.id, "ann") == job
        assert store.count() == {"queued": 1}
    assert store.get(job.id, "ann").tries == 7


def test_a_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "made" / "for it")
    lock = lock_places(settings)
    with pytest.raises(NotReady, match="another server uses this data folder") as caught:
        lock_places(settings)
    assert "LTX2_DATA_DIR" in str(caught.value)
    lock_places(Settings(data_dir=tmp_path / "another")).close()
    lock.close()
    lock_places(settings).close()


def test_a_killed_server_keeps_nobody_out(tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from ltx2.settings import Settings
        from ltx2.studio.database import lock_places
        lock = lock_places(Settings(data_dir=Path({str(tmp_path)!r})))
        print("locked", flush=True)
        input()"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "locked\n"
        with pytest.raises(NotReady, match="another server"):
            lock_places(Settings(data_dir=tmp_path))
        server.kill()
    lock_places(Settings(data_dir=tmp_path)).close()


def test_a_folder_that_cannot_be_made_is_told_so_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    with pytest.raises(NotReady, match="the data folder cannot be used") as caught:
        lock_places(Settings(data_dir=tmp_path / "secret" / "data"))
    assert "secret" not in str(caught.value)


def test_a_database_in_a_file_has_one_server_too(tmp_path: Path) -> None:
    url = SecretStr(f"sqlite:///{tmp_path / 'shared.db'}")
    with lock_places(Settings(data_dir=tmp_path / "one", database_url=url)):
        with pytest.raises(NotReady, match="another server uses this database"):
            lock_places(Settings(data_dir=tmp_path / "two", database_url=url))
        # who was refused holds nothing
        lock_places(Settings(data_dir=tmp_path / "two")).close()


NEW = {"jobs": ["batch", "notes", "base_url", "run_seconds", "ttl_seconds", "clip_seconds"], "files": ["expires_at"]}
"""The columns that version 1 did not have, by table."""


def columns(database: Database, table: str) -> set[str]:
    with database.read() as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def downgrade(database: Database, *, version: str = "1", but: str = "") -> None:
    """Make the tables those of version 1: really without the new columns, but for one."""
    with database.write() as connection:
        connection.execute(text("DROP INDEX jobs_by_batch"))
        for table, names in NEW.items():
            for name in names:
                if name != but:
                    connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
        connection.execute(update(facts).where(facts.c.name == "version").values(value=version))


# a server that is killed while it upgrades has done a part of it
@pytest.mark.parametrize("but", ["", "batch", "notes"])
def test_a_database_of_the_first_version_gets_what_it_lacks(tmp_path: Path, but: str) -> None:
    settings = Settings(data_dir=tmp_path)
    before = Database(settings)
    store = Store(before)
    queued, done = (add(store, Order("ann", "tasks", 1, key, WEBHOOK)) for key in ("k1", "k2"))
    STATES["succeeded"](store, done.id)
    ended = store.get(done.id, "ann")
    downgrade(before, but=but)
    assert columns(before, "jobs").isdisjoint({*NEW["jobs"]} - {but})
    before.close()

    for _ in range(2):  # the second time there is nothing left to do
        after = Database(settings)
        assert after.id == before.id
        store = Store(after)
        assert store.get(queued.id, "ann") == queued
        assert store.get(done.id, "ann") == ended
        assert queued.order == Order("ann", "tasks", 1, "k1", WEBHOOK)
        assert {column.name for column in jobs.columns} == columns(after, "jobs")
        assert {column.name for column in files.columns} == columns(after, "files")
        assert [row.expires_at for row in rows_of(after, files)] == [None]
        with after.read() as connection:
            assert "jobs_by_batch" in {index["name"] for index in inspect(connection).get_indexes("jobs")}
        # its marks were made otherwise: who sends a request again must not hear that it was another one
        assert store.earlier(queued.order, "a mark as they are made now") == queued
        made = add(store, Order("ann", batch="b", notes={"n": 1}, ttl_seconds=2.5))
        assert store.get(made.id, "ann") == made
        assert [job.id for job in store.batch("ann", "b")][-1] == made.id
        after.close()


def test_tables_of_an_unknown_version_get_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    database = Database(settings)
    downgrade(database, version="0")
    with pytest.raises(NotReady, match="version 0"):
        Database(settings)
    assert columns(database, "jobs").isdisjoint(NEW["jobs"])
    database.close()


def test_tables_of_another_version_are_left_alone(database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        connection.execute(update(facts).where(facts.c.name == "version").values(value="9"))
    with pytest.raises(NotReady, match="version 9"):
        Database(Settings(data_dir=tmp_path))


def test_a_locked_database_is_said_and_not_waited_for_for_ever(database: Database, tmp_path: Path) -> None:
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    aside = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    aside.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotReady, match="cannot be written"), database.write() as connection:
        connection.execute(update(jobs).values(tries=1))
    aside.close()


def test_a_success_whose_answer_was_lost_is_a_success(store: Store) -> None:
    job, file = add(store), clip_file()
    store.begin(job.id, 1.0)
    assert store.succeed(job.id, FACTS, file, 2.0)
    assert store.succeed(job.id, FACTS, file, 3.0)
    assert not store.succeed(job.id, FACTS, clip_file(), 3.0)
    assert store.get(job.id, "ann").finished_at == 2.0


def test_a_result_of_an_older_version_says_less(database: Database, store: Store) -> None:
    job = add(store)
    store.begin(job.id, 1.0)
    store.succeed(job.id, FACTS, clip_file(), 2.0)
    added = {"prompt": None, "quality": None, "retried_for": ()}
    with database.write() as connection:
        told = json.loads(connection.execute(select(jobs.c.result).where(jobs.c.id == job.id)).scalar_one())
        older = json.dumps({name: value for name, value in told.items() if name not in added})
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(result=older))
    assert store.get(job.id, "ann").result == replace(FACTS, **added)


def test_a_request_of_another_version_is_passed_over(database: Database, store: Store) -> None:
    strange, fine = add(store, created_at=1.0), add(store, created_at=2.0)
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == strange.id).values(request='{"prompt": "x", "new": 1}'))
    assert store.newest("ann", 9) == [fine]
    assert store.recover(5.0) == [fine]
    with database.read() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == strange.id)).one()
    assert (row.state, row.failure["code"]) == ("failed", "internal")


def test_jobs_are_listed_page_by_page(store: Store) -> None:
    made = [add(store, created_at=float(age // 2)) for age in range(7)]
    first = store.newest("ann", 3)
    second = store.newest("ann", 3, first[-1].id)
    third = store.newest("ann", 3, second[-1].id)
    assert sorted(job.id for job in first + second + third) == sorted(job.id for job in made)
    assert [job.created_at for job in first + second + third] == [3.0, 2.0, 2.0, 1.0, 1.0, 0.0, 0.0]
    with pytest.raises(NotFound):
        store.newest("bob", 3, first[-1].id)


def test_jobs_are_listed_from_the_oldest_too(store: Store) -> None:
    for age in range(7):
        add(store, created_at=float(age // 2))
    all_of_them = store.newest("ann", 9)
    assert store.newest("ann", 9, oldest=True) == all_of_them[::-1]
    pages = [store.newest("ann", 3, oldest=True)]
    while pages[-1]:
        pages.append(store.newest("ann", 3, pages[-1][-1].id, oldest=True))
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [job for page in pages for job in page] == all_of_them[::-1]
    store.forget(all_of_them[-1].id, "ann")
    assert store.newest("ann", 1, oldest=True) == [all_of_them[-2]]
    with pytest.raises(NotFound):
        store.newest("bob", 3, all_of_them[0].id, oldest=True)


def test_a_batch_is_the_jobs_of_one_name_and_owner(database: Database, store: Store) -> None:
    first, second, third = (add(store, Order("ann", batch="b"), created_at=at) for at in (2.0, 3.0, 1.0))
    add(store, Order("bob", batch="b"))
    add(store, Order("ann", batch="c"))
    add(store)
    assert store.batch("ann", "b") == [third, first, second]
    store.forget(first.id, "ann")
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == third.id).values(request="{}"))
    assert store.batch("ann", "b") == [second]
    assert store.batch("ann", "nothing") == store.batch("eve", "b") == []
    assert store.get_any(first.id).id == first.id  # also what is forgotten


def test_jobs_are_counted_by_state(store: Store) -> None:
    assert store.count() == store.count("ann") == {}
    for state in ("queued", "running", "stopping", "succeeded", "failed", "canceled"):
        STATES[state](store, add(store).id)
    add(store, Order("bob"))
    store.forget(add(store).id, "ann")
    assert store.count("ann") == {"queued": 1, "running": 2, "succeeded": 1, "failed": 1, "canceled": 1}
    assert store.count("bob") == {"queued": 1}
    assert store.count("eve") == {}
    assert store.count() == {"queued": 3, "running": 2, "succeeded": 1, "failed": 1, "canceled": 1}


def test_a_state_of_another_version_is_left_alone(database: Database, store: Store) -> None:
    job = add(store)
    with database.write() as connection:
        connection.execute(update(jobs).values(state="strange"))
    for operation in OPERATIONS.values():
        operation(store, job.id)
    assert [row.state for row in rows_of(database, jobs)] == ["strange"]
