"""The life of a job, with an engine that is quick, writes real files and does as it is told."""

import asyncio
import base64
import contextlib
import functools
import itertools
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from quick import LONG, QuickEngine, in_loop, running_studio, until
from sqlalchemy.exc import SQLAlchemyError

from ltx2.engine import Progress
from ltx2.errors import (
    Canceled,
    Internal,
    InvalidRequest,
    LTX2Error,
    MediaTooLarge,
    NotFound,
    NotReady,
    QueueFull,
    StorageFull,
    TimedOut,
    UnsupportedMedia,
    UrlNotAllowed,
    WorkerCrashed,
)
from ltx2.media.probe import probe_video
from ltx2.payload import Sources
from ltx2.request import AudioTrack, GenerationRequest, Keyframe
from ltx2.settings import Settings
from ltx2.studio.database import Database
from ltx2.studio.files import Files
from ltx2.studio.job import Job, Order, new_id
from ltx2.studio.live import Live
from ltx2.studio.storage import open_storage
from ltx2.studio.store import Store
from ltx2.studio.studio import Studio

REQUEST = GenerationRequest(prompt="x", width=64, height=64, num_frames=2)
SHOWN = REQUEST.model_copy(update={"keyframes": (Keyframe(image="image_start", frame="first"),)})


def picture(colour: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()


async def send(
    studio: Studio,
    prompt: str = "x",
    *,
    request: GenerationRequest = REQUEST,
    sources: Sources | None = None,
    **order: Any,
) -> Job:
    asked = request.model_copy(update={"prompt": prompt})
    return await studio.submit(asked, sources or {}, Order(**order))


async def ended(studio: Studio, job: Job) -> Job:
    """The job when it is over, however it ended."""
    try:
        return await studio.result(job)
    except LTX2Error:
        return await studio.job(job.id, job.order.owner)


async def running(studio: Studio, engine: QuickEngine, prompt: str = "wait", **order: Any) -> Job:
    """A job that has reached the engine and waits there."""
    before = len(engine.begun)
    job = await send(studio, prompt, **order)
    await until(lambda: len(engine.begun) > before)
    return job


def written(studio: Studio, job: Job) -> Job:
    """The job as the database has it."""
    return Store(studio._database).get(job.id, job.order.owner)


def finished(job: Job) -> Job:
    """A job that succeeded, wherever it was when its progress was written down last."""
    assert job.state == "succeeded"
    return replace(job, progress=Progress("muxing"))


def left_in(folder: Path) -> set[str]:
    """All files that the program keeps or works on."""
    return {path.name for name in ("files", "work") for path in (folder / name).rglob("*") if path.is_file()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server on the loopback with one picture: its ``host:port``."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "picture.png").write_bytes(picture("blue"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


# What becomes of a request


@in_loop
async def test_a_request_becomes_a_file(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        began = time.time()
        job = await send(studio, owner="ann")
        assert job.state == "queued"
        assert job.request.seed is not None
        assert 0 <= job.request.seed < 2**32
        done = await studio.result(job)
        assert (done.id, done.state, done.fraction, done.tries, done.failure) == (job.id, "succeeded", 1.0, 1, None)
        assert done.started_at is not None
        assert done.finished_at is not None
        assert began <= done.created_at <= done.started_at <= done.finished_at <= time.time()
        assert done.result is not None
        assert done.result.seed == job.request.seed
        assert done.file_id is not None
        with studio.files.local(done.file_id, "ann") as (record, path):
            facts = probe_video(path, "mp4")
            assert (facts.num_frames, facts.width, facts.height) == (2, 64, 64)
            assert record.content_type == "video/mp4"
            assert record.size == done.file_size == path.stat().st_size
            assert record.meta["job_id"] == job.id
            assert record.meta["seed"] == job.request.seed
        assert left_in(tmp_path) == {done.file_id}
        for found in (await studio.job(job.id, "ann"), *await studio.jobs("ann"), await studio.result(job)):
            assert finished(found) == finished(done)
        assert len(await studio.jobs("ann")) == 1


@in_loop
async def test_a_seed_that_was_given_is_kept(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        done = await studio.result(await send(studio, request=REQUEST.model_copy(update={"seed": 2**63 - 1})))
        assert done.request.seed == 2**63 - 1
        assert done.result is not None
        assert done.result.seed == 2**63 - 1


@in_loop
async def test_media_are_kept_as_files_wherever_they_came_from(tmp_path: Path, data: Path, site: str) -> None:
    sound, end = (data / "speech.mp3").read_bytes(), picture("green")
    names = ("image_start", "keyframes[0].image", "image_end")
    shown = tuple(Keyframe(image=name, frame=frame) for name, frame in zip(names, ("first", 1, "last"), strict=True))
    request = REQUEST.model_copy(
        update={"num_frames": 3, "keyframes": shown, "audio": AudioTrack(source="audio", start=1.0)}
    )
    async with running_studio(tmp_path, url_allow=site) as (studio, engine):
        known = studio.files.add(end, owner="ann", filename="end.png")
        sources = {
            "image_start": "data:image/png;base64," + base64.b64encode(picture("red")).decode(),
            "keyframes[0].image": f"http://{site}/picture.png?token=1",
            "image_end": known.id,
            "audio": sound,
        }
        job = await send(studio, request=request, sources=sources, owner="ann")
        assert job.inputs.keys() == sources.keys()
        assert job.inputs["image_end"] == known.id
        expected = {
            "image_start": picture("red"),
            "keyframes[0].image": picture("blue"),
            "image_end": end,
            "audio": sound,
        }
        assert {name: studio.files.read(file_id, "ann") for name, file_id in job.inputs.items()} == expected
        assert studio.files.get(job.inputs["audio"], "ann").meta == {"input": "audio"}
        assert studio.files.get(job.inputs["audio"], "ann").content_type == "audio/mpeg"
        done = await studio.result(job)
        assert engine.media == [expected]
        assert done.result is not None
        assert left_in(tmp_path) == {*job.inputs.values(), done.file_id}


@in_loop
async def test_one_at_a_time_in_order_and_each_ends_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_studio(tmp_path) as (studio, engine):
        jobs = [await send(studio, str(number)) for number in range(60)]
        done = await asyncio.gather(*map(studio.result, jobs))
        assert engine.most_running == 1
        assert engine.begun == engine.made == [str(number) for number in range(60)]
        assert [job.id for job in done] == [job.id for job in jobs]
        assert len({job.file_id for job in done}) == 60
        assert left_in(tmp_path) == {job.file_id for job in done}
        assert (studio.queue_len, studio.running) == (0, 0)
        for job in jobs:
            assert caplog.text.count(f"job={job.id} state=succeeded") == 1
        assert caplog.text.count(" state=") == 60


@in_loop
async def test_of_sixty_at_once_none_is_lost_whatever_becomes_of_it(tmp_path: Path) -> None:
    states = {"x": "succeeded", "bug": "failed", "crash": "failed", "crash once": "succeeded", "vanish": "failed"}
    prompts = [list(states)[number % 5] for number in range(60)]
    async with running_studio(tmp_path) as (studio, engine):
        jobs = await asyncio.gather(*(send(studio, prompt, owner=f"{n % 3}") for n, prompt in enumerate(prompts)))
        done = await asyncio.gather(*(ended(studio, job) for job in jobs))
        assert [job.state for job in done] == [states[prompt] for prompt in prompts]
        assert engine.most_running == 1
        assert Store(studio._database).count() == {"succeeded": 24, "failed": 36}
        assert left_in(tmp_path) == {job.file_id for job in done if job.file_id}


# Who may wait


@in_loop
async def test_the_limit_counts_those_who_wait_and_nobody_else(tmp_path: Path) -> None:
    async with running_studio(tmp_path, queue_limit=5) as (studio, engine):
        await running(studio, engine)
        waiting = [await send(studio) for _ in range(5)]
        assert (studio.queue_len, studio.running) == (5, 1)
        with pytest.raises(QueueFull, match="5 requests are waiting"):
            await send(studio)
        await studio.cancel(waiting[2].id, "")
        await send(studio)
        with pytest.raises(QueueFull):
            await send(studio)
        engine.step.set()
        await until(lambda: studio.queue_len == 0 and studio.running == 0)
        await studio.result(await send(studio))


async def send_at_once(studio: Studio, prompt: str, number: int, dice: random.Random) -> list[Job]:
    """Send so many within a few milliseconds. Returns those that were accepted; the others met a full queue."""

    async def one() -> Job:
        await asyncio.sleep(dice.random() * 0.01)
        return await send(studio, prompt)

    answers = await asyncio.gather(*(one() for _ in range(number)), return_exceptions=True)
    assert all(isinstance(answer, Job | QueueFull) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Job)]


@in_loop
async def test_of_many_at_once_exactly_as_many_are_accepted_as_may_wait(tmp_path: Path) -> None:
    dice = random.Random(1)
    async with running_studio(tmp_path, queue_limit=20) as (studio, engine):
        await running(studio, engine)
        for sent in (500, 20, 20, 21):
            accepted = await send_at_once(studio, "x", sent, dice)
            assert len(accepted) == studio.queue_len == 20
            for job in accepted:
                await studio.cancel(job.id, "")
            assert studio.queue_len == 0
    async with running_studio(tmp_path, queue_limit=4) as (studio, engine):
        await running(studio, engine)
        for _ in range(50):
            accepted = await send_at_once(studio, "x", 4, dice)
            assert len(accepted) == studio.queue_len == 4
            for job in accepted:
                await studio.cancel(job.id, "")


@in_loop
async def test_one_more_may_come_where_nothing_runs_for_it_runs_at_once(tmp_path: Path) -> None:
    dice = random.Random(1)
    async with running_studio(tmp_path, queue_limit=3) as (studio, engine):
        for _ in range(20):
            accepted = await send_at_once(studio, "wait", 12, dice)
            assert len(accepted) == 4
            await until(lambda: engine.running == 1)
            assert studio.queue_len == 3
            for job in accepted:
                await studio.cancel(job.id, "")
            await until(lambda: studio.running == 0)


@in_loop
async def test_what_is_refused_later_makes_room_again(tmp_path: Path) -> None:
    async with running_studio(tmp_path, queue_limit=1) as (studio, engine):
        await running(studio, engine)
        for _ in range(5):
            with pytest.raises(UnsupportedMedia):
                await send(studio, request=SHOWN, sources={"image_start": b"no picture"})
        assert studio.queue_len == 0
        await send(studio)


@in_loop
async def test_one_key_makes_one_job_however_often_it_is_sent(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        gate = asyncio.Semaphore(50)

        async def post() -> Job:
            async with gate:
                job = await send(studio, request=SHOWN, sources={"image_start": picture()}, idempotency_key="k")
                return await studio.result(job)

        jobs = await asyncio.gather(*(post() for _ in range(300)))
        assert {job.state for job in jobs} == {"succeeded"}
        assert len({job.id for job in jobs}) == 1
        assert engine.begun == ["x"]
        assert left_in(tmp_path) == {jobs[0].file_id, *jobs[0].inputs.values()}
        assert len(left_in(tmp_path)) == 2
        assert [job.id for job in await studio.jobs("")] == [jobs[0].id]
        for change in ({"prompt": "y"}, {"sources": {"image_start": picture("blue")}}):
            with pytest.raises(InvalidRequest) as caught:
                await send(
                    studio, **{"request": SHOWN, "sources": {"image_start": picture()}} | change, idempotency_key="k"
                )
            assert caught.value.field == "Idempotency-Key"
        assert len(left_in(tmp_path)) == 2
        another = await send(studio, "y", idempotency_key="k", owner="ann")
        assert another.id != jobs[0].id
        assert (await studio.result(another)).state == "succeeded"


@in_loop
async def test_who_sends_a_key_again_is_answered_however_early(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):

        async def wait(key: str) -> Job:
            return await studio.result(await send(studio, idempotency_key=key))

        for number in range(40):
            done = await asyncio.gather(*(wait(str(number)) for _ in range(4)))
            assert {job.state for job in done} == {"succeeded"}
        assert len(engine.begun) == 40


@in_loop
async def test_who_sends_a_key_again_is_answered_although_the_queue_is_full(tmp_path: Path) -> None:
    async with running_studio(tmp_path, queue_limit=1) as (studio, engine):
        first = await running(studio, engine, idempotency_key="k")
        await send(studio)
        with pytest.raises(QueueFull):
            await send(studio, "wait", idempotency_key="another")
        assert (await send(studio, "wait", idempotency_key="k")).id == first.id


@in_loop
async def test_turns_go_by_owner_then_priority_then_age(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        await running(studio, engine, owner="eve")
        jobs = [
            await send(studio, f"{owner} {priority} {number}", owner=owner, priority=priority)
            for owner, priority, number in (
                *(("ann", -1, 0), ("ann", 0, 1), ("ann", 1, 2), ("ann", 0, 3), ("ann", 1, 4)),
                *(("bob", 0, 5), ("bob", -1, 6)),
            )
        ]
        engine.step.set()
        await asyncio.gather(*map(studio.result, jobs))
        assert engine.begun[1:] == ["ann 1 2", "bob 0 5", "ann 1 4", "bob -1 6", "ann 0 1", "ann 0 3", "ann -1 0"]


# Cancelling and forgetting


@in_loop
async def test_what_is_cancelled_while_it_waits_never_starts(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        first = await running(studio, engine)
        second, third = await send(studio, "second"), await send(studio, "third")
        waiting = asyncio.create_task(studio.result(second))
        cancelled = await studio.cancel(second.id, "")
        assert (cancelled.state, cancelled.tries, cancelled.started_at) == ("canceled", 0, None)
        assert studio.queue_len == 1
        with pytest.raises(Canceled):
            await waiting
        engine.step.set()
        assert (await studio.result(first)).state == "succeeded"
        await studio.result(third)
        assert engine.begun == ["wait", "third"]
        assert written(studio, second) == await studio.job(second.id, "") == cancelled


@in_loop
async def test_what_is_cancelled_while_it_runs_stops_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine, "steps wait")
        waiting = asyncio.create_task(studio.result(job))
        told = await studio.cancel(job.id, "")
        assert told.state in ("running", "canceled")
        with pytest.raises(Canceled):
            await asyncio.wait_for(waiting, 1)
        assert engine.running == 0
        assert (await studio.job(job.id, "")).state == written(studio, job).state == "canceled"
        assert left_in(tmp_path) == set()
        with pytest.raises(Canceled):
            await studio.result(job)
        await studio.result(await send(studio))


@in_loop
async def test_to_cancel_three_times_is_to_cancel_once(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        first = await running(studio, engine)
        second = await send(studio)
        for job in (second, first):
            await asyncio.gather(*(studio.cancel(job.id, "") for _ in range(3)))
            assert (await ended(studio, job)).state == "canceled"
            before = written(studio, job)
            for _ in range(3):
                assert (await studio.cancel(job.id, "")).state == "canceled"
            assert written(studio, job) == before
        done = await studio.result(await send(studio))
        assert finished(await studio.cancel(done.id, "")) == finished(done)
        assert finished(written(studio, done)) == finished(done)
        with pytest.raises(NotFound):
            await studio.cancel(new_id("job"), "")


@in_loop
async def test_a_cancel_that_races_with_the_end_has_one_outcome(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        outcomes: list[str] = []
        for number in range(100):
            job = await send(studio, "steps")
            last: list[Job] = []

            async def watch(job: Job = job, last: list[Job] = last) -> None:
                async for seen, _ in studio.watch(job.id, ""):
                    last.append(seen)

            watching = asyncio.create_task(watch())
            await asyncio.sleep(number * 0.0002)
            told = await studio.cancel(job.id, "")
            assert told.state != "queued"
            done = await ended(studio, job)
            await watching
            assert done.is_over
            assert sum(seen.is_over for seen in last) == 1
            found = written(studio, job)
            for known in (last[-1], done):
                assert (known.state, known.file_id, known.result) == (found.state, found.file_id, found.result)
                assert (known.tries, known.started_at) == (found.tries, found.started_at)
            assert (found.file_id is not None) == (found.state == "succeeded")
            outcomes.append(found.state)
        assert set(outcomes) == {"succeeded", "canceled"}
        assert engine.running == 0
        assert studio.queue_len == 0
        assert len(left_in(tmp_path)) == outcomes.count("succeeded")


@in_loop
async def test_what_is_cancelled_as_its_turn_comes_never_starts_or_is_told_that_it_did(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        outcomes = []
        for number in range(8):
            engine.step.clear()
            first, second = await running(studio, engine), await send(studio, f"second {number}")
            with studio._database.write():  # everybody else who writes waits: first the end of the first job
                engine.step.set()
                await until(lambda number=number: len(engine.made) == number + 1 + outcomes.count("succeeded"))
                await asyncio.sleep(0.01)
                cancelling = asyncio.create_task(studio.cancel(second.id, ""))
                await asyncio.sleep(0.01)
            told = (await cancelling).state
            done = await ended(studio, second)
            assert done.state == written(studio, second).state
            assert told in ("canceled", "running")
            if told == "canceled":
                assert done.state == "canceled"
                assert f"second {number}" not in engine.begun
            assert (await studio.result(first)).state == "succeeded"
            assert studio.queue_len == 0
            outcomes.append(done.state)


@in_loop
async def test_a_cancelled_job_says_so_until_it_stops(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine)
        assert not (await studio.job(job.id, "")).cancel_requested
        engine.deaf.set()
        assert (await studio.cancel(job.id, "")).cancel_requested
        assert (await studio.job(job.id, "")).cancel_requested
        assert [found.cancel_requested for found in await studio.jobs("")] == [True]
        engine.deaf.clear()
        assert (await ended(studio, job)).state == "canceled"


@in_loop
async def test_what_is_forgotten_is_shown_to_nobody(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        done = await studio.result(await send(studio, "done", idempotency_key="done"))
        hanging = await running(studio, engine, idempotency_key="running")
        queued = await send(studio, "queued", idempotency_key="queued")
        with pytest.raises(NotFound):
            await studio.forget(done.id, "ann")
        forgotten = [(await studio.forget(job.id, "")).state for job in (done, queued, hanging)]
        assert forgotten[:2] == ["succeeded", "canceled"]
        assert forgotten[2] in ("running", "canceled")  # it may have stopped already
        for job in (done, hanging, queued):
            for ask in (studio.job, studio.cancel, studio.forget):
                with pytest.raises(NotFound):
                    await ask(job.id, "")
            with pytest.raises(NotFound):
                await anext(aiter(studio.watch(job.id, "")))
        assert await studio.jobs("") == []
        await until(lambda: studio.running == 0)
        assert engine.made == ["done"]
        assert done.file_id is not None
        assert studio.files.get(done.file_id, "").size == done.file_size  # it may have been all that was wanted
        again = await send(studio, "again", idempotency_key="queued")
        assert (await studio.result(again)).state == "succeeded"
        assert engine.begun == ["done", "wait", "again"]


# Failures


@in_loop
async def test_what_goes_wrong_is_told_and_the_next_one_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_studio(tmp_path) as (studio, _):
        for prompt, error in (("bug", Internal), ("not ready", NotReady), ("vanish", Internal)):
            job = await send(studio, prompt)
            with pytest.raises(error) as caught:
                await studio.result(job)
            assert not [word for word in ("secret", "/etc", str(tmp_path)) if word in str(caught.value)]
            failed = written(studio, job)
            assert failed.state == "failed"
            assert failed.failure is not None
            assert failed.failure.code == error.code
            assert failed.tries == 1
            assert (await studio.result(await send(studio))).state == "succeeded"
        assert len(left_in(tmp_path)) == 3
    assert caplog.text.count("Traceback") == 2  # the bugs', once each; a missing model has none


@in_loop
async def test_a_lost_process_is_bad_luck_once(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        await running(studio, engine, owner="eve")
        owners = {"crash once": "ann", "second": "ann", "third": "bob"}
        jobs = [await send(studio, prompt, owner=owner) for prompt, owner in owners.items()]
        engine.step.set()
        done = await asyncio.gather(*map(studio.result, jobs))
        assert [(job.state, job.tries) for job in done] == [("succeeded", 2), ("succeeded", 1), ("succeeded", 1)]
        assert engine.begun == ["wait", "crash once", "crash once", "third", "second"]  # it had its turn already


@in_loop
async def test_a_process_lost_twice_is_the_job(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        jobs = [await send(studio, "crash", owner=owner) for owner in ("ann", "bob")]
        for job in jobs:
            with pytest.raises(WorkerCrashed):
                await studio.result(job)
            failed = written(studio, job)
            assert (failed.state, failed.tries) == ("failed", 2)
            assert failed.failure is not None
            assert failed.failure.code == "worker_crashed"
        assert engine.begun == ["crash"] * 4
        await studio.result(await send(studio))


@in_loop
async def test_a_job_that_is_cancelled_is_not_tried_again(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        for number in range(20):
            job = await send(studio, "steps crash")
            await asyncio.sleep(number * 0.001)
            await studio.cancel(job.id, "")
            done = await ended(studio, job)
            assert done.state == written(studio, job).state
            assert done.state in ("canceled", "failed")
        assert engine.running == 0


@in_loop
async def test_inputs_that_were_deleted_before_their_turn_are_named(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        await running(studio, engine)
        job = await send(studio, request=SHOWN, sources={"image_start": picture()})
        studio.files.delete(job.inputs["image_start"], "")
        engine.step.set()
        with pytest.raises(InvalidRequest, match="deleted before its turn") as caught:
            await studio.result(job)
        assert caught.value.field == "image_start"
        await studio.result(await send(studio))


@in_loop
async def test_a_clip_that_cannot_be_kept_is_a_failure_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine)
        (tmp_path / "files").rmdir()
        engine.step.set()
        with pytest.raises(NotReady, match="the file store cannot be reached"):
            await studio.result(job)
        assert engine.made == ["wait"]
        assert left_in(tmp_path) == set()
        (tmp_path / "files").mkdir()
        await studio.result(await send(studio))


@in_loop
async def test_what_became_of_a_job_is_written_down_when_the_database_is_back(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine)
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE jobs RENAME TO gone")
        engine.step.set()
        await until(lambda: bool(engine.made))
        await asyncio.sleep(0.1)
        assert studio.running == 1
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE gone RENAME TO jobs")
        done = await studio.result(job)
        assert done.state == written(studio, job).state == "succeeded"
        assert left_in(tmp_path) == {done.file_id}


@in_loop
async def test_a_full_store_takes_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path, files_max_gb=1e-9) as (studio, engine):
        done = await studio.result(await send(studio))
        with pytest.raises(StorageFull, match="LTX2_FILES_MAX_GB"):
            await send(studio, request=SHOWN, sources={"image_start": picture()})
        assert left_in(tmp_path) == {done.file_id}
        assert [job.id for job in await studio.jobs("")] == [done.id]
        assert len(engine.begun) == 1
        assert done.file_id is not None
        studio.files.delete(done.file_id, "")
        await studio.result(await send(studio))


WRONG: dict[str, tuple[dict[str, Any], type[LTX2Error], str]] = {
    "too long a prompt": ({"prompt": "x" * 10_001}, InvalidRequest, "prompt"),
    "no picture": ({"sources": {"image_start": b"text", "image_end": picture()}}, UnsupportedMedia, "image_start"),
    "no sound": ({"sources": {"audio": picture()}}, UnsupportedMedia, "audio"),
    "no base64": ({"sources": {"image_start": "?"}}, UnsupportedMedia, "image_start"),
    "too much": ({"sources": {"image_start": bytes(2**20 + 1)}}, MediaTooLarge, "image_start"),
    "too much together": (
        {"sources": {"image_start": picture() + bytes(600_000), "image_end": picture() + bytes(600_000)}},
        MediaTooLarge,
        "image_end",
    ),
    "an unknown file": ({"sources": {"image_start": "file_" + "0" * 32}}, InvalidRequest, "image_start"),
    "a file of the server": ({"sources": {"image_start": "file:///etc/passwd"}}, UrlNotAllowed, "image_start"),
    "an internal picture": ({"sources": {"image_start": "http://127.0.0.1:1/"}}, UrlNotAllowed, "image_start"),
    "an internal webhook": ({"webhook_url": "http://10.0.0.1/hush"}, UrlNotAllowed, "webhook_url"),
    "an internal upload": ({"upload_url": "http://169.254.169.254/hush"}, UrlNotAllowed, "upload_url"),
    "no URL": ({"webhook_url": "hush"}, UrlNotAllowed, "webhook_url"),
    "an empty URL": ({"upload_url": ""}, UrlNotAllowed, "upload_url"),
}


@pytest.mark.parametrize("case", WRONG)
@in_loop
async def test_of_what_is_refused_nothing_is_kept(tmp_path: Path, case: str) -> None:
    options, error, field = WRONG[case]
    named = options.get("sources", {})
    frames = [(name, name.removeprefix("image_").replace("start", "first").replace("end", "last")) for name in named]
    shown = tuple(Keyframe(image=name, frame=frame) for name, frame in frames if name != "audio")  # type: ignore[arg-type]
    track = AudioTrack(source="audio") if "audio" in named else None
    request = REQUEST.model_copy(update={"keyframes": shown, "audio": track})
    async with running_studio(tmp_path, max_body_mb=1) as (studio, engine):
        with pytest.raises(error) as caught:
            await send(studio, request=request, **options)
        assert caught.value.field == field
        assert "hush" not in str(caught.value)
        assert left_in(tmp_path) == set()
        assert Store(studio._database).count() == {}
        assert studio.files.list("") == []
        assert studio.queue_len == 0
        assert engine.begun == []


@in_loop
async def test_a_file_of_somebody_else_is_no_input(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        theirs = studio.files.add(picture(), owner="bob", filename=None)
        with pytest.raises(InvalidRequest) as caught:
            await send(studio, request=SHOWN, sources={"image_start": theirs.id}, owner="ann")
        assert caught.value.field == "image_start"
        assert (await send(studio, request=SHOWN, sources={"image_start": theirs.id}, owner="bob")).inputs


@in_loop
async def test_a_job_that_cannot_be_written_down_leaves_no_inputs_and_tells_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE jobs RENAME TO gone")
        with pytest.raises(SQLAlchemyError) as caught:
            await send(studio, "hush", request=SHOWN, sources={"image_start": picture()})
        assert "hush" not in str(caught.value)
        assert left_in(tmp_path) == set()
        assert studio.files.list("") == []
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("ALTER TABLE gone RENAME TO jobs")
        await studio.result(await send(studio))


@in_loop
async def test_nobody_shuts_out_the_others(tmp_path: Path) -> None:
    async with running_studio(tmp_path, queue_limit=4, api_keys=SecretStr("a,b")) as (studio, engine):
        await running(studio, engine, owner="a")
        for _ in range(4):
            await send(studio, owner="a")
        with pytest.raises(QueueFull):
            await send(studio, owner="a")
        for _ in range(2):  # half of the places are b's, whoever was first
            await send(studio, owner="b")
        with pytest.raises(QueueFull):
            await send(studio, owner="b")


@in_loop
async def test_a_row_that_cannot_be_read_stops_nobody_else(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        first = await running(studio, engine)
        strange, fine = await send(studio), await send(studio)
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside, aside:
            aside.execute("UPDATE jobs SET request = '{}' WHERE id = ?", (strange.id,))
        engine.step.set()
        assert (await ended(studio, first)).state == "succeeded"
        assert (await ended(studio, fine)).state == "succeeded"
        with pytest.raises(Internal):
            await studio.result(strange)
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as aside:
            assert aside.execute("SELECT state FROM jobs WHERE id = ?", (strange.id,)).fetchone() == ("failed",)
    async with running_studio(tmp_path) as (studio, _):
        await studio.result(await send(studio))


@in_loop
async def test_the_files_of_another_database_are_no_orphans(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        job = await studio.result(await send(studio))
    other = SecretStr(f"sqlite:///{tmp_path / 'other.db'}")
    async with running_studio(tmp_path, database_url=other) as (studio, _):
        assert await studio.jobs("") == []
    async with running_studio(tmp_path) as (studio, _):
        assert studio.files.read(str(job.file_id), "")[4:8] == b"ftyp"


@in_loop
async def test_an_error_says_which_job_came_to_it(tmp_path: Path) -> None:
    async with running_studio(tmp_path, sync_seconds=0.05) as (studio, engine):
        job = await running(studio, engine)
        with pytest.raises(TimedOut) as caught:
            await studio.result(job)
        assert caught.value.job_id == job.id
        failing = await send(studio, "not ready")
        engine.step.set()
        await ended(studio, failing)
        with pytest.raises(NotReady) as other:
            await studio.result(failing)
        assert other.value.job_id == failing.id


# Callers who wait, and who leave


@in_loop
async def test_a_caller_who_leaves_cancels_the_job(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        first = await running(studio, engine)
        second = await send(studio)
        for job in (second, first):
            waiting = asyncio.create_task(studio.result(job))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await ended(studio, job)).state == "canceled"
        assert engine.begun == ["wait"]
        assert engine.running == 0


@in_loop
async def test_a_caller_who_may_come_back_cancels_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine, idempotency_key="k")
        waiting = asyncio.create_task(studio.result(job))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.05)
        assert written(studio, job).state == "running"
        engine.step.set()
        again = await send(studio, "wait", idempotency_key="k")
        assert (await studio.result(again)).state == "succeeded"
        assert again.id == job.id
        assert engine.begun == ["wait"]


@in_loop
async def test_the_last_of_several_callers_who_leave_cancels_the_job(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await running(studio, engine)
        callers = [asyncio.create_task(studio.result(job)) for _ in range(3)]
        await asyncio.sleep(0)
        for caller in callers[:2]:
            caller.cancel()
        await asyncio.sleep(0.05)
        assert [caller.done() for caller in callers] == [True, True, False]
        assert not written(studio, job).cancel_requested
        callers[2].cancel()
        await asyncio.wait(callers)
        assert (await ended(studio, job)).state == "canceled"


@in_loop
async def test_a_caller_who_leaves_while_the_request_is_taken_in_leaves_no_job_that_runs(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        await running(studio, engine, "wait", owner="eve")
        began = time.monotonic()
        left = [await send(studio, request=SHOWN, sources={"image_start": picture()})]
        took = time.monotonic() - began
        # until some were caught in the short moment in which they are written down
        for number in itertools.count():
            if number >= 40 and len(await studio.jobs("")) > len(left):
                break
            assert number < 400
            sending = asyncio.create_task(send(studio, request=SHOWN, sources={"image_start": picture()}))
            await asyncio.sleep(number % 40 / 40 * took)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                left.append(await sending)
        for job in left:
            await studio.cancel(job.id, "")
        await until(lambda: studio.queue_len == 0 and not studio._dispatcher._spawned)
        jobs = await studio.jobs("")
        assert {job.state for job in jobs} == {"canceled"}
        assert len(jobs) > len(left)
        assert left_in(tmp_path) == {file_id for job in jobs for file_id in job.inputs.values()}
        assert engine.begun == ["wait"]


@in_loop
async def test_a_caller_waits_only_so_long_and_the_job_goes_on(tmp_path: Path) -> None:
    async with running_studio(tmp_path, sync_seconds=0.05) as (studio, engine):
        job = await running(studio, engine)
        with pytest.raises(TimedOut, match=r"0\.05 seconds") as caught:
            await studio.result(job)
        assert job.id in str(caught.value.hint)
        assert written(studio, job).state == "running"
        assert not written(studio, job).cancel_requested
        engine.step.set()
        await until(lambda: studio.running == 0)
        assert (await studio.result(job)).state == "succeeded"


# Those whose time is over


def is_late(job: Job, words: str) -> bool:
    return (
        job.state == "failed"
        and job.failure is not None
        and job.failure.code == "timeout"
        and words in str(job.failure)
    )


def ends_of(job: Job, log: str) -> int:
    """How often a job is said to have ended."""
    return log.count(f"job={job.id} state=")


@in_loop
async def test_a_job_that_waits_for_too_long_fails_and_never_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_studio(tmp_path) as (studio, engine):
        blocker = await running(studio, engine)
        late = await send(studio, "late", ttl_seconds=0.1)
        seen = [job.state async for job, _ in studio.watch(late.id, "")]
        assert seen == ["queued", "failed"]
        with pytest.raises(TimedOut, match=r"not over 0\.1 seconds after it was sent"):
            await studio.result(late)
        assert is_late(written(studio, late), "0.1 seconds after")
        assert written(studio, late).started_at is None
        assert (studio.queue_len, studio.waiting("")) == (0, [])
        assert (await studio.cancel(late.id, "")).state == "failed"
        engine.step.set()
        await studio.result(blocker)
        await studio.result(await send(studio, "next"))
        assert engine.begun == ["wait", "next"]
        assert ends_of(late, caplog.text) == 1


@in_loop
async def test_a_job_that_runs_for_too_long_stops_and_has_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_studio(tmp_path) as (studio, engine):
        for limit, words in (("ttl_seconds", "0.1 seconds after"), ("run_seconds", "longer than the 0.1 seconds")):
            late = await ended(studio, await running(studio, engine, **{limit: 0.1}))
            assert is_late(late, words)
            assert is_late(written(studio, late), words)
            assert late.progress == written(studio, late).progress == Progress("denoising", 0, 1)
            assert ends_of(late, caplog.text) == 1
        both = await ended(studio, await running(studio, engine, run_seconds=0.05, ttl_seconds=0.05))
        assert is_late(both, "0.05 seconds")
        assert left_in(tmp_path) == set()
        assert engine.made == []
        assert (await studio.result(await send(studio))).state == "succeeded"


@in_loop
async def test_only_the_generation_counts_where_only_that_is_limited(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        blocker = await running(studio, engine)
        patient = await send(studio, "patient", run_seconds=0.5)
        await asyncio.sleep(0.6)
        assert (await studio.job(patient.id, "")).state == "queued"
        await studio.cancel(blocker.id, "")
        assert (await studio.result(patient)).state == "succeeded"


@in_loop
async def test_who_is_in_time_is_not_late_afterwards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_studio(tmp_path) as (studio, _):
        job = await send(studio, ttl_seconds=0.8, run_seconds=0.8)
        withdrawn = await send(studio, ttl_seconds=0.8)
        await studio.cancel(withdrawn.id, "")
        assert (await studio.result(job)).state == "succeeded"
        await asyncio.sleep(0.9)
        assert written(studio, job).state == "succeeded"
        assert [ends_of(one, caplog.text) for one in (job, withdrawn)] == [1, 1]


@in_loop
async def test_a_lost_process_gives_no_time_back(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await send(studio, "crash once", ttl_seconds=30, run_seconds=30)
        assert (await studio.result(job)).tries == 2
        engine.deaf.set()  # its process ends later than it was told to
        late = await running(studio, engine, "steps crash once", run_seconds=0.001)
        again = await ended(studio, late)
        assert is_late(again, "0.001 seconds")
        assert again.tries == 1  # another would be in vain


@in_loop
async def test_who_is_late_and_cancelled_ends_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dice = random.Random(1)
    async with running_studio(tmp_path) as (studio, engine):

        async def one(number: int) -> Job:
            limits = {"ttl_seconds": 0.1} if number % 4 else {"ttl_seconds": 0.1, "run_seconds": 0.05}
            job = await send(studio, "wait" if number % 3 else "x", priority=number % 2, **limits)
            watched = [seen async for seen, _ in studio.watch(job.id, "")] if number % 2 else []
            if not watched:
                await asyncio.sleep(0.1 + dice.uniform(-0.02, 0.02))
                await studio.cancel(job.id, "")
            done = await ended(studio, job)
            if watched:
                assert watched[-1].state == done.state
            return done

        done = await asyncio.gather(*(one(number) for number in range(100)))
        states = {job.id: job.state for job in done}
        assert {*states.values()} >= {"failed", "canceled"}
        await until(lambda: not studio.running and not studio._dispatcher._spawned)
        assert {job.id: written(studio, job).state for job in done} == states
        assert [ends_of(job, caplog.text) for job in done] == 100 * [1]
        assert all(job.failure is None or job.failure.code == "timeout" for job in done)
        assert not any(live.expiry for live in studio._live.values())
        assert engine.running == 0
        assert (await studio.result(await send(studio))).state == "succeeded"


@in_loop
async def test_time_goes_on_while_there_is_no_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    studio, engine = await opened(tmp_path, shutdown_seconds=1)
    hanging = await running(studio, engine, "wait", ttl_seconds=1.4)
    early, late, patient = [await send(studio, f"{ttl}", ttl_seconds=ttl) for ttl in (0.2, 1.4, 30.0)]
    await studio.close()
    assert is_late(written_in(tmp_path, early), "0.2 seconds")  # it had to wait for the one in hand
    assert [written_in(tmp_path, job).state for job in (hanging, late, patient)] == 3 * ["queued"]
    await asyncio.sleep(0.5)  # a timer that was left would speak up now
    soon = add_to(tmp_path, "wait", order=Order(ttl_seconds=0.4))
    async with running_studio(tmp_path) as (studio, engine):
        for job in (hanging, late):
            assert is_late(await ended(studio, job), "1.4 seconds")
        assert (await studio.result(patient)).state == "succeeded"
        assert is_late(await ended(studio, soon), "0.4 seconds")
        assert sorted(engine.begun) == ["30.0", "wait"]
        assert [ends_of(job, caplog.text) for job in (hanging, early, late, patient, soon)] == 5 * [1]


@in_loop
async def test_a_clip_may_have_an_end_of_its_own(tmp_path: Path) -> None:
    async with running_studio(tmp_path, files_hours=0) as (studio, _):
        done = await studio.result(await send(studio, clip_seconds=60.0))
        record = studio.files.get(str(done.file_id), "")
        assert record.expires_at == record.created_at + 60
        kept = await studio.result(await send(studio))
        assert studio.files.get(str(kept.file_id), "").expires_at is None


@in_loop
async def test_lists_know_how_far_a_job_is_whichever_list_it_is(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        first = await running(studio, engine, "steps wait", batch="b", owner="ann")
        await until(lambda: studio._live[first.id].job.progress.step == LONG // 2)
        second = await send(studio, batch="b", owner="ann")
        third = await send(studio, owner="ann")
        await send(studio, batch="b", owner="bob")
        assert [job.id for job in await studio.batch("ann", "b")] == [first.id, second.id]
        assert [job.id for job in await studio.jobs("ann", oldest=True)] == [first.id, second.id, third.id]
        for jobs in (await studio.batch("ann", "b"), await studio.jobs("ann", 1, oldest=True)):
            assert jobs[0].progress == Progress("denoising", LONG // 2, LONG)
        assert [job.id for job in studio.waiting("ann")] == [second.id, third.id]
        assert await studio.count("ann") == {"running": 1, "queued": 2}
        await studio.forget(second.id, "ann")
        assert [job.id for job in studio.waiting("ann")] == [third.id]
        assert await studio.count("ann") == {"running": 1, "queued": 1}


# Restarts


async def opened(folder: Path, **settings: Any) -> tuple[Studio, QuickEngine]:
    """A studio that the test ends by itself."""
    limits = Settings(data_dir=folder, **settings)
    engine = QuickEngine(limits)
    studio = Studio(limits, engine)
    await studio.start()
    return studio, engine


@in_loop
async def test_what_a_server_that_ends_has_not_finished_is_taken_up_by_the_next(tmp_path: Path) -> None:
    studio, engine = await opened(tmp_path, shutdown_seconds=1)
    first = await running(studio, engine, "steps wait")
    rest = [await send(studio, str(number), priority=number % 2) for number in range(4)]
    cancelled = await send(studio, "cancelled")
    await studio.cancel(cancelled.id, "")
    began = time.monotonic()
    await studio.close()
    assert time.monotonic() - began < 2
    assert engine.made == []

    database = Database(Settings(data_dir=tmp_path))
    for job in (first, *rest):
        found = Store(database).get(job.id, "")
        assert (found.state, found.tries, found.progress) == ("queued", 0, Progress("queued"))
    database.close()

    async with running_studio(tmp_path) as (studio, engine):
        engine.step.set()
        done = await asyncio.gather(*map(studio.result, (first, *rest)))
        assert {(job.state, job.tries) for job in done} == {("succeeded", 1)}
        assert done[0].request == first.request  # with its seed
        assert sorted(engine.begun) == sorted(["steps wait", "0", "1", "2", "3"])
        assert [prompt for prompt in engine.begun if prompt != "steps wait"] == ["1", "3", "0", "2"]
        assert (await studio.job(cancelled.id, "")).state == "canceled"


@in_loop
async def test_a_server_that_ends_lets_the_job_in_hand_finish(tmp_path: Path) -> None:
    studio, engine = await opened(tmp_path)
    job, queued = await running(studio, engine), await send(studio)
    closing = asyncio.create_task(studio.close())
    await asyncio.sleep(0.05)
    engine.step.set()
    await closing
    assert engine.made == ["wait"]
    async with running_studio(tmp_path) as (studio, engine):
        assert (await studio.job(job.id, "")).state == "succeeded"
        assert (await studio.result(queued)).state == "succeeded"
        assert engine.begun == ["x"]


def written_in(folder: Path, job: Job) -> Job:
    """The job as a server has left it that is gone since."""
    database = Database(Settings(data_dir=folder))
    found = Store(database).get(job.id, job.order.owner)
    database.close()
    return found


def add_to(folder: Path, prompt: str, image: bytes | None = None, order: Order | None = None) -> Job:
    """Write a job down as a server would have that is gone since."""
    settings = Settings(data_dir=folder)
    database = Database(settings)
    files = Files(database, open_storage(settings), settings)
    inputs = {"image_start": files.add(image, owner="", filename=None).id} if image else {}
    request = (SHOWN if image else REQUEST).model_copy(update={"prompt": prompt, "seed": 1})
    job = Store(database).add(Job(new_id("job"), order or Order(), request, inputs, "queued", time.time()), prompt)
    database.close()
    return job


@in_loop
async def test_a_job_of_a_killed_server_is_tried_once_more(tmp_path: Path) -> None:
    queued, once, twice, stopping = (add_to(tmp_path, prompt) for prompt in ("queued", "once", "twice", "stopping"))
    database = Database(Settings(data_dir=tmp_path))
    store = Store(database)
    for job in (once, twice, stopping, twice):
        store.requeue(job.id, try_counts=True)
        assert store.begin(job.id, time.time())
    store.cancel(stopping.id, "", time.time())
    database.close()

    async with running_studio(tmp_path) as (studio, engine):
        done = await studio.result(once)
        assert (done.state, done.tries) == ("succeeded", 2)
        with pytest.raises(WorkerCrashed):
            await studio.result(twice)
        with pytest.raises(Canceled):
            await studio.result(stopping)
        assert (await studio.result(queued)).tries == 1
        assert engine.begun == ["queued", "once"]


@in_loop
async def test_what_a_server_that_ends_was_being_sent_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    accepted: set[str] = set()
    for number in range(8):
        studio, _ = await opened(tmp_path)
        sending = [
            asyncio.create_task(send(studio, request=SHOWN, sources={"image_start": picture()}, owner="ann"))
            for _ in range(8)
        ]
        await asyncio.sleep(number * 0.003)
        for task in sending:  # as the HTTP server does when its callers' time is up
            task.cancel()
        await studio.close()
        answers = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(answer, Job | asyncio.CancelledError) for answer in answers)
        accepted |= {answer.id for answer in answers if isinstance(answer, Job)}
    async with running_studio(tmp_path) as (studio, _):
        jobs = [await ended(studio, job) for job in await studio.jobs("ann")]
        assert {job.id for job in jobs if job.state == "succeeded"} >= accepted
        # on a slow machine there may be none of these
        assert {job.state for job in jobs if job.id not in accepted} <= {"canceled"}
        inputs = [file.id for file in studio.files.list("ann") if "input" in file.meta]
        assert sorted(inputs) == sorted(file_id for job in jobs for file_id in job.inputs.values())


@in_loop
async def test_what_is_old_is_gone_but_for_what_still_waits(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, _):
        done = await studio.result(await send(studio, request=SHOWN, sources={"image_start": picture()}))
    hanging, queued = add_to(tmp_path, "wait"), add_to(tmp_path, "queued", picture("blue"))
    async with running_studio(tmp_path, jobs_hours=1e-9, files_hours=1e-9) as (studio, engine):
        await until(lambda: Store(studio._database).count().get("succeeded", 0) == 0)
        await until(lambda: done.file_id not in left_in(tmp_path))
        assert left_in(tmp_path) == set(queued.inputs.values())
        with pytest.raises(NotFound):
            await studio.job(done.id, "")
        engine.step.set()
        for job in (hanging, queued):
            assert (await studio.result(job)).state == "succeeded"
        assert engine.media[1] == {"image_start": picture("blue")}


@in_loop
async def test_a_studio_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    for wrong in ("webhook_secret", "database_url"):
        settings = Settings(data_dir=tmp_path / wrong, **{wrong: SecretStr("hunter2")})
        with pytest.raises(NotReady, match=f"LTX2_{wrong.upper()}") as caught:
            Studio(settings, QuickEngine(settings))
        assert "hunter2" not in str(caught.value)
    async with running_studio(tmp_path):
        settings = Settings(data_dir=tmp_path)
        with pytest.raises(NotReady, match="another server"):
            Studio(settings, QuickEngine(settings))


@in_loop
async def test_a_studio_that_was_never_started_can_be_closed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    await Studio(settings, QuickEngine(settings)).close()
    async with running_studio(tmp_path):
        pass


# Watching


async def all_of(studio: Studio, job: Job) -> list[tuple[Job, float | None]]:
    return [seen async for seen in studio.watch(job.id, job.order.owner)]


@in_loop
async def test_who_watches_sees_the_state_at_once_and_every_end(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await send(studio, "steps wait")
        early = asyncio.create_task(all_of(studio, job))
        await until(lambda: engine.running == 1)
        late = aiter(studio.watch(job.id, ""))
        seen, _ = await asyncio.wait_for(anext(late), 1)
        assert seen.state == "running"
        engine.step.set()
        states = [seen.state for seen, _ in await early]
        assert states[0] == "queued"
        assert states[-1] == "succeeded"
        assert set(states[1:-1]) == {"running"}
        assert [seen.state async for seen, _ in late][-1] == "succeeded"
        assert [(seen.state, left) for seen, left in await all_of(studio, job)] == [("succeeded", None)]
        with pytest.raises(NotFound):
            await all_of(studio, Job(new_id("job"), Order(), REQUEST, {}, "queued", 0.0))


@in_loop
async def test_who_watches_leaves_when_the_server_is_told_to_end(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job, queued = await running(studio, engine), await send(studio)
        watching = [asyncio.create_task(all_of(studio, one)) for one in (job, queued)]
        waiting = asyncio.create_task(studio.result(job))
        await asyncio.sleep(0.01)
        assert studio.is_ready
        studio.drain()
        assert [(await task)[-1][0].state for task in watching] == ["running", "queued"]
        assert [seen.state for seen, _ in await all_of(studio, queued)] == ["queued"]
        assert not studio.is_ready
        with pytest.raises(NotReady):
            await send(studio)
        engine.step.set()
        assert (await waiting).state == "succeeded"  # what was accepted goes on
        assert (await studio.result(queued)).state == "succeeded"


@in_loop
async def test_progress_never_falls_within_one_try(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        for prompt in ("steps", "steps bug", "steps crash once", "steps wait"):
            job = await send(studio, prompt)
            watching = asyncio.create_task(all_of(studio, job))
            if prompt == "steps wait":
                await until(lambda: engine.running == 1)
                await asyncio.sleep(0.05)
                await studio.cancel(job.id, "")
            seen = [found for found, _ in await watching]
            for before, after in itertools.pairwise(seen):
                assert after.fraction >= before.fraction or after.state == "queued", (prompt, before, after)
            assert all(0 <= found.fraction <= 1 for found in seen)
            most = max(found.fraction for found in seen)
            assert most == 1.0 if prompt == "steps" else most > 0.3, prompt
            steps = {(found.progress.step, found.progress.steps) for found in seen}
            assert (LONG // 2, LONG) in steps, prompt


@in_loop
async def test_an_estimate_begins_with_the_denoising(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        queued = await running(studio, engine, owner="eve")
        job = await send(studio, "steps")
        watching = asyncio.create_task(all_of(studio, job))
        await asyncio.sleep(0.01)
        engine.step.set()
        await studio.result(queued)
        for seen, left in await watching:
            if seen.state != "running" or seen.progress.phase in ("queued", "loading", "encoding"):
                assert left is None
            elif seen.progress.step:
                assert left is not None
                assert 0 < left < 10


def test_an_estimate_goes_by_this_try_alone() -> None:
    live = Live(Job(new_id("job"), Order(), REQUEST, {}, "running", 0.0))
    live.progress(Progress("denoising", 0, 8))
    time.sleep(0.05)
    live.progress(Progress("denoising", 4, 8))
    assert live.seconds_left is not None
    assert 0.05 < live.seconds_left < 1
    job = live.job
    for state in ("queued", "running"):
        live.publish(Job(job.id, job.order, job.request, {}, state, 0.0))
        assert live.seconds_left is None
    live.progress(Progress("denoising", 0, 8))
    assert live.seconds_left is None
    time.sleep(0.01)
    live.progress(Progress("denoising", 4, 8))
    assert live.seconds_left is not None
    assert live.seconds_left < 0.05


# What everybody may know, and what nobody may


@in_loop
async def test_owners_see_only_their_own(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        done = await studio.result(await send(studio, owner="ann"))
        hanging = await running(studio, engine, owner="ann")
        for job in (done, hanging):
            for owner in ("bob", "", "ann "):
                for ask in (studio.job, studio.cancel, studio.forget):
                    with pytest.raises(NotFound):
                        await ask(job.id, owner)
                with pytest.raises(NotFound):
                    await anext(aiter(studio.watch(job.id, owner)))
        assert await studio.jobs("bob") == await studio.jobs("") == []
        assert done.file_id is not None
        with pytest.raises(NotFound):
            studio.files.read(done.file_id, "bob")
        assert [job.id for job in await studio.jobs("ann")] == [hanging.id, done.id]
        assert [job.id for job in await studio.jobs("ann", 1)] == [hanging.id]
        assert not written(studio, hanging).cancel_requested


def figures(studio: Studio) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(studio.metrics.render().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


@in_loop
async def test_the_figures_count_what_ended_and_how(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        for prompt in ("x", "x", "bug", "crash", "crash once", "not ready"):
            await ended(studio, await send(studio, prompt))
        hanging = await running(studio, engine)
        queued, another = await send(studio), await send(studio)
        await studio.cancel(queued.id, "")
        counted = figures(studio)
        assert counted["ltx2_queue_jobs",] == 1
        assert counted["ltx2_running_jobs",] == 1
        await studio.cancel(hanging.id, "")
        await studio.result(another)
        counted = figures(studio)
        assert {name[1:]: value for name, value in counted.items() if name[0] == "ltx2_jobs_ended_total"} == {
            ("", "succeeded"): 4,
            ("internal", "failed"): 1,
            ("worker_crashed", "failed"): 1,
            ("not_ready", "failed"): 1,
            ("", "canceled"): 2,
        }
        assert counted["ltx2_queue_jobs",] == 0
        assert counted["ltx2_running_jobs",] == 0
        assert counted["ltx2_model_loaded",] == 1
        assert counted["ltx2_phase_seconds_count", "muxing"] == 4
        assert counted["ltx2_queue_seconds_count",] == 8


@in_loop
async def test_the_log_has_a_line_for_each_job_and_nothing_that_anybody_sent(
    tmp_path: Path, site: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    request = SHOWN.model_copy(update={"negative_prompt": "hush"})
    order = {"webhook_url": f"http://{site}/hush?hush", "upload_url": f"http://{site}/hush?hush"}
    async with running_studio(tmp_path, url_allow=site, webhook_retry_seconds=0.00001) as (studio, engine):
        asked = {"request": request, "sources": {"image_start": f"http://{site}/picture.png?hush"}}
        done = await studio.result(await send(studio, "hush", **asked, **order, idempotency_key="hush"))
        with pytest.raises(UnsupportedMedia):
            await send(studio, **asked | {"sources": {"image_start": f"http://{site}/missing?hush"}}, **order)
        job = await running(studio, engine, **order)
        await studio.cancel(job.id, "")
        await ended(studio, job)
        await until(lambda: caplog.text.count("try=8") == 3)  # nobody wants them there
    lines = [record.getMessage() for record in caplog.records if "state=" in record.getMessage()]
    assert len(lines) == 2
    assert f"job={done.id} state=succeeded code=- dialect=native mode=I2V size=64x64x2" in lines[0]
    for record in caplog.records:
        text = logging.Formatter().format(record)
        assert "hush" not in text
        assert site not in text
