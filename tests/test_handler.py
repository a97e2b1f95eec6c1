"""The RunPod worker: at a laptop's command line, and in the SDK's real loop against a stand-in control plane."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane, control_plane
from quick import QuickEngine

import handler
from ltx2.fake import FakeEngine
from ltx2.media.probe import probe_video
from ltx2.settings import Settings
from ltx2.studio.direct import Direct
from processes import ROOT, environment

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}


def run_handler(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        env=environment(folder / "data", **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_default_run_takes_test_input_json(tmp_path: Path) -> None:
    done = run_handler(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data:video/mp4;base64," in done.stdout
    assert "A2V+I2V" in done.stdout


def test_a_job_on_the_command_line(tmp_path: Path) -> None:
    done = run_handler(tmp_path, "--test_input", json.dumps({"input": SMALL | {"seed": 3}}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'seed': 3" in done.stdout
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert "DEBUG" not in done.stdout  # RunPod's own default, which logs whole inputs


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"input": SMALL | {"width": 65}}, "width: Input should be a multiple of 2"),
        ({"input": ["a list"]}, "must be a JSON object"),
    ],
)
def test_bad_input_exits_1_with_the_reason(tmp_path: Path, job: dict[str, Any], reason: str) -> None:
    done = run_handler(tmp_path, "--test_input", json.dumps(job))
    assert done.returncode == 1
    assert reason in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_setting_exits_2_naming_it(tmp_path: Path) -> None:
    done = run_handler(tmp_path, LTX2_QUEUE_LIMIT="none")
    assert done.returncode == 2
    assert "LTX2_QUEUE_LIMIT" in done.stderr


def test_a_model_that_is_not_there_is_the_answer_of_every_job(tmp_path: Path) -> None:
    done = run_handler(tmp_path, "--test_input", json.dumps({"input": SMALL}), LTX2_MODEL="no-such-model")
    assert done.returncode == 1
    assert "no model is called 'no-such-model'" in done.stdout


@pytest.mark.parametrize(("prompt", "code"), [("bug", "internal"), ("vanish", "internal"), ("not ready", "not_ready")])
def test_whatever_happens_the_job_has_an_answer_without_a_traceback(tmp_path: Path, prompt: str, code: str) -> None:
    settings = Settings(data_dir=tmp_path)
    studio = Direct(settings, QuickEngine(settings))
    answer = asyncio.run(handler.Worker(studio).handler({"id": "job", "input": SMALL | {"prompt": prompt}}))
    studio.close()
    assert answer["error_code"] == code
    assert isinstance(answer["error"], str)
    assert str(tmp_path) not in answer["error"]
    assert "video" not in answer


@pytest.mark.parametrize(
    ("name", "field", "begins", "head"),
    [("webm", "video", "data:video/webm", b"\x1a\x45\xdf\xa3"), ("flac", "audio", "data:audio/flac", b"fLaC")],
)
def test_the_file_comes_under_its_own_type(tmp_path: Path, name: str, field: str, begins: str, head: bytes) -> None:
    settings = Settings(data_dir=tmp_path)
    studio = Direct(settings, FakeEngine(settings))
    answer = asyncio.run(handler.Worker(studio).handler({"id": "job", "input": SMALL | {"output_format": name}}))
    studio.close()
    assert answer.keys() & {"video", "audio"} == {field}
    prefix, encoded = answer[field].split(";base64,")
    assert (prefix, base64.b64decode(encoded)[:4]) == (begins, head)
    assert (answer["output_format"], answer["has_audio"], answer["num_frames"]) == (name, True, 9)


@contextmanager
def worker(folder: Path, plane: ControlPlane, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The worker as RunPod starts it; SIGTERM at the end must end it with 0."""
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / "handler.py")],
            env=environment(folder / "data", **plane.environment(), **settings),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        plane.closing.set()
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
    assert code == 0, (folder / "worker.log").read_text()


def wait_for(happened: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_job_from_runpods_queue_is_answered_once_after_its_progress(tmp_path: Path) -> None:
    with control_plane() as plane:
        slow = SMALL | {"width": 288, "height": 512, "num_frames": 17, "num_inference_steps": 100}
        plane.jobs.put({"id": "long", "input": slow})
        plane.jobs.put({"id": "bad", "input": {"prompt": "x", "width": 65}})
        with worker(tmp_path, plane):
            wait_for(lambda: plane.results("long") and plane.results("bad"))
            time.sleep(2)  # anything that comes too late comes now
        (result,) = plane.results("long")
        video = tmp_path / "long.mp4"
        video.write_bytes(base64.b64decode(result.body["output"]["video"].split(",")[1]))
        assert probe_video(video).num_frames == 17
        updates = plane.progress("long")
        assert updates
        assert all(update.seconds < result.seconds for update in updates)
        assert all(later.seconds - sooner.seconds > 1 for sooner, later in pairwise(updates))
        assert {"phase", "step", "steps"} == updates[-1].body["output"].keys()
        (refusal,) = plane.results("bad")
        assert refusal.body["error"] == "width: Input should be a multiple of 2"
        assert refusal.body["output"] == {"error_code": "invalid_request", "field": "width"}


def test_a_stopped_job_ends_within_a_step_and_the_next_one_works(tmp_path: Path) -> None:
    with control_plane() as plane:
        endless = SMALL | {"width": 512, "height": 512, "num_frames": 241, "num_inference_steps": 100}
        plane.jobs.put({"id": "endless", "input": endless})
        with worker(tmp_path, plane):
            wait_for(lambda: plane.progress("endless"))
            plane.stops.put("endless")
            plane.jobs.put({"id": "next", "input": SMALL})
            stopped = time.monotonic()
            wait_for(lambda: plane.results("next"))
        assert plane.results("next")[0].seconds - stopped < 20  # all 100 steps would take minutes
        assert plane.results("endless") == []
        assert plane.results("next")[0].body["output"]["num_frames"] == 9
        assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
