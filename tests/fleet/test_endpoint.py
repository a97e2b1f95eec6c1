"""EndpointEngine against a stand-in for RunPod's cloud, whose answers a test can choose."""

import base64
import io
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from runpod_cloud import ENDPOINT, KEY, Answer, Cloud, CloudJob, results_of, runpod_cloud

from ltx2.engine import CancelFlag, Clip, Progress
from ltx2.errors import (
    Canceled,
    EngineDown,
    Internal,
    InvalidRequest,
    LTX2Error,
    MediaTooLarge,
    NotReady,
    OutOfMemory,
    TimedOut,
    WorkerCrashed,
)
from ltx2.fleet import arrival, following, parcel, pulse, remote
from ltx2.fleet.answers import progress_of
from ltx2.fleet.endpoint import EndpointEngine
from ltx2.formats import OutputFormat
from ltx2.media import bucket as bucket_module
from ltx2.media.probe import probe_sound, probe_video
from ltx2.payload import parse, view
from ltx2.request import AudioTrack, GenerationRequest, Keyframe, Output, Retake
from ltx2.settings import Settings

LONG = 60
"""Seconds that are enough for anything here, on any machine."""
SMALL = GenerationRequest(prompt="a secret lamp", width=64, height=64, num_frames=9, num_inference_steps=2, seed=7)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with runpod_cloud() as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask after jobs, and try again, more often than a server would."""
    monkeypatch.setattr(pulse, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(following, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(following, "PAUSE", 0.1)
    monkeypatch.setattr(following, "PAUSE_UNHEARD", 0.2)
    monkeypatch.setattr(following, "CANCEL_PAUSES", (0.0, 0.05, 0.05))
    monkeypatch.setattr(arrival, "FETCH_PAUSES", (0.05, 0.05, 0.05))
    monkeypatch.setattr(bucket_module, "PAUSES", (0.05,))


def settings_for(cloud: Cloud, folder: Path, **more: Any) -> Settings:
    names = {"runpod_endpoint": ENDPOINT, "runpod_api_key": KEY, "runpod_base_url": cloud.base_url}
    return Settings(**{"data_dir": folder / "data", **names} | more)


@contextmanager
def engine_for(cloud: Cloud, folder: Path, **more: Any) -> Iterator[EndpointEngine]:
    engine = EndpointEngine(settings_for(cloud, folder, **more))
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(cloud: Cloud, tmp_path: Path) -> Iterator[EndpointEngine]:
    with engine_for(cloud, tmp_path) as made:
        yield made


class Generation:
    """One generation, in a thread of its own."""

    def __init__(self, engine: EndpointEngine, request: GenerationRequest = SMALL, **media: bytes) -> None:
        self.flag = CancelFlag()
        self.progress: list[Progress] = []
        self._thread = ThreadPoolExecutor(1)
        self._work: Future[Clip] = self._thread.submit(engine.generate, request, media, self.progress.append, self.flag)
        self._thread.shutdown(wait=False)

    def clip(self) -> Clip:
        return self._work.result(LONG)

    def error(self) -> Exception:
        error = self._work.exception(LONG)
        assert isinstance(error, Exception)
        return error


def taken(cloud: Cloud) -> CloudJob:
    job = cloud.take("worker", LONG)
    assert job is not None
    return job


def finish(cloud: Cloud, job: CloudJob, folder: Path) -> None:
    cloud.told(job.id, {"output": results_of(job, folder)})


def notes(folder: Path) -> list[Path]:
    return list((folder / "data" / "engine" / "runpod").glob("*"))


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "data").rglob("*") if path.is_file()]


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"runpod_endpoint": None}, "LTX2_RUNPOD_ENDPOINT"),
        ({"runpod_api_key": None}, "RUNPOD_API_KEY"),
        ({"runpod_api_key": "ключ"}, "RUNPOD_API_KEY"),
        ({"runpod_api_key": "one\ntwo"}, "RUNPOD_API_KEY"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(
    cloud: Cloud, tmp_path: Path, wrong: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        EndpointEngine(settings_for(cloud, tmp_path, **wrong))
    assert caught.value.field == name


def test_a_key_may_have_a_line_feed_behind_it(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path, runpod_api_key=f"{KEY}\n") as engine:
        engine.load()


def test_a_clip_comes_back_with_its_facts_and_its_progress(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path
) -> None:
    engine.load()
    before = engine.status()
    assert (before.ready, before.fault, before.recovers, before.seats, before.loaded) == (True, None, True, 8, ())
    run = Generation(engine)
    until(lambda: run.progress == [Progress("queued")])
    job = taken(cloud)
    assert job.body["policy"] == {"executionTimeout": 3_600_000, "ttl": 90_000_000}
    assert job.input["prompt"] == "a secret lamp"
    (note,) = notes(tmp_path)
    assert json.loads(note.read_text()) == {"id": job.id, "media": []}
    cloud.told(job.id, {"status": "IN_PROGRESS", "output": {"phase": "denoising", "step": 1, "steps": 2}})
    until(lambda: Progress("denoising", 1, 2) in run.progress)
    finish(cloud, job, tmp_path)
    clip = run.clip()
    assert [one.phase for one in run.progress if one.phase != "loading"] == ["queued", "denoising"]
    assert (clip.width, clip.height, clip.num_frames, clip.fps, clip.seed) == (64, 64, 9, 25, 7)
    assert (clip.steps, clip.stages, clip.model, clip.audio_sample_rate) == (2, 1, "fake", 48_000)
    assert clip.seconds.keys() == {"loading", "encoding", "denoising", "decoding", "muxing"}
    assert clip.provenance is not None
    assert (clip.provenance.model, clip.provenance.seed) == ("fake", 7)
    assert clip.prompt is None  # it is the request's
    assert probe_video(clip.path).num_frames == 9
    assert files(tmp_path) == [clip.path]
    assert engine.status().loaded == ("fake",)
    assert cloud.count("run") == 1


def test_a_sound_alone_comes_back(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine, SMALL.model_copy(update={"output": Output(format="flac")}))
    finish(cloud, taken(cloud), tmp_path)
    clip = run.clip()
    assert clip.path.suffix == ".flac"
    assert probe_sound(clip.path).sample_rate == clip.audio_sample_rate


def test_another_seed_is_tried_there_and_told_here(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    wanted = {"prompt": "flaw=silent@7", "retry_if": ("silent",)}
    run = Generation(engine, SMALL.model_copy(update=wanted))
    job = taken(cloud)
    assert job.input["retry_if"] == ["silent"]
    finish(cloud, job, tmp_path)
    clip = run.clip()
    assert (clip.seed, clip.retried_for) == (8, ("silent",))
    assert clip.quality is not None
    assert (clip.quality.silence, clip.quality.frozen_frames) == (0, 0)


def test_a_prompt_that_was_written_out_there_is_told_here(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine, SMALL.model_copy(update={"enhance_prompt": True}))
    job = taken(cloud)
    assert job.input["enhance_prompt"] is True
    finish(cloud, job, tmp_path)
    assert run.clip().prompt == "a secret lamp, in detail"


def test_a_worker_that_is_older_tells_less(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    new = {"prompt", "quality", "retried_for", "provenance"}
    told = {name: value for name, value in results_of(job, tmp_path).items() if name not in new}
    cloud.told(job.id, {"output": told | {"of_a_newer_one": {"score": 1}}})
    clip = run.clip()
    assert (clip.prompt, clip.quality, clip.retried_for, clip.provenance) == (None, None, (), None)


def test_media_travel_as_data_urls_and_errors_name_them_as_the_request_does(
    cloud: Cloud, engine: EndpointEngine, data: Path
) -> None:
    photo, speech = (data / "photo.jpg").read_bytes(), (data / "speech.mp3").read_bytes()
    shown = (Keyframe(image="images[0]", frame="first"), Keyframe(image="images[1]", frame="last", strength=0.5))
    request = SMALL.model_copy(update={"keyframes": shown, "audio": AudioTrack(source="sound")})
    run = Generation(engine, request, **{"images[0]": photo, "images[1]": photo, "sound": speech})
    job = taken(cloud)
    parsed, sources = parse(job.input)
    assert parsed.keyframes[1].strength == 0.5
    assert {str(source).partition(",")[0] for source in sources.values()} == {
        "data:image/jpeg;base64",
        "data:audio/mpeg;base64",
    }
    told = {"error_code": "unsupported_media", "field": "keyframes[1].image"}
    cloud.told(job.id, {"error": "keyframes[1].image: found a GIF image", "output": told})
    error = run.error()
    assert isinstance(error, InvalidRequest)
    assert (error.code, error.field, error.message) == ("unsupported_media", "images[1]", "found a GIF image")


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(b"\0\0\0\x18ftypmp42", "video/mp4"), (b"\x1a\x45\xdf\xa3", "video/webm")],
)
def test_a_video_travels_and_says_how_large_the_clip_is(
    cloud: Cloud, engine: EndpointEngine, data: bytes, media_type: str
) -> None:
    request = SMALL.model_copy(update={"video": "film", "retake": Retake(start=0, end=0.1, streams="sound")})
    run = Generation(engine, request, film=data)
    job = taken(cloud)
    assert job.input["video"] == f"data:{media_type};base64," + base64.b64encode(data).decode()
    assert not {"width", "height", "num_frames", "fps"} & job.input.keys()
    parsed, _ = parse(job.input)
    assert (parsed.video, parsed.retake, parsed.mode) == ("video", request.retake, "Retake")
    told = {"error_code": "unsupported_media", "field": "video"}
    cloud.told(job.id, {"error": "video: no pictures", "output": told})
    assert run.error().field == "film"


EXCEPTION = json.dumps({"error_type": "<class 'ZeroDivisionError'>", "error_traceback": "/secret", "hostname": "h"})


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"error": "no room (fewer frames)", "output": {"error_code": "out_of_memory"}}, OutOfMemory, "no room (f"),
        ({"error": "lost", "output": {"error_code": "worker_crashed"}}, WorkerCrashed, "lost"),
        ({"error": "no model", "output": {"error_code": "not_ready"}}, NotReady, "no model"),
        ({"error": "what?", "output": {"error_code": "of-a-later-version"}}, Internal, "what?"),
        ({"error": ["?"], "output": {"error_code": "timeout", "field": 3}}, TimedOut, "failed at the RunPod"),
        ({"error": "x" * 5000, "output": {"error_code": "internal"}}, Internal, "x" * 999 + "…"),
        ({"error": "job timed out after 3 retries"}, WorkerCrashed, "the RunPod worker was lost"),
        ({"error": EXCEPTION}, Internal, "the RunPod worker failed; its log says why"),
        ({"output": {"error": "no", "error_code": "content_refused"}}, LTX2Error, "no"),
        ({"output": None}, Internal, "too large"),
        ({"output": "a string"}, Internal, "its result is no JSON object"),
        ({"output": {"images": []}}, Internal, "cannot be used: audio_sample_rate, duration_seconds"),
    ],
)
def test_a_failure_comes_through(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, answer: Any, kind: type[LTX2Error], words: str
) -> None:
    run = Generation(engine)
    job = taken(cloud)
    cloud.told(job.id, answer)
    error = run.error()
    assert isinstance(error, kind)
    assert words in str(error)
    assert "secret" not in str(error)
    assert not isinstance(error, EngineDown)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("state", "kind"), [("TIMED_OUT", TimedOut), ("CANCELLED", Canceled)])
def test_what_runpod_has_ended(cloud: Cloud, engine: EndpointEngine, state: str, kind: type[LTX2Error]) -> None:
    run = Generation(engine)
    job = taken(cloud)
    with cloud.changed:
        job.state = state
    assert isinstance(run.error(), kind)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": "plain text"}, "no data URL"),
        ({"video": "data:video/mp4;base64,####"}, "not base64"),
        ({"video": "data:video/mp4;base64,R0lGODlh"}, "it gave a GIF image"),
        ({"video": "data:video/mp4;base64," + base64.b64encode(b"\0\0\0\x18ftypmp42" + bytes(99)).decode()}, "no clip"),
        ({"video": None}, "no video in its result"),
        ({"video": None, "video_path": "/runpod-volume/x.mp4"}, "on the endpoint's volume"),
        ({"video": None, "video_url": "http://127.0.0.1:9/x.mp4?X-Amz-Signature=secret"}, "cannot be fetched"),
        ({"seed": "seven"}, "cannot be used: seed"),
        ({"num_frames": True}, "cannot be used: num_frames"),
        # what is learned from clips would be reckoned with these
        ({"num_frames": 10**12}, "cannot be used: num_frames"),
        ({"num_inference_steps": -1}, "cannot be used: num_inference_steps"),
        ({"output_format": "webm"}, "it gave a webm"),
    ],
)
def test_a_result_that_is_no_clip_is_an_error_and_leaves_nothing(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run = Generation(engine)
    job = taken(cloud)
    told = results_of(job, tmp_path) | change
    cloud.told(
        job.id, {"output": {name: value for name, value in told.items() if value is not None or name != "video"}}
    )
    error = run.error()
    assert isinstance(error, Internal)
    assert words in str(error)
    assert "secret" not in str(error)
    assert files(tmp_path) == []


def test_a_clip_of_another_size_is_refused(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    other = CloudJob({"input": {**job.input, "width": 96}})
    cloud.told(job.id, {"output": results_of(other, tmp_path)})
    assert "the size of its clip is 96x64 and should be 64x64" in str(run.error())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_frames": 17}, "the number of frames of its clip is 17 and should be 9"),
        ({"include_audio": False}, "the sample rate of its clip is None and should be 48000"),
    ],
)
def test_a_clip_that_lacks_something_is_refused(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run = Generation(engine)
    job = taken(cloud)
    other = results_of(CloudJob({"input": {**job.input, **change}}), tmp_path)
    cloud.told(job.id, {"output": results_of(job, tmp_path) | {"video": other["video"]}})
    assert words in str(run.error())
    assert files(tmp_path) == []


def test_a_clip_that_was_cut_short_is_refused(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    told = results_of(job, tmp_path)
    header, _, text = told["video"].partition(",")
    half = base64.b64encode(base64.b64decode(text)[: len(text) // 2]).decode()
    cloud.told(job.id, {"output": told | {"video": f"{header},{half}"}})
    assert isinstance(run.error(), Internal)
    assert files(tmp_path) == []


@pytest.mark.parametrize("output_format", get_args(OutputFormat))
def test_a_clip_of_every_format_is_taken(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, output_format: OutputFormat
) -> None:
    run = Generation(engine, SMALL.model_copy(update={"output": Output(format=output_format), "fps": 60.0}))
    finish(cloud, taken(cloud), tmp_path)
    assert run.clip().path.suffix == f".{output_format}"


def test_times_that_cannot_be_can_be_added_up(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    cloud.told(job.id, {"output": results_of(job, tmp_path, phase_seconds={"denoising": 1e308, "muxing": 1e308})})
    assert view(SMALL, run.clip())["generation_time_seconds"] == 2 * 604_800


@pytest.mark.parametrize(
    "told",
    [
        None,
        "half done",
        [1],
        {"phase": "dreaming"},
        {"phase": "queued"},
        {"phase": "denoising", "step": -1},
        {"phase": "denoising", "step": True},
        {"phase": "denoising", "step": 1.5},
    ],
)
def test_progress_may_be_anything(told: Any) -> None:
    assert progress_of({"status": "IN_PROGRESS", "output": told}) is None


def test_progress_that_cannot_be_is_made_so_that_it_can() -> None:
    told = {"phase": "denoising", "step": 9, "steps": 4, "fraction": 0.5}
    assert progress_of({"status": "IN_PROGRESS", "output": told}) == Progress("denoising", 4, 4)


def test_what_says_nothing_of_its_progress_is_loading(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    cloud.told(job.id, {"status": "IN_PROGRESS", "output": "half done"})
    until(lambda: Progress("loading") in run.progress)
    finish(cloud, job, tmp_path)
    run.clip()


def test_a_job_whose_worker_was_lost_waits_again(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    cloud.told(job.id, {"status": "IN_PROGRESS", "output": {"phase": "encoding"}})
    until(lambda: Progress("encoding") in run.progress)
    with cloud.changed:
        job.state, job.output = "IN_QUEUE", None
    until(lambda: run.progress[-1] == Progress("queued"))
    finish(cloud, taken(cloud), tmp_path)
    assert run.clip().num_frames == 9


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_cancel_comes_through(cloud: Cloud, engine: EndpointEngine, tmp_path: Path, has_begun: bool) -> None:
    run = Generation(engine)
    cloud.wait_for(lambda: bool(cloud.jobs))
    if has_begun:
        taken(cloud)
    until(lambda: bool(run.progress))
    run.flag.set()
    assert isinstance(run.error(), Canceled)
    assert [job.state for job in cloud.jobs.values()] == ["CANCELLED"]
    assert len(cloud.stopped) == has_begun
    assert files(tmp_path) == []


def test_a_cancel_that_cannot_be_delivered_is_one_all_the_same(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Generation(engine)
    until(lambda: bool(run.progress))
    cloud.refusal = (500, {})
    run.flag.set()
    assert isinstance(run.error(), Canceled)
    assert cloud.count("cancel") == 3
    assert "could not be cancelled at RunPod" in caplog.text
    assert files(tmp_path) == []


def test_a_request_that_was_cancelled_before_is_not_sent(cloud: Cloud, engine: EndpointEngine) -> None:
    flag = CancelFlag()
    flag.set()
    with pytest.raises(Canceled):
        engine.generate(SMALL, {}, lambda _: None, flag)
    assert cloud.asked in ([], ["health"])


def test_what_takes_too_long_is_cancelled_there(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path, deadline_seconds=0.5) as engine:
        run = Generation(engine)
        job = taken(cloud)
        error = run.error()
    assert isinstance(error, TimedOut)
    assert "longer than the 0.5 seconds" in str(error)
    assert job.state == "CANCELLED"
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((503, {"error": "no"}), "is down (it answers 503)"),
        ((500, "<html>oops"), "is down (it answers 500)"),
        ((429, {}), "takes no more requests"),
        ((401, {}), "RUNPOD_API_KEY"),
        ((403, {}), "RUNPOD_API_KEY"),
        ((404, {}), "LTX2_RUNPOD_ENDPOINT"),
        ((302, {}), "it answers 302"),
        ((200, "<html>hello"), "no RunPod endpoint"),
        ((200, [1]), "no RunPod endpoint"),
        ((200, {"ok": True}), "no RunPod endpoint"),
        ((0, None), "cannot be reached"),
    ],
)
def test_an_endpoint_that_is_down_says_so_and_comes_back(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, refusal: Answer, words: str
) -> None:
    cloud.refusal = refusal
    with pytest.raises(EngineDown) as caught:
        engine.load()
    status = engine.status()
    assert status.fault == caught.value.message
    assert words in status.fault
    assert (status.ready, status.recovers) == (False, True)
    assert not any(each in status.fault for each in (KEY, ENDPOINT, "127.0.0.1"))
    with pytest.raises(EngineDown):
        engine.generate(SMALL, {}, lambda _: None, CancelFlag())
    cloud.refusal = None
    until(lambda: engine.status().fault is None)
    assert "elsewhere" not in cloud.asked
    assert engine.status().ready
    run = Generation(engine)
    finish(cloud, taken(cloud), tmp_path)
    run.clip()


ODD = ["[" * 100_000, '{"status": "COMPLETED", "workers": {"idle": ' + "1" * 5000 + "}}", "x" * 200_000, ""]
"""Answers that cannot be read: too deep, a number that is too long, too large, nothing."""


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("odd", ODD, ids=["deep", "number", "large", "empty"])
def test_answers_that_cannot_be_read_end_nothing(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, odd: str
) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 100_001)
    cloud.scripted = {route: deque([(status, odd)]) for route in ("health", "status")}
    with pytest.raises(EngineDown):
        engine.load()
    until(lambda: engine.status().ready)
    run = Generation(engine)
    finish(cloud, taken(cloud), tmp_path)
    run.clip()
    cloud.scripted["run"] = deque([(status, odd)])
    was_not_begun = status == 500 and len(odd) <= remote.MOST_BYTES
    assert isinstance(Generation(engine).error(), EngineDown if was_not_begun else WorkerCrashed)


def test_a_closed_port_is_a_fault_at_once(cloud: Cloud, engine: EndpointEngine) -> None:
    cloud.shut()
    began = time.monotonic()
    with pytest.raises(EngineDown, match="cannot be reached"):
        engine.load()
    assert time.monotonic() - began < 10  # the official client alone tries for half a minute
    cloud.open()
    until(lambda: engine.status().ready)


@pytest.mark.parametrize("refusal", [(503, {}), (429, {}), (401, {}), (404, {}), (302, {})])
def test_a_job_that_is_not_taken_waits_until_the_endpoint_is_well(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, refusal: Answer
) -> None:
    engine.load()
    cloud.scripted["run"] = deque([refusal])
    assert isinstance(Generation(engine).error(), EngineDown)
    assert engine.status().fault is not None
    assert files(tmp_path) == []
    until(lambda: engine.status().fault is None)
    run = Generation(engine)
    finish(cloud, taken(cloud), tmp_path)
    run.clip()
    assert len(cloud.jobs) == 1


@pytest.mark.parametrize("status", [500, 403])
def test_one_job_that_is_never_taken_does_not_hold_up_the_others(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, status: int
) -> None:
    engine.load()
    errors: list[Exception] = []
    while not errors or isinstance(errors[-1], EngineDown):
        assert len(errors) < 4
        until(lambda: engine.status().fault is None)
        with cloud.changed:
            cloud.scripted["run"] = deque([(status, {})])
        errors.append(Generation(engine).error())
        until(lambda: engine.status().fault is None)
        other = Generation(engine, SMALL.model_copy(update={"seed": len(errors)}))
        finish(cloud, taken(cloud), tmp_path)
        other.clip()
    assert isinstance(errors[-1], Internal)
    assert len(errors) == 4


def test_a_job_that_cannot_be_sent_waits(cloud: Cloud, engine: EndpointEngine) -> None:
    engine.load()
    cloud.shut()
    assert isinstance(Generation(engine).error(), EngineDown)
    assert engine.status().fault == "the RunPod endpoint cannot be reached"


@pytest.mark.parametrize("answer", [(0, None), (200, "<html>"), (200, {}), (200, {"id": "../health"})])
def test_a_lost_answer_counts_as_a_try(cloud: Cloud, engine: EndpointEngine, tmp_path: Path, answer: Answer) -> None:
    cloud.scripted["run"] = deque([answer])
    assert isinstance(Generation(engine).error(), WorkerCrashed)
    assert cloud.count("run") == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "kind", "field"),
    [
        ((400, {"error": "bad request"}), Internal, None),
        ((413, "too large"), Internal, None),
        (
            (400, {"error": "input.width: too wide", "error_code": "invalid_request", "field": "input.width"}),
            InvalidRequest,
            "width",
        ),
        (
            (400, {"error": "no", "error_code": "unsupported_media", "field": "input.keyframes[0].image"}),
            InvalidRequest,
            "my_image",
        ),
    ],
)
def test_a_request_that_is_refused_has_failed(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, answer: Answer, kind: type[LTX2Error], field: str | None
) -> None:
    cloud.scripted["run"] = deque([answer])
    request = SMALL.model_copy(update={"keyframes": (Keyframe(image="my_image", frame=3),)})
    error = Generation(engine, request, my_image=b"GIF89a").error()
    assert isinstance(error, kind)
    assert error.field == field
    assert engine.status().fault is None
    assert files(tmp_path) == []


def test_answers_that_are_lost_on_the_way_mean_nothing(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    lost: list[Answer] = [(500, {}), (0, None), (200, "<html>"), (404, {}), (200, {}), (200, {"status": 3}), (401, {})]
    cloud.scripted["status"] = deque([*lost, (200, {"status": "RETRYING"})])
    run = Generation(engine)
    finish(cloud, taken(cloud), tmp_path)
    assert run.clip().num_frames == 9


def test_a_job_that_runpod_has_forgotten_is_lost(cloud: Cloud, engine: EndpointEngine, tmp_path: Path) -> None:
    run = Generation(engine)
    job = taken(cloud)
    with cloud.changed:
        del cloud.jobs[job.id]
    assert isinstance(run.error(), WorkerCrashed)
    assert files(tmp_path) == []


def test_silence_has_an_end(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path, deadline_seconds=2) as engine:
        run = Generation(engine)
        until(lambda: bool(run.progress))
        cloud.refusal = (500, {})
        error = run.error()
    assert isinstance(error, WorkerCrashed)
    assert "nothing was heard" in str(error)


def test_a_server_that_ends_lets_its_jobs_go_on_and_the_next_one_follows_them(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path) as first:
        runs = [Generation(first) for _ in range(2)]
        cloud.wait_for(lambda: len(cloud.jobs) == 2)
        until(lambda: all(run.progress for run in runs))
        job = taken(cloud)
    assert [type(run.error()) for run in runs] == [EngineDown, EngineDown]
    assert cloud.count("cancel") == 0
    assert len(notes(tmp_path)) == 2
    with pytest.raises(EngineDown):
        first.generate(SMALL, {}, lambda _: None, CancelFlag())
    finish(cloud, job, tmp_path)  # while no server is there
    with engine_for(cloud, tmp_path) as second:
        second.load()
        again = [Generation(second) for _ in range(2)]
        finish(cloud, taken(cloud), tmp_path)
        clips = [run.clip() for run in again]
        assert len({clip.path for clip in clips}) == 2
        assert cloud.count("run") == 2  # no more than before
        assert notes(tmp_path) == []
        new = Generation(second)
        cloud.wait_for(lambda: len(cloud.jobs) == 3)
        finish(cloud, taken(cloud), tmp_path)
        new.clip()


def test_what_failed_while_no_server_was_there_is_not_begun_again(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path) as first:
        run = Generation(first)
        cloud.wait_for(lambda: len(cloud.jobs) == 1)
        until(lambda: bool(run.progress))
        job = taken(cloud)
    assert isinstance(run.error(), EngineDown)
    cloud.told(job.id, {"error": "no room", "output": {"error_code": "out_of_memory"}})
    with engine_for(cloud, tmp_path) as second:
        second.load()
        assert isinstance(Generation(second).error(), OutOfMemory)
    assert cloud.count("run") == 1
    assert notes(tmp_path) == []


def test_a_server_that_was_killed_leaves_a_note_and_the_next_one_follows_it(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path) as first:
        run = Generation(first)
        until(lambda: bool(run.progress))
        (note,) = notes(tmp_path)
        kept = note.read_bytes()
        run.flag.set()
        run.error()
    (cancelled,) = cloud.jobs
    note.write_bytes(kept)  # a killed server removes nothing
    work = tmp_path / "data" / "work"
    work.mkdir()
    (work / ".endpoint-0.mp4.0.part").write_bytes(b"half a clip")
    (work / "endpoint-1.mp4").write_bytes(b"a clip that nobody has taken")
    (work / "0.mp4").write_bytes(b"of somebody else")
    for left in work.iterdir():
        os.utime(left, (time.time() - 5, time.time() - 5))
    with engine_for(cloud, tmp_path) as second:
        again = Generation(second)  # of no use, so that it is begun anew
        cloud.wait_for(lambda: len(cloud.jobs) == 2)
        finish(cloud, taken(cloud), tmp_path)
        clip = again.clip()
        assert cloud.jobs[cancelled].state == "CANCELLED"
        second.load()
        assert sorted(files(tmp_path)) == sorted([clip.path, work / "0.mp4"])


def test_a_job_of_an_earlier_server_of_which_nothing_is_heard_keeps_nobody_else(cloud: Cloud, tmp_path: Path) -> None:
    with engine_for(cloud, tmp_path) as first:
        run = Generation(first)
        until(lambda: bool(run.progress))
    assert isinstance(run.error(), EngineDown)
    with engine_for(cloud, tmp_path) as second:
        second.load()
        cloud.scripted["status"] = deque([(500, {})] * 1000)
        again = Generation(second)
        until(lambda: len(cloud.scripted["status"]) < 998)
        assert second.status().fault is None
        assert len(notes(tmp_path)) == 1
        again.flag.set()
        assert isinstance(again.error(), Canceled)
    assert [job.state for job in cloud.jobs.values()] == ["CANCELLED"]
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"id": 3, "media": []}',
        b'{"id": "../health", "media": []}',
        b'{"id": "a-job"}',
        b'{"id": "a-job", "media": ["../else"]}',
    ],
)
def test_a_note_that_says_nothing_is_passed_over(cloud: Cloud, tmp_path: Path, content: bytes) -> None:
    with engine_for(cloud, tmp_path) as engine:
        folder = tmp_path / "data" / "engine" / "runpod"
        folder.mkdir(parents=True)
        (folder / f"{parcel.digest_of(SMALL, {})}-1.json").write_bytes(content)
        run = Generation(engine)
        finish(cloud, taken(cloud), tmp_path)
        run.clip()
        assert notes(tmp_path) == []


def test_notes_of_yesterday_are_removed(engine: EndpointEngine, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "engine" / "runpod"
    folder.mkdir(parents=True)
    for name, age in (("old", 90_000), ("new", 80_000)):
        (folder / f"{name}.json").write_text("{}")
        os.utime(folder / f"{name}.json", (time.time() - age, time.time() - age))
    engine.load()
    assert [path.name for path in notes(tmp_path)] == ["new.json"]


class Shelf:
    """A bucket that asks for no signature."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.ever: dict[str, bytes] = {}
        self.unlucky = 0
        """How many GETs are answered with 500."""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            shelf.kept[self.name] = shelf.ever[self.name] = body
            self._answer(200)

        def do_DELETE(self) -> None:
            self._answer(204 if shelf.kept.pop(self.name, None) is not None else 404)

        def do_GET(self) -> None:
            if shelf.unlucky:
                shelf.unlucky -= 1
                return self._answer(500)
            found = shelf.kept.get(self.name)
            return self._answer(404) if found is None else self._answer(200, found)

        @property
        def name(self) -> str:
            return self.path.partition("?")[0]

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shelf.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield shelf
    server.shutdown()
    thread.join()
    server.server_close()


def bucket(shelf: Shelf) -> Mapping[str, Any]:
    secrets = {"bucket_access_key_id": "id", "bucket_secret_access_key": "bucket-secret"}
    return {"bucket_endpoint_url": shelf.url, "bucket_name": "clips", **secrets}


def noise(side: int) -> bytes:
    """A PNG of 3 * side * side bytes and a little more."""
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(file, "png", compress_level=0)
    return file.getvalue()


def test_large_media_lie_in_the_bucket_until_the_clip_is_there(cloud: Cloud, tmp_path: Path, shelf: Shelf) -> None:
    shown = (Keyframe(image="first", frame="first"), Keyframe(image="last", frame="last"))
    request, media = SMALL.model_copy(update={"keyframes": shown}), {"first": noise(1100), "last": noise(1200)}
    with engine_for(cloud, tmp_path, **bucket(shelf)) as first:
        run = Generation(first, request, **media)
        job = taken(cloud)
        assert sorted(map(len, shelf.kept.values())) == sorted(map(len, media.values()))
        until(lambda: bool(run.progress))
    assert isinstance(run.error(), EngineDown)
    assert len(shelf.kept) == 2  # the worker still needs them
    with engine_for(cloud, tmp_path, **bucket(shelf)) as second:
        again = Generation(second, request, **media)
        links = [str(source) for source in parse(job.input)[1].values()]
        assert all(link.startswith(f"{shelf.url}/clips/ltx2/inputs/") for link in links)
        cloud.told(job.id, {"output": results_of(CloudJob({"input": parcel_without_media(job)}), tmp_path)})
        again.clip()
    assert cloud.count("run") == 1
    assert shelf.kept == {}
    assert len(shelf.ever) == 2


def parcel_without_media(job: CloudJob) -> dict[str, Any]:
    return {name: value for name, value in job.input.items() if name != "keyframes"}


def test_large_media_without_a_bucket_are_refused_by_the_name_of_the_largest(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path
) -> None:
    shown = (Keyframe(image="first", frame="first"), Keyframe(image="last", frame="last"))
    request = SMALL.model_copy(update={"keyframes": shown})
    error = Generation(engine, request, first=noise(1000), last=noise(1500)).error()
    assert isinstance(error, MediaTooLarge)
    assert error.field == "last"
    assert "bucket" in str(error.hint)
    assert cloud.count("run") == 0
    assert files(tmp_path) == []


def test_a_bucket_that_cannot_be_used_fails_the_request(cloud: Cloud, tmp_path: Path, shelf: Shelf) -> None:
    request = SMALL.model_copy(update={"keyframes": (Keyframe(image="image_start", frame="first"),)})
    settings = {**bucket(shelf), "bucket_endpoint_url": "http://127.0.0.1:9"}
    with engine_for(cloud, tmp_path, **settings) as engine:
        error = Generation(engine, request, image_start=noise(1600)).error()
    assert isinstance(error, NotReady)
    assert not isinstance(error, EngineDown)
    assert "bucket-secret" not in str(error)
    assert cloud.count("run") == 0
    assert files(tmp_path) == []


def test_a_clip_is_fetched_from_where_the_worker_has_put_it(cloud: Cloud, tmp_path: Path, shelf: Shelf) -> None:
    with engine_for(cloud, tmp_path, url_allow=f"127.0.0.1:{shelf.port}") as engine:
        run = Generation(engine)
        job = taken(cloud)
        told = results_of(job, tmp_path, url_expires_at="2026-11-22T00:00:00Z")
        shelf.kept["/clip.mp4"] = base64.b64decode(told.pop("video").partition(",")[2])
        shelf.unlucky = 2
        cloud.told(job.id, {"output": told | {"video_url": f"{shelf.url}/clip.mp4?X-Amz-Signature=secret"}})
        clip = run.clip()
        assert clip.path.read_bytes() == shelf.kept["/clip.mp4"]
        assert files(tmp_path) == [clip.path]


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_clip_that_does_not_come_keeps_nobody(cloud: Cloud, tmp_path: Path, is_cancelled: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with engine_for(cloud, tmp_path, url_allow=place) as engine:
            run = Generation(engine)
            job = taken(cloud)
            told = results_of(job, tmp_path)
            del told["video"]
            cloud.told(job.id, {"output": told | {"video_url": f"http://{place}/clip.mp4"}})
            caller, _ = silent.accept()
            with caller:
                if is_cancelled:
                    run.flag.set()
                else:
                    engine.close()
                assert isinstance(run.error(), Canceled if is_cancelled else EngineDown)
    assert [path.suffix for path in files(tmp_path)] == ([] if is_cancelled else [".json"])


@pytest.mark.parametrize(("size", "words"), [(0, "404"), (3_000_000, "more than")])
def test_a_clip_that_cannot_be_fetched_is_an_error(
    cloud: Cloud, tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, size: int, words: str
) -> None:
    monkeypatch.setattr(arrival, "FETCH_PAUSES", (0.01,))
    if size:
        shelf.kept["/clip.mp4"] = bytes(size)
    with engine_for(cloud, tmp_path, url_allow=f"127.0.0.1:{shelf.port}", files_max_gb=0.001) as engine:
        run = Generation(engine)
        job = taken(cloud)
        told = results_of(job, tmp_path) | {"video_url": f"{shelf.url}/clip.mp4?X-Amz-Signature=secret"}
        cloud.told(job.id, {"output": {name: value for name, value in told.items() if name != "video"}})
        error = run.error()
        assert isinstance(error, Internal)
        assert words in str(error)
        assert "secret" not in str(error)
        assert files(tmp_path) == []


def test_a_netrc_does_not_replace_the_key(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    engine.load()
    assert cloud.count("health") == 1


def test_nothing_that_is_secret_is_logged(
    cloud: Cloud, engine: EndpointEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.load()
    run = Generation(engine)
    finish(cloud, taken(cloud), tmp_path)
    run.clip()
    cloud.refusal = (401, {"error": KEY})
    Generation(engine).error()
    cloud.shut()
    until(lambda: engine.status().fault == "the RunPod endpoint cannot be reached")
    assert caplog.text
    assert not any(secret in caplog.text for secret in (KEY, "a secret lamp", ENDPOINT))


def test_everything_may_be_closed_twice_and_before_it_was_used(cloud: Cloud, tmp_path: Path) -> None:
    engine = EndpointEngine(settings_for(cloud, tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(EngineDown):
        engine.load()
    assert cloud.asked == []
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint health"]
