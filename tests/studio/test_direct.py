"""The life of a request, with an engine that is quick, writes real files and does as it is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quick import QuickEngine

from ltx2.errors import Internal, InvalidRequest, NotReady, QueueFull, UnsupportedMedia
from ltx2.media.probe import probe_video
from ltx2.request import AudioTrack, GenerationRequest, Keyframe
from ltx2.settings import Settings
from ltx2.studio.direct import Direct

REQUEST = GenerationRequest(prompt="x", width=64, height=64, num_frames=2)


@asynccontextmanager
async def studio(folder: Path, **settings: Any) -> AsyncIterator[tuple[Direct, QuickEngine]]:
    limits = Settings(data_dir=folder, **settings)
    engine = QuickEngine(limits)
    running = Direct(limits, engine)
    try:
        yield running, engine
    finally:
        engine.step.set()
        running.close()


def prompt(text: str) -> GenerationRequest:
    return REQUEST.model_copy(update={"prompt": text})


async def make(studio: Direct, request: GenerationRequest = REQUEST, **options: Any) -> GenerationRequest:
    async with studio.run(request, {}, **options) as (asked, clip):
        assert probe_video(clip.path).num_frames == request.num_frames
        return asked


async def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_is_there_within_the_context_and_gone_after_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, _):
            async with running.run(REQUEST, {}) as (asked, clip):
                assert files(tmp_path) == [clip.path]
                assert asked.seed is not None
                assert 0 <= asked.seed < 2**32
            assert files(tmp_path) == []
            with pytest.raises(ValueError, match="a reader fails"):
                async with running.run(REQUEST, {}):
                    raise ValueError("a reader fails")
            assert files(tmp_path) == []

    asyncio.run(run())


def test_one_at_a_time_in_order_and_none_is_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, engine):
            await asyncio.gather(*(make(running, prompt(str(number))) for number in range(30)))
            assert engine.most_running == 1
            assert sorted(engine.made, key=int) == [str(number) for number in range(30)]
            assert running.queue_len == 0

    asyncio.run(run())


def test_the_limit_counts_those_who_wait(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path, queue_limit=2) as (running, engine):
            waiting = [asyncio.create_task(make(running, prompt("wait"))) for _ in range(3)]
            await until(lambda: engine.running == 1 and running.queue_len == 2)
            with pytest.raises(QueueFull):
                await make(running)
            engine.step.set()
            await asyncio.gather(*waiting)
            await make(running)

    asyncio.run(run())


def test_a_cancelled_request_that_waits_never_starts(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, engine):
            first = asyncio.create_task(make(running, prompt("wait")))
            await until(lambda: engine.running == 1)
            second = asyncio.create_task(make(running, prompt("second")))
            await until(lambda: running.queue_len == 1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            engine.step.set()
            await first
            await make(running, prompt("third"))
            assert engine.made == ["wait", "third"]
            assert files(tmp_path) == []

    asyncio.run(run())


def test_a_cancelled_generation_has_ended_when_its_caller_is_told_so(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, engine):
            task = asyncio.create_task(make(running, prompt("wait")))
            await until(lambda: engine.running == 1)
            for _ in range(3):  # being told three times changes nothing
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine.running == 0
            assert files(tmp_path) == []
            await make(running)

    asyncio.run(run())


def test_a_cancel_that_races_with_the_end_leaves_no_file(tmp_path: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, engine):
            outcomes = set()
            for number in range(200):
                task = asyncio.create_task(make(running))
                await asyncio.sleep(number * 0.0001)
                task.cancel()
                try:
                    await task
                    outcomes.add("made")
                except asyncio.CancelledError:
                    outcomes.add("cancelled")
                assert engine.running == 0
                assert files(tmp_path) == []
            assert outcomes == {"made", "cancelled"}

    asyncio.run(run())


def test_a_bug_is_an_internal_error_without_its_words_and_the_next_one_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, _):
            with pytest.raises(Internal) as caught:
                await make(running, prompt("bug"))
            assert "secret" not in str(caught.value)
            assert caught.value.__cause__ is None
            with pytest.raises(NotReady):
                await make(running, prompt("not ready"))
            await make(running)

    asyncio.run(run())
    assert caplog.text.count("Traceback") == 1  # the bug's, once; a missing model has none


@pytest.mark.parametrize(
    ("request_", "sources", "error", "field"),
    [
        (prompt("x" * 10_001), {}, InvalidRequest, "prompt"),
        (REQUEST.model_copy(update={"keyframes": (Keyframe(image="k", frame=1),)}), {"k": "?"}, UnsupportedMedia, "k"),
        (REQUEST.model_copy(update={"audio": AudioTrack(source="a")}), {"a": b"no sound"}, UnsupportedMedia, "a"),
    ],
)
def test_what_is_wrong_never_reaches_the_engine(
    tmp_path: Path, request_: GenerationRequest, sources: Any, error: type[Exception], field: str
) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, engine):
            with pytest.raises(error) as caught:
                async with running.run(request_, sources):
                    pass
            assert caught.value.field == field  # type: ignore[attr-defined]
            assert engine.most_running == 0
            assert running.queue_len == 0

    asyncio.run(run())


def test_a_sound_that_ends_before_the_clip_begins_is_refused(tmp_path: Path, data: Path) -> None:
    async def run() -> None:
        async with studio(tmp_path) as (running, _):
            late = REQUEST.model_copy(update={"audio": AudioTrack(source="a", start=500.0)})
            with pytest.raises(InvalidRequest, match=r"6\.\d+ seconds") as caught:
                async with running.run(late, {"a": (data / "speech.mp3").read_bytes()}):
                    pass
            assert caught.value.field == "audio_start"

    asyncio.run(run())


def test_progress_begins_in_the_queue(tmp_path: Path) -> None:
    async def run() -> None:
        seen: list[str] = []
        async with studio(tmp_path) as (running, _):
            await make(running, on_progress=lambda progress: seen.append(str(progress)))
        assert seen == ["queued", "denoising 0/1"]

    asyncio.run(run())
