"""An engine that makes several clips at the same time, and one that goes away and comes back."""

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from quick import QuickEngine, in_loop, running_studio, until
from sqlalchemy import event

from ltx2.dialects.app import create_app
from ltx2.errors import EngineDown, TimedOut
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio import dispatch, worker
from ltx2.studio.job import Job, Order
from ltx2.studio.store import Store
from ltx2.studio.studio import Studio

REQUEST = GenerationRequest(prompt="x", width=64, height=64, num_frames=2)


async def send(studio: Studio, prompt: str = "x", **order: Any) -> Job:
    return await studio.submit(REQUEST.model_copy(update={"prompt": prompt}), {}, Order(**order))


def tries(studio: Studio, job: Job) -> int:
    return Store(studio._database).get(job.id, job.order.owner).tries


@in_loop
async def test_as_many_run_at_the_same_time_as_there_are_seats(tmp_path: Path) -> None:
    async with running_studio(tmp_path, seats=3) as (studio, engine):
        jobs = [await send(studio, "wait") for _ in range(5)]
        await until(lambda: engine.running == 3)
        await until(lambda: (studio.running, studio.queue_len) == (3, 2))
        engine.step.set()
        ended = await asyncio.gather(*(studio.result(job) for job in jobs))
        assert {job.state for job in ended} == {"succeeded"}
        assert len({job.file_id for job in ended}) == 5
        assert engine.most_running == 3
        assert (studio.running, studio.queue_len) == (0, 0)


@in_loop
async def test_one_of_several_is_cancelled_and_the_next_takes_its_seat(tmp_path: Path) -> None:
    async with running_studio(tmp_path, seats=2) as (studio, engine):
        first, second, third = [await send(studio, f"{'steps ' * (n == 2)}wait") for n in range(3)]
        await until(lambda: engine.running == 2)
        await studio.cancel(first.id, "")
        await until(lambda: engine.begun[-1] == "steps wait")
        assert (await studio.job(first.id, "")).state == "canceled"
        assert (await studio.job(second.id, "")).state == "running"
        engine.step.set()
        assert [(await studio.result(job)).state for job in (second, third)] == ["succeeded", "succeeded"]


@in_loop
async def test_the_end_of_a_server_waits_for_all_that_run(tmp_path: Path) -> None:
    engine = QuickEngine(Settings(data_dir=tmp_path), seats=2)
    studio = Studio(engine.settings, engine)
    await studio.start()
    jobs = [await send(studio, "wait") for _ in range(3)]
    await until(lambda: engine.running == 2)
    closing = asyncio.create_task(studio.close())
    await until(studio.draining.is_set)
    engine.step.set()
    await closing
    assert len(engine.made) == 2
    async with running_studio(tmp_path, seats=2) as (studio, engine):
        engine.step.set()
        states = [(await studio.result(await studio.job(job.id, ""))).state for job in jobs]
        assert states == ["succeeded"] * 3


@in_loop
async def test_accepted_jobs_wait_for_an_engine_that_is_down_and_new_ones_are_refused(tmp_path: Path) -> None:
    async with running_studio(tmp_path, seats=2) as (studio, engine):
        blocked = [await send(studio, "wait") for _ in range(2)]
        await until(lambda: engine.running == 2)
        waiting = [await send(studio, f"x{n}") for n in range(3)]
        engine.fault = "the machines cannot be reached"
        with pytest.raises(EngineDown, match="the machines cannot be reached"):
            await send(studio, idempotency_key="new")
        assert not studio.is_ready
        engine.step.set()
        await asyncio.gather(*(studio.result(job) for job in blocked))
        # a job that is begun all the same is put back, and its try does not count
        assert {job.state for job in [await studio.job(job.id, "") for job in waiting]} == {"queued"}
        await studio.cancel(waiting[2].id, "")
        assert (await studio.job(waiting[2].id, "")).state == "canceled"
        begun = len(engine.begun)
        engine.fault = None
        ended = [await studio.result(job) for job in waiting[:2]]
        assert {job.state for job in ended} == {"succeeded"}
        assert len(engine.begun) == begun + 2
        assert studio.is_ready


@in_loop
async def test_what_was_begun_before_anybody_knew_goes_back_and_the_try_does_not_count(tmp_path: Path) -> None:
    async with running_studio(tmp_path, seats=2) as (studio, engine):
        # it says so only when it is asked for a clip, as one does that went down a moment ago
        engine.unnoticed = True
        engine.fault = "the machines cannot be reached"
        job = await send(studio)
        await until(lambda: bool(engine.begun))
        await until(lambda: studio._live[job.id].job.state == "queued")
        assert tries(studio, job) == 0
        engine.fault = None
        began = time.monotonic()
        ended = await studio.result(job)
        assert (ended.state, ended.tries) == ("succeeded", 1)
        assert time.monotonic() - began < 20
        assert len(engine.begun) < 5  # it was not asked again and again


@in_loop
async def test_what_was_accepted_before_answers_its_key_while_the_engine_is_down(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await send(studio, idempotency_key="k")
        await studio.result(job)
        engine.fault = "gone"
        assert (await send(studio, idempotency_key="k")).id == job.id


@in_loop
async def test_callers_are_told_503_and_the_load_balancer_too(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        transport = httpx.ASGITransport(create_app(studio))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/ping")).status_code == 200
            engine.fault = "the endpoint cannot be reached"
            answer = await client.post("/generate", json={"prompt": "x"})
            assert answer.status_code == 503
            assert answer.json()["error"]["message"].startswith("the endpoint cannot be reached")
            assert int(answer.headers["Retry-After"]) > 0
            assert (await client.get("/ping")).status_code == 503
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health")).json()["fault"] == "the endpoint cannot be reached"
            workers = (await client.get("/v2/here/health")).json()["workers"]
            assert (workers["unhealthy"], workers["ready"], workers["initializing"]) == (1, 0, 0)
            engine.fault = None
            assert (await client.get("/ping")).status_code == 200
            assert (await client.get("/health")).json()["fault"] is None


@in_loop
async def test_the_time_it_waits_on_another_machine_is_not_the_generations(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await send(studio, "elsewhere", run_seconds=0.2)
        await until(lambda: engine.running == 1)
        await asyncio.sleep(0.6)
        assert (await studio.job(job.id, "")).state == "running"
        engine.step.set()
        assert (await studio.result(job)).state == "succeeded"


@pytest.mark.parametrize("seats", [1, 2])
@in_loop
async def test_a_job_that_always_goes_back_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seats: int
) -> None:
    monkeypatch.setattr(worker, "DOWN_SECONDS", 0.02)
    monkeypatch.setattr(dispatch, "SECONDS_BETWEEN_LOOKS", 0.02)
    async with running_studio(tmp_path, seats=seats) as (studio, engine):
        engine.unlucky = "down"
        unlucky = await send(studio, "down")
        others = [await send(studio, f"x{n}") for n in range(4)]
        ended = await asyncio.gather(*(studio.result(job) for job in others))
        assert {job.state for job in ended} == {"succeeded"}
        assert tries(studio, unlucky) <= 1
        assert not (await studio.job(unlucky.id, "")).is_over
        engine.unlucky = None
        assert (await studio.result(unlucky)).tries == 1


@pytest.mark.parametrize("limit", ["ttl_seconds", "run_seconds"])
@in_loop
async def test_a_job_whose_time_is_over_does_not_wait_for_an_engine_that_is_down(tmp_path: Path, limit: str) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        job = await send(studio, "gone", **{limit: 0.05})
        await until(lambda: engine.running == 1)
        await until(lambda: studio._live[job.id].late is not None)
        engine.fault = "gone"
        engine.step.set()
        with pytest.raises(TimedOut):
            await studio.result(job)
        assert (studio.running, studio.queue_len) == (0, 0)


@in_loop
async def test_an_end_that_cannot_be_written_down_is_no_failure(tmp_path: Path) -> None:
    engine = QuickEngine(Settings(data_dir=tmp_path, shutdown_seconds=1), seats=4)
    studio = Studio(engine.settings, engine)
    event.listen(studio._database._engine, "connect", lambda it, _: it.execute("PRAGMA busy_timeout=50"))
    studio._database._engine.dispose()  # and begin anew
    await studio.start()
    jobs = [await send(studio, "wait") for _ in range(4)]
    await until(lambda: engine.running == 4)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        closing = asyncio.create_task(studio.close())
        await until(lambda: studio.running == 0)
        other.execute("ROLLBACK")
        await closing
    async with running_studio(tmp_path, seats=4) as (studio, engine):
        engine.step.set()
        states = [(await studio.result(await studio.job(job.id, ""))).state for job in jobs]
        assert states == ["succeeded"] * 4


@in_loop
async def test_an_engine_without_a_model_of_its_own_is_loaded_whatever_is_set(tmp_path: Path) -> None:
    async with running_studio(tmp_path, residency="idle:600") as (_, engine):
        await until(engine.loaded.is_set)
