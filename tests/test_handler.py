"""The RunPod worker: at a laptop's command line, and with the real tiny model in the SDK's loop."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import control_plane
from worker_process import SMALL, WorkerProcess, running_worker

from ltx2.media.probe import probe_video
from processes import ROOT, environment


@pytest.fixture(scope="module", autouse=True)
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker with the real tiny model. It loads while the other tests run."""
    with control_plane() as plane, running_worker(tmp_path_factory.mktemp("worker"), plane) as running:
        yield running


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
    job = json.dumps({"input": SMALL | {"seed": 3}})
    done = run_handler(tmp_path, "--test_input", job, LTX2_ENGINE="fake")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'seed': 3" in done.stdout
    assert "'model': 'fake'" in done.stdout
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert "DEBUG" not in done.stdout  # RunPod's own default, which logs whole inputs


def test_bad_input_exits_1_with_the_reason(tmp_path: Path) -> None:
    done = run_handler(tmp_path, "--test_input", json.dumps({"input": SMALL | {"width": 65}}), LTX2_ENGINE="fake")
    assert done.returncode == 1
    assert "width: Input should be a multiple of 2" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LTX2_QUEUE_LIMIT", "none", "should be a valid integer"),
        ("LTX2_ENGINE", "ray", "takes local or fake"),
        ("LTX2_ENGINE", "runpod", "takes local or fake"),
        # what runpod itself fails at while it is imported
        ("RUNPOD_LOG_LEVEL", "WARNING", "'DEBUG', 'INFO', 'WARN' or 'ERROR'"),
        ("BUCKET_ENDPOINT_URL", "https://example.com", "BUCKET_ACCESS_KEY_ID is missing"),
    ],
)
def test_a_wrong_setting_exits_2_naming_it(tmp_path: Path, name: str, value: str, words: str) -> None:
    done = run_handler(tmp_path, **{name: value})
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert name in done.stderr


def test_importing_the_handler_imports_neither_runpod_nor_torch_nor_fastapi() -> None:
    code = "import sys, handler; print(*({'runpod', 'torch', 'fastapi', 'boto3'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_runpods_hub_looks_for_is_there() -> None:
    assert "runpod.serverless.start(" in (ROOT / "handler.py").read_text()


def test_the_real_model_in_runpods_loop(worker: WorkerProcess, tmp_path: Path) -> None:
    endless = SMALL | {"width": 512, "height": 512, "num_frames": 241, "num_inference_steps": 100}
    plane = worker.plane
    worker.send("endless", endless)
    worker.wait_for(lambda: bool(plane.progress("endless")))
    stopped = time.monotonic()
    plane.stops.put("endless")
    answer = worker.ask("next", SMALL)
    assert worker.left == []
    assert plane.results("next")[0].seconds - stopped < 20  # all 100 steps would take minutes
    assert plane.results("endless") == []
    video = tmp_path / "next.mp4"
    video.write_bytes(base64.b64decode(answer["output"]["video"].split(",")[1]))
    assert probe_video(video).num_frames == 9
    assert {"phase", "step", "steps"} == plane.progress("endless")[-1].body["output"].keys()
