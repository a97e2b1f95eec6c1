"""What a studio says of a request before it is sent: what is known of the model, who waits, what is checked."""

import asyncio
import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quick import LONGEST, in_loop, running_studio, until

from ltx2.engine import EngineStatus, ModelFacts
from ltx2.errors import InvalidRequest, LTX2Error, NotReady, QueueFull, StillLoading, UnknownFile
from ltx2.payload import GenerateBody, to_request
from ltx2.recipes import recipe_for
from ltx2.settings import Settings
from ltx2.studio.job import Order
from ltx2.studio.planner import facts_of
from ltx2.studio.reception import AT_ONCE
from ltx2.studio.studio import Studio

FACTS = ModelFacts("quick", recipe_for("2.3", "distilled"))


def body(**fields: Any) -> GenerateBody:
    return GenerateBody(**{"prompt": "x", "width": 64, "height": 64, "num_frames": 9} | fields)


async def made(studio: Studio, prompt: str = "x") -> None:
    await studio.result(await studio.submit(*to_request(body(prompt=prompt)), Order()))


@in_loop
async def test_it_learns_from_each_clip_and_remembers_them_after_a_restart(tmp_path: Path) -> None:
    async with running_studio(tmp_path, price_per_second=2.0) as (studio, engine):
        engine.facts = FACTS
        nothing = await studio.plan(body(), "")
        assert (nothing.seconds.total, nothing.seconds.learned_from, nothing.passes) == (None, 0, 8)
        await made(studio)  # whose muxing took a tenth of a second, it says
        found = await studio.plan(body(), "")
        assert (found.seconds.total, found.seconds.learned_from) == (pytest.approx(0.1, rel=0.02), 1)
        assert found.cost_usd == pytest.approx(0.2, rel=0.02)
    async with running_studio(tmp_path) as (studio, engine):
        engine.facts = FACTS
        assert (await studio.plan(body(), "")).seconds.learned_from == 1


@in_loop
async def test_it_says_who_waits_and_for_how_long(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as (studio, engine):
        engine.facts = FACTS
        running = await studio.submit(*to_request(body(prompt="wait")), Order())
        await until(lambda: studio.running == 1)
        waiting = await studio.submit(*to_request(body()), Order())
        queue = (await studio.plan(body(), "")).queue
        assert (queue.length, queue.running, queue.seconds) == (1, 1, None)
        engine.step.set()
        for job in (running, waiting):
            await studio.result(job)
        engine.step.clear()
        queue = (await studio.plan(body(), "")).queue
        assert (queue.length, queue.running, queue.seconds) == (0, 0, 0.0)
        running = await studio.submit(*to_request(body(prompt="wait")), Order())
        await until(lambda: studio.running == 1)
        others = [await studio.submit(*to_request(body()), Order()) for _ in range(3)]
        seconds = (await studio.plan(body(), "")).queue.seconds
        # a tenth of a second for each of those who wait, and what is left of that for the one that runs
        assert seconds is not None
        assert 0.29 < seconds < 0.41
        for job in (running, *others):
            await studio.cancel(job.id, "")


@in_loop
async def test_media_are_checked_and_nothing_is_kept(tmp_path: Path, data: Path) -> None:
    photo = base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    sound = base64.b64encode((data / "speech.mp3").read_bytes()).decode()
    async with running_studio(tmp_path) as (studio, engine):
        engine.facts = FACTS
        found = await studio.plan(body(image_start=photo, audio=sound, num_frames=None), "ann")
        assert found.mode == "A2V+I2V"
        # as long as the sound is, which settles it
        assert found.num_frames == found.request.num_frames > 25
        assert (found.request.image_start, found.request.audio) == ("image_start", "audio")
        with pytest.raises(InvalidRequest) as wrong:
            await studio.plan(body(image_start=sound), "ann")
        assert wrong.value.field == "image_start"
        with pytest.raises(UnknownFile):
            await studio.plan(body(image_end="file_" + "0" * 32), "ann")
        with pytest.raises(InvalidRequest, match="second stage"):
            await studio.plan(body(pipeline="two_stage"), "ann")
        assert studio.files.list("ann") == []
        assert await studio.jobs("ann") == []
        assert (studio.queue_len, engine.begun) == (0, [])


@in_loop
async def test_only_so_many_are_looked_at_at_once(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    slow = await asyncio.start_server(never, "127.0.0.1", 0)
    port = slow.sockets[0].getsockname()[1]
    async with slow, running_studio(tmp_path, url_allow=f"127.0.0.1:{port}") as (studio, engine):
        engine.facts = FACTS
        asked = body(image_start=f"http://127.0.0.1:{port}/a.png")
        plans = [asyncio.create_task(studio.plan(asked, "ann")) for _ in range(AT_ONCE + 3)]
        await until(lambda: sum(plan.done() for plan in plans) == 3)
        refused = [plan.exception() for plan in plans if plan.done()]
        assert all(isinstance(error, QueueFull) for error in refused)
        release.set()
        others = [error for error in await asyncio.gather(*plans, return_exceptions=True) if error not in refused]
        assert len(others) == AT_ONCE
        assert all(isinstance(error, LTX2Error) and not isinstance(error, QueueFull) for error in others)
        assert (await studio.plan(body(), "ann")).passes == 8


@in_loop
async def test_one_at_a_time_is_reckoned_and_those_who_wait_for_that_count(tmp_path: Path) -> None:
    release = threading.Event()
    reckoning, most = 0, 0

    class Doubts(tuple[str, ...]):
        """Read in the middle of reckoning, which takes as long as this does."""

        def __iter__(self) -> Iterator[str]:
            nonlocal reckoning, most
            reckoning += 1
            most = max(most, reckoning)
            release.wait(LONGEST)
            reckoning -= 1
            return iter(())

    async with running_studio(tmp_path) as (studio, engine):
        engine.facts = replace(FACTS, doubts=Doubts())
        plans = [asyncio.create_task(studio.plan(body(), "ann")) for _ in range(AT_ONCE)]
        await until(lambda: reckoning > 0)
        await asyncio.sleep(0.1)  # for those that ought not to begin as well
        with pytest.raises(QueueFull):
            await studio.plan(body(), "ann")
        release.set()
        assert [quote.passes for quote in await asyncio.gather(*plans)] == [8] * AT_ONCE
        assert most == 1
        assert (await studio.plan(body(), "ann")).passes == 8


def test_what_is_known_of_a_model_that_is_not_here() -> None:
    settings = Settings(engine="runpod", runpod_endpoint="e", runpod_api_key="k")
    there = EngineStatus((), 0.0, 0.0)
    assert facts_of(replace(there, model=FACTS), settings) == FACTS
    with pytest.raises(StillLoading):
        facts_of(replace(there, ready=False), settings)
    with pytest.raises(NotReady, match="it is broken"):
        facts_of(replace(there, ready=False, fault="it is broken"), settings)
    with pytest.raises(NotReady, match="LTX2_MODEL"):
        facts_of(there, settings)
    with pytest.raises(NotReady, match="make a clip first"):
        facts_of(there, Settings(residency="transient"))
    with pytest.raises(NotReady, match="make a clip first"):
        facts_of(there, Settings(engine="ray", model="/models/ours"))
    told = facts_of(replace(there, loaded=("ltx-2-distilled",)), settings)
    assert told.recipe == recipe_for("2.0", "distilled")
    assert told.can_refine
    named = facts_of(there, Settings(model="ltx-2.5"))
    assert (named.recipe, named.has_duration_head) == (recipe_for("2.5", "dev"), True)
    # what the machines there call it is in its clips, and means nothing to anybody else
    ours = facts_of(replace(there, loaded=("ours",)), settings.model_copy(update={"model": "ltx-2.5"}))
    assert ours == replace(named, name="ours")
