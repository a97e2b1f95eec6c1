"""``server.py --engine runpod`` in front of a stand-in for RunPod's cloud, with the real worker behind it."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from runpod_cloud import ENDPOINT, KEY, Cloud, CloudJob, results_of, runpod_cloud

from ltx2.media.probe import probe_video
from processes import ROOT, Server, environment, running_server

SMALL = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1}
SLOW = {"width": 320, "height": 512, "num_frames": 17, "num_inference_steps": 20}
LONG = 120
"""Seconds that are enough for anything here, on any machine."""

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=LONG, limits=httpx.Limits(max_keepalive_connections=0))


@contextmanager
def worker(folder: Path, cloud: Cloud, name: str, **settings: str) -> Iterator[Callable[[], None]]:
    """A worker as RunPod starts it. What it gives is a way to kill it, with the process that pings for it."""
    place = folder / name
    place.mkdir(parents=True)
    with (place / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", str(ROOT / "handler.py")],
            env=environment(place / "data", **cloud.worker(name), **settings),
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill() -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    try:
        yield kill
    finally:
        if process.poll() is None:
            kill()


@contextmanager
def started(folder: Path, engine: str, **settings: str) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    with running_server(folder, settings, engine=engine) as running:
        yield running


@contextmanager
def gateway(folder: Path, cloud: Cloud, **settings: str) -> Iterator[Server]:
    with started(folder, "runpod", **cloud.caller(), **settings) as running:
        yield running


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def post(server: Server, path: str, body: Any) -> Any:
    answer = http.post(server.url + path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def begin(server: Server, prompt: str, **fields: Any) -> str:
    """A job, by its id."""
    return str(post(server, "/v2/any/run", {"input": SMALL | {"prompt": prompt} | fields})["id"])


def status(server: Server, job: str) -> dict[str, Any]:
    return dict(http.get(f"{server.url}/v2/any/status/{job}").raise_for_status().json())


def ended(server: Server, job: str) -> dict[str, Any]:
    until(lambda: status(server, job)["status"] not in ("IN_QUEUE", "IN_PROGRESS"))
    return status(server, job)


def health(server: Server) -> dict[str, Any]:
    return dict(http.get(server.url + "/health").raise_for_status().json())


def job_of(cloud: Cloud, prompt: str) -> CloudJob:
    """The one with this prompt that is not over, or was the last."""
    cloud.wait_for(lambda: any(job.input["prompt"] == prompt for job in cloud.jobs.values()), LONG)
    return [job for job in cloud.jobs.values() if job.input["prompt"] == prompt][-1]


def check_clip(clip: bytes, folder: Path) -> None:
    path = folder / "clip.mp4"
    path.write_bytes(clip)
    facts = probe_video(path)
    assert (facts.width, facts.height) in [(64, 64), (320, 512)]
    assert facts.num_frames == (9 if facts.width == 64 else 17)


@pytest.mark.parametrize("count", [14, pytest.param(50, marks=pytest.mark.soak)])
def test_jobs_of_three_dialects_outlive_a_worker(tmp_path: Path, count: int) -> None:
    """Native callers wait for theirs, kiapi's and the tasks' come again; one worker is killed in the middle of one."""
    each = (count + 1) // 3
    with (
        runpod_cloud() as cloud,
        worker(tmp_path, cloud, "worker-a") as kill_a,
        worker(tmp_path, cloud, "worker-b") as kill_b,
        gateway(tmp_path, cloud) as server,
        ThreadPoolExecutor(20) as callers,
    ):
        native = [
            callers.submit(post, server, "/generate", SMALL | {"prompt": f"native {number}"})
            for number in range(count - 2 * each)
        ]
        for number in range(each):
            post(server, "/v1/video/ltx2/generate", SMALL | {"prompt": f"kiapi {number}", "mode": "async"})
            post(server, "/v1/video/async_t2v", (SLOW if number == each - 3 else SMALL) | {"prompt": f"task {number}"})
        slow = job_of(cloud, f"task {each - 3}")
        cloud.wait_for(lambda: slow.state == "IN_PROGRESS", LONG)
        lost = str(slow.worker)
        {"worker-a": kill_a, "worker-b": kill_b}[lost]()
        cloud.lose(lost)  # at once: how long RunPod waits for its pings is of no interest here
        until(lambda: health(server)["queue_len"] == health(server)["running"] == 0)
        for answer in native:
            check_clip(base64.b64decode(answer.result(LONG)["video"].partition(",")[2]), tmp_path)
        jobs = http.get(f"{server.url}/v1/jobs?limit=100").json()["data"]
        metrics = http.get(server.url + "/metrics").text
        for job in jobs:
            check_clip(http.get(f"{server.url}/v1/files/{job['artifacts'][0]}/download").content, tmp_path)
        told = [job.state for job in cloud.jobs.values()]
        assert slow.starts > 1
        assert cloud.count("run") == count  # nothing was sent, or paid for, twice
        assert server.leftovers() == []
        assert not list((server.data_dir / "work").iterdir())
        assert not list((server.data_dir / "engine" / "runpod").iterdir())
    assert Counter(job["status"] for job in jobs) == {"succeeded": count}
    assert told == ["COMPLETED"] * count
    ends = {
        (sample.labels["state"], sample.labels["code"]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "ltx2_jobs_ended_total"
    }
    assert ends == {("succeeded", ""): count}
    assert KEY not in server.log
    assert ENDPOINT not in server.log
    assert "native 3" not in server.log


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with runpod_cloud() as running:
        yield running


@pytest.fixture(scope="module")
def front(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with one seat, and a worker that makes test cards."""
    folder = tmp_path_factory.mktemp("front")
    with (
        worker(folder, cloud, "fake-worker", LTX2_ENGINE="fake"),
        gateway(folder, cloud, LTX2_REMOTE_JOBS="1") as server,
    ):
        until(lambda: bool(health(server)["ready"]))
        yield server


def test_a_clip_comes_by_way_of_the_worker(front: Server, tmp_path: Path) -> None:
    answer = post(front, "/generate", SMALL | {"prompt": "a lamp", "seed": 3, "output_format": "webm"})
    assert (answer["seed"], answer["model"], answer["output_format"]) == (3, "fake", "webm")
    assert any("test card" in warning for warning in answer["warnings"])
    path = tmp_path / "clip.webm"
    path.write_bytes(base64.b64decode(answer["video"].partition(",")[2]))
    assert probe_video(path).num_frames == 9
    assert (health(front)["warm"], health(front)["fault"]) == (True, None)


def test_media_come_by_way_of_the_worker(front: Server, data: Path) -> None:
    photo = "data:image/jpeg;base64," + base64.b64encode((data / "photo.jpg").read_bytes()).decode()
    answer = post(front, "/generate", SMALL | {"prompt": "a lamp", "image_start": photo, "image_end": photo})
    assert (answer["mode"], answer["has_image_start"], answer["has_image_end"]) == ("I2V(first+last)", True, True)


def test_progress_and_a_cancel_come_through(front: Server, cloud: Cloud) -> None:
    job = begin(front, "seconds=200 to be cancelled", num_inference_steps=100)

    def is_denoising() -> bool:
        output = status(front, job).get("output") or {}
        return output.get("phase") == "denoising" and 0 < output["step"] < output["steps"] == 100

    until(is_denoising)
    assert post(front, f"/v2/any/cancel/{job}", None)["status"] in ("IN_PROGRESS", "CANCELLED")
    assert ended(front, job)["status"] == "CANCELLED"
    there = job_of(cloud, "seconds=200 to be cancelled")
    assert (there.state, there.answers) == ("CANCELLED", 0)
    assert cloud.stopped == [("fake-worker", there.id)]
    assert post(front, "/generate", SMALL | {"prompt": "the worker is free"})["num_frames"] == 9


def test_a_failure_comes_through_with_its_code(front: Server) -> None:
    codes = ["out_of_memory", "content_refused", "timeout", "bug"]
    failed = [ended(front, job) for job in [begin(front, f"a lamp fail={code}") for code in codes]]
    assert [each["status"] for each in failed] == ["FAILED", "FAILED", "TIMED_OUT", "FAILED"]
    assert [each["output"]["error_code"] for each in failed] == [*codes[:3], "internal"]


def test_a_worker_that_is_lost_is_tried_once_more(front: Server, cloud: Cloud) -> None:
    failed = ended(front, begin(front, "a lamp fail=worker_crashed"))
    assert failed["output"]["error_code"] == "worker_crashed"
    assert sum(job.input["prompt"] == "a lamp fail=worker_crashed" for job in cloud.jobs.values()) == 2


def test_an_endpoint_that_is_down_is_a_503_and_what_was_accepted_waits(front: Server, cloud: Cloud) -> None:
    first, second = begin(front, "seconds=1 in hand"), begin(front, "seconds=0.1 in the queue")
    there = job_of(cloud, "seconds=1 in hand")
    with cloud.changed:  # so that it does not end in between
        cloud.wait_for(lambda: there.state == "IN_PROGRESS")
        cloud.shut()
    until(lambda: health(front)["fault"] == "the RunPod endpoint cannot be reached")
    for path in ("/generate", "/v1/video/async_t2v", "/v1/video/ltx2/generate"):
        refused = http.post(front.url + path, json=SMALL | {"prompt": "new"})
        assert refused.status_code == 503
        assert "the RunPod endpoint cannot be reached" in refused.text
    assert http.get(front.url + "/health/ready").status_code == 503
    cloud.wait_for(lambda: there.state == "COMPLETED")  # while nobody can ask
    assert status(front, second)["status"] == "IN_QUEUE"
    cloud.open()
    assert [ended(front, job)["status"] for job in (first, second)] == ["COMPLETED", "COMPLETED"]
    assert not any(job.input["prompt"] == "new" for job in cloud.jobs.values())
    assert there.starts == 1


def test_a_gateway_that_was_killed_does_not_pay_twice(tmp_path: Path) -> None:
    """Eight are in hand, and four of them are of the same clip."""
    with runpod_cloud() as cloud:
        with gateway(tmp_path, cloud) as server:
            jobs = [begin(server, "for two servers", seed=max(3, number)) for number in range(8)]
            until(lambda: len(list((server.data_dir / "engine" / "runpod").glob("*.json"))) == 8)
            taken = [cloud.take("worker") for _ in range(8)]
            server.process.kill()
        for there in taken[:4]:
            assert there is not None
            cloud.told(there.id, {"output": results_of(there, tmp_path)})
        with gateway(tmp_path, cloud) as server:
            for there in taken[4:]:
                assert there is not None
                cloud.told(there.id, {"output": results_of(there, tmp_path)})
            assert {ended(server, job)["status"] for job in jobs} == {"COMPLETED"}
            assert not list((server.data_dir / "engine" / "runpod").iterdir())
        assert cloud.count("run") == 8
        assert {there.starts for there in cloud.jobs.values()} == {1}


def test_a_server_of_ours_can_be_the_endpoint(tmp_path: Path) -> None:
    with started(tmp_path / "behind", "fake", LTX2_API_KEYS="its-key") as behind:
        caller = {
            "RUNPOD_ENDPOINT_BASE_URL": behind.url + "/v2",
            "RUNPOD_API_KEY": "its-key",
            "LTX2_RUNPOD_ENDPOINT": "any",
        }
        with started(tmp_path / "front", "runpod", **caller) as front:
            until(lambda: bool(health(front)["ready"]))
            answer = post(front, "/generate", SMALL | {"prompt": "a lamp", "seed": 3})
            assert (answer["seed"], answer["model"], answer["num_frames"]) == (3, "fake", 9)
            failed = http.post(front.url + "/generate", json=SMALL | {"prompt": "fail=out_of_memory"})
            assert failed.json()["error"]["code"] == "out_of_memory", failed.text
            job = begin(front, "seconds=600", num_inference_steps=100)
            until(lambda: (status(front, job).get("output") or {}).get("phase") == "denoising")
            post(front, f"/v2/any/cancel/{job}", None)
            assert ended(front, job)["status"] == "CANCELLED"
            until(lambda: health(behind)["running"] == health(behind)["queue_len"] == 0)
            behind.process.terminate()
            behind.process.wait(LONG)
            begin(front, "cannot be sent")
            until(lambda: health(front)["fault"] == "the RunPod endpoint cannot be reached")
            refused = http.post(front.url + "/generate", json=SMALL | {"prompt": "new"})
            assert refused.status_code == 503


def test_what_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "--port", "0", "--engine", "runpod"],
        env=environment(tmp_path / "data", RUNPOD_API_KEY=KEY),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 2
    assert "LTX2_RUNPOD_ENDPOINT" in done.stderr
    assert KEY not in done.stderr
