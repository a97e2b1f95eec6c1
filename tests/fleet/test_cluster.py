"""The engine on a Ray cluster: real Ray on this machine, real actors, and what becomes of each clip when they die.

One cluster is started for all; tests that end theirs are in test_cluster_alone.py.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from clusters import LONG, Generation, Head, actors, below, generate, make, ray_cluster, running, until, works
from PIL import Image

from ltx2.engine import CancelFlag, Engine, Progress
from ltx2.errors import (
    Canceled,
    Failure,
    Internal,
    InvalidRequest,
    NotReady,
    OutOfMemory,
    TimedOut,
    UnsupportedMedia,
    WorkerCrashed,
)
from ltx2.fleet import actor as actor_module
from ltx2.fleet import cluster as cluster_module
from ltx2.fleet.actor import PREFIX, own_folder
from ltx2.fleet.cluster import ClusterEngine
from ltx2.fleet.messages import Cancel
from ltx2.fleet.messages import Generate as Asked
from ltx2.media.probe import probe_sound, probe_video
from ltx2.request import Keyframe
from ltx2.settings import Settings
from processes import free_port

SHORT = 2.0
"""Seconds that a hang may last here."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_cluster(free_port(), cpus=8) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def shared(folder: Path, head: Head) -> Iterator[ClusterEngine]:
    with running(folder, head.address, ray_max_actors=2, residency="idle:1") as engine:
        engine.load()
        yield engine


@pytest.fixture
def engine(shared: ClusterEngine, folder: Path) -> Iterator[ClusterEngine]:
    yield shared
    assert works(shared)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_clip_and_its_progress_cross(engine: ClusterEngine, folder: Path) -> None:
    contract: Engine = engine
    contract.load()
    seen: list[Progress] = []
    clip = contract.generate(make(num_inference_steps=2), {}, seen.append, CancelFlag())
    assert [path for path in folder.rglob("*") if path.is_file()] == [clip.path]
    facts = probe_video(clip.path)
    assert (facts.width, facts.height, facts.num_frames, facts.audio_codec) == (64, 64, 9, "aac")
    denoising = [Progress("denoising", step, 2) for step in range(3)]
    assert seen == [Progress("loading"), Progress("encoding"), *denoising, Progress("decoding"), Progress("muxing")]
    assert (clip.model, clip.seed, clip.steps) == ("fake", 1, 2)
    status = contract.status()
    assert (status.loaded, status.seats, status.fake, status.ready, status.fault) == (("fake",), 2, True, True, None)
    clip.path.unlink()


def test_media_cross_and_so_do_large_clips(engine: ClusterEngine) -> None:
    picture = BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(picture, "PNG")
    assert len(picture.getvalue()) > 2**20
    keyframe = Keyframe(image="image_start", frame=0)
    generate(engine, make(keyframes=(keyframe,)), {"image_start": picture.getvalue()}).path.unlink()
    with pytest.raises(UnsupportedMedia) as caught:
        generate(engine, make(keyframes=(keyframe,)), {"image_start": b"no picture"})
    assert caught.value.field == "image_start"
    clip = generate(engine, make(num_frames=1201, fps=10, output={"format": "wav"}))
    assert clip.path.stat().st_size > actor_module.CHUNK_BYTES
    assert float(probe_sound(clip.path).seconds) == pytest.approx(120.1)
    clip.path.unlink()


def test_an_error_keeps_what_it_says(engine: ClusterEngine) -> None:
    with pytest.raises(OutOfMemory, match="fail=out_of_memory"):
        generate(engine, make("fail=out_of_memory"))
    with pytest.raises(InvalidRequest) as caught:
        generate(engine, make("fail=nonsense"))
    assert caught.value.field == "prompt"
    assert engine.status().restarts == 0


def test_a_bug_is_ours_and_is_logged_here(head: Head, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = ""

    def is_logged() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "RuntimeError: the prompt asked for a bug" in said

    with running(tmp_path, head.address) as engine:
        with pytest.raises(Internal) as caught:
            generate(engine, make("a secret lamp fail=bug"))
        assert caught.value.message == "the generation failed; the server's log says why"
        until(is_logged)
    assert "ltx2.fleet.actor: actor 1: a generation failed" in said
    assert "secret" not in said


def test_a_cancel_is_heeded_within_a_step(engine: ClusterEngine) -> None:
    generation = Generation(engine, make("seconds=600", num_inference_steps=2))
    generation.wait_for("denoising")
    generation.flag.set()
    assert isinstance(generation.error(), Canceled)
    set_before = CancelFlag()
    set_before.set()
    with pytest.raises(Canceled):
        engine.generate(make(), {}, lambda _progress: None, set_before)


def test_a_cancel_reaches_one_that_was_asked_for_first_and_begun_last(engine: ClusterEngine) -> None:
    before = engine.status().restarts
    link = engine._link
    assert link is not None
    for number in (1_000_001, 1_000_000):
        events = link.enter(number)
        link.send(Asked(number, make("seconds=600"), {}))
        while not (isinstance(told := events.get(timeout=LONG), Progress) and told.phase == "denoising"):
            pass
        link.send(Cancel(number))
        while isinstance(answer := events.get(timeout=LONG), Progress):
            pass
        link.leave(number)
        assert isinstance(answer, Failure)
        assert isinstance(answer.error, Canceled)
    assert engine.status().restarts == before


@pytest.mark.parametrize("what", ["segfault", "systemexit", "cuda"])
def test_an_actor_that_dies_is_replaced(engine: ClusterEngine, what: str) -> None:
    before = engine.status().restarts
    with pytest.raises(Internal if what == "cuda" else WorkerCrashed) as caught:
        generate(engine, make(f"fail={what}"))
    if what != "cuda":
        assert caught.value.hint is not None
    assert works(engine)
    assert engine.status().restarts == before + 1


def test_an_actor_that_dies_while_nobody_uses_it_is_replaced(engine: ClusterEngine, head: Head) -> None:
    before = engine.status()
    for pid in actors(below(head.process.pid)):
        os.kill(pid, signal.SIGKILL)
    until(lambda: engine.status().restarts > before.restarts and engine.status().loaded == ("fake",))


def test_two_run_at_the_same_time_and_a_third_waits(engine: ClusterEngine, head: Head) -> None:
    two = [Generation(engine, make("seconds=600")) for _ in range(2)]
    for generation in two:
        generation.wait_for("denoising")
    until(lambda: len(actors(below(head.process.pid))) == 2)
    third = Generation(engine, make("third"))
    fourth = Generation(engine, make("fourth"))
    for generation in (third, fourth):
        generation.wait_for("queued")
    fourth.flag.set()
    assert isinstance(fourth.error(), Canceled)
    assert [progress.phase for progress in third.seen] == ["queued"]
    assert engine.status().idle_seconds == 0
    two[0].flag.set()
    clip = third.clip()
    assert clip.total_seconds < clip.seconds["loading"] + LONG
    clip.path.unlink()
    two[1].flag.set()
    assert [type(generation.error()) for generation in two] == [Canceled, Canceled]
    until(lambda: len(actors(below(head.process.pid))) == 1)  # one is kept, the other one not for long
    assert engine.status().loaded == ("fake",)


def test_what_hangs_is_killed_at_its_deadline(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, deadline_seconds=SHORT) as engine:
        engine.load()
        with pytest.raises(TimedOut, match="2 seconds allowed here"):
            generate(engine, make("fail=hang"))
        until(lambda: engine.status().loaded == ("fake",))  # to wait for an actor has a limit, too
        assert works(engine)
        assert engine.status().restarts == 1


def test_what_does_not_heed_a_cancel_is_killed(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(actors(below(head.process.pid)))
    with running(tmp_path, head.address, heed=0.5) as engine:
        for stopped in ("nothing", "actor", "driver"):
            generation = Generation(engine, make("fail=hang"))
            generation.wait_for("denoising")
            link = engine._link
            assert link is not None
            pids = {"nothing": [], "driver": [link.pid], "actor": set(actors(below(head.process.pid))) - others}
            if stopped == "driver":
                monkeypatch.setattr(cluster_module, "SECONDS_TO_ANSWER", 0.5)
            for pid in pids[stopped]:
                os.kill(pid, signal.SIGSTOP)
            generation.flag.set()
            assert isinstance(generation.error(), Canceled)
            # what was lost with the driver is told of by another thread
            until(lambda killed=stopped, link=link: killed != "driver" or engine._link is not link)
            until(lambda: engine.status().ready)
            assert works(engine)
        assert engine.status().restarts == 3


def test_who_waits_for_a_model_need_not_wait_to_cancel_nor_when_its_actor_dies(head: Head, tmp_path: Path) -> None:
    others = set(actors(below(head.process.pid)))
    with running(tmp_path, head.address, model="load=600") as engine:
        at_once = Generation(engine, make())
        at_once.flag.set()
        assert isinstance(at_once.error(), Canceled)
        generation = Generation(engine, make())
        generation.wait_for("loading")
        assert not engine.status().ready
        generation.flag.set()
        assert isinstance(generation.error(), Canceled)
        waiting = [Generation(engine, make()) for _ in range(2)]
        for generation in waiting:
            generation.wait_for("loading")
        for pid in set(actors(below(head.process.pid))) - others:
            os.kill(pid, signal.SIGKILL)
        assert [type(generation.error()) for generation in waiting] == [WorkerCrashed, WorkerCrashed]


def test_why_there_is_no_model_is_told_to_all_who_wait(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, content_checker="nowhere:allows", ray_max_actors=2) as engine:
        for error in [generation.error() for generation in [Generation(engine, make()) for _ in range(4)]]:
            assert isinstance(error, NotReady)
            assert "nowhere:allows could not be imported" in error.message
            assert error.hint is not None
        status = engine.status()
        assert (status.ready, status.recovers) == (False, False)
        assert status.fault is not None
        assert "nowhere:allows" in status.fault


def test_where_there_is_no_room_a_job_waits(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, device="cuda:1", deadline_seconds=0.5) as engine:
        generation = Generation(engine, make())
        error = generation.error()
        assert isinstance(error, TimedOut)
        assert "no actor was ready within the 0.5 seconds" in error.message
        assert generation.seen == [Progress("queued")]


@pytest.mark.soak
def test_where_there_is_no_room_the_log_says_so(head: Head, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, head.address, device="cuda", deadline_seconds=14) as engine, pytest.raises(TimedOut):
        generate(engine, make())
    assert capfd.readouterr().err.count("waits for a place in the Ray cluster") == 1


@pytest.mark.soak
def test_a_driver_that_hangs_is_killed_after_the_deadlines(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS_TO_ANSWER", 1.0)
    with running(tmp_path, head.address, deadline_seconds=10) as engine:
        generation = Generation(engine, make("seconds=600"))
        generation.wait_for("denoising")
        assert engine._link is not None
        os.kill(engine._link.pid, signal.SIGSTOP)
        error = generation.error()
        assert isinstance(error, WorkerCrashed)
        assert "was lost" in error.message
        until(lambda: engine.status().ready)
        assert works(engine)


def test_nothing_is_told_a_secret(tmp_path: Path) -> None:
    engine = ClusterEngine(Settings(data_dir=tmp_path, api_keys="one", webhook_secret="two", runpod_api_key="three"))
    told = engine._start.settings
    assert (told.api_keys, told.webhook_secret, told.runpod_api_key) == (None, None, None)


def test_to_close_ends_what_is_in_hand_and_may_be_done_again(head: Head, tmp_path: Path) -> None:
    with running(tmp_path, head.address, ray_min_actors=0) as engine:
        engine.load()
        assert (engine.status().loaded, engine.status().ready) == ((), True)
        generation = Generation(engine, make("seconds=600"))
        generation.wait_for("denoising")
        (tmp_path / "engine" / "work" / ".clip.mp4.part").touch()  # as if a clip was just coming
        closing = [threading.Thread(target=engine.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        error = generation.error()
        for thread in closing:
            thread.join()
        assert isinstance(error, WorkerCrashed)
        assert "shut down" in error.message
        with pytest.raises(NotReady, match="is being shut down"):
            generate(engine, make())


def test_an_actor_removes_what_those_that_were_killed_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, left, young = own_folder(), tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}young"
    long_ago = time.time() - 3600
    for folder in (left, young):
        folder.mkdir()
        (folder / "lock").touch()
    for folder in (living, left):
        os.utime(folder / "lock", (long_ago, long_ago))
    assert {path.name for path in tmp_path.iterdir()} == {living.name, left.name, young.name}
    mine = own_folder()
    assert {path.name for path in tmp_path.iterdir()} == {living.name, young.name, mine.name}


def test_bounds_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ClusterEngine(Settings(data_dir=tmp_path, ray_min_actors=3, ray_max_actors=2))
    assert caught.value.field == "LTX2_RAY_MAX_ACTORS"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", ":6379", "local", "http://head:6379/"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ClusterEngine(Settings(data_dir=tmp_path, ray_address=address))
    assert caught.value.field == "LTX2_RAY_ADDRESS"
