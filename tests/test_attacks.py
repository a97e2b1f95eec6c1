"""What strangers send to a server on purpose: nothing of it is a 5xx, keeps others waiting, or gets in."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from processes import ROOT, Server, environment, running_server, wait_until_warm

JOB = "job_" + "0" * 32
SMALL = {"prompt": "x", "width": 64, "height": 64, "num_frames": 9}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants API keys."""
    with running_server(tmp_path_factory.mktemp("locked"), {"LTX2_API_KEYS": "key-a,key-b"}, engine="fake") as running:
        wait_until_warm(running)
        yield running


@pytest.mark.parametrize("path", ["/generate", "/v1/video/ltx2/generate", "/v1/video/async_t2v", "/v1"])
def test_millions_of_values_are_refused_unread(fake_server: Server, path: str) -> None:
    slowest = [0.0]
    done = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=fake_server.url) as client:
            while not done.wait(0.01):
                began = time.monotonic()
                client.get("/health")
                slowest[0] = max(slowest[0], time.monotonic() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    body = b'{"prompt":"x","a":[' + b"[]," * 15_000_000 + b"[]]}"
    answer = httpx.post(fake_server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    done.set()
    watcher.join()
    assert answer.status_code == (400 if path == "/v1" else 422)
    assert "far more values" in answer.text
    assert slowest[0] < 1  # to read it takes four seconds


@pytest.mark.parametrize("path", ["/generate", "/v1/video/ltx2/generate", "/v1/video/t2v"])
@pytest.mark.parametrize("body", [b"{", b'{"prompt":', b"\xff", b"[1,2", b""])
def test_broken_json_is_called_that(fake_server: Server, path: str, body: bytes) -> None:
    answer = httpx.post(fake_server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "JSON" in answer.text or not body


def test_a_wrong_method_is_told_the_right_ones(fake_server: Server) -> None:
    for method, path, right in (("PUT", "/v1/jobs", "GET"), ("GET", "/v1/video/async_t2v", "POST")):
        answer = httpx.request(method, fake_server.url + path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, right)
        assert "detail" in answer.json()


def test_every_route_wants_a_key_but_health_and_docs(locked: Server) -> None:
    document = httpx.get(locked.url + "/openapi.json").json()
    open_paths = {"/health", "/health/live", "/health/ready", "/ping", "/docs", "/openapi.json"}
    known = {"job_id": JOB, "task_id": JOB, "file_id": "file_" + "0" * 32, "filename": f"ltx2_{JOB}.mp4"}
    known |= {"video_id": "video_" + "0" * 32, "endpoint": "local"}
    asked = 0
    for path, methods in document["paths"].items():
        real = re.sub(r"\{(\w+)\}", lambda found: known[found[1]], path)
        for method in methods:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": ""}, {"Authorization": "key-a"}):
                answer = httpx.request(method, locked.url + real, headers=headers)
                assert answer.status_code == 401 or path in open_paths, (method, path, headers)
            right = httpx.request(method, locked.url + real, headers={"X-API-Key": "key-a"})
            assert right.status_code != 401, (method, path)
            asked += 1
    assert asked >= 20
    assert httpx.get(locked.url + "/nothing").status_code == 401
    for path in open_paths:
        assert httpx.get(locked.url + path).status_code == 200


def test_one_key_sees_nothing_of_another(locked: Server) -> None:
    mine, other = ({"Authorization": f"Bearer key-{name}"} for name in "ab")
    with httpx.Client(base_url=locked.url) as client:
        made = client.post("/v1/video/ltx2/generate", json=SMALL | {"mode": "async"} | {"width": 64}, headers=mine)
        job = made.json()["job_id"]
        seen = {}
        deadline = time.monotonic() + 20
        while seen.get("status") != "succeeded" and time.monotonic() < deadline:
            seen = client.get(f"/v1/jobs/{job}", headers=mine).json()
        (file,) = seen["artifacts"]
        for method, path in (
            ("GET", f"/v1/jobs/{job}"),
            ("GET", f"/v1/jobs/{job}/events"),
            ("POST", f"/v1/jobs/{job}/cancel"),
            ("DELETE", f"/v1/jobs/{job}"),
            ("GET", f"/v1/files/{file}"),
            ("GET", f"/v1/files/{file}/download"),
            ("DELETE", f"/v1/files/{file}"),
            ("GET", f"/v1/video/tasks/{job}"),
            ("GET", f"/outputs/ltx2_{job}.mp4"),
            ("GET", f"/v2/local/status/{job}"),
            ("GET", f"/v2/local/stream/{job}"),
            ("POST", f"/v2/local/cancel/{job}"),
            ("POST", f"/v2/local/retry/{job}"),
            ("GET", f"/v1/videos/video_{job[4:]}"),
            ("GET", f"/v1/videos/video_{job[4:]}/content"),
            ("GET", f"/v1/videos/video_{job[4:]}/content?variant=thumbnail"),
            ("DELETE", f"/v1/videos/video_{job[4:]}"),
        ):
            assert client.request(method, path, headers=other).status_code == 404, path
        assert client.get("/v1/jobs", headers=other).json()["data"] == []
        assert client.get("/v1/files", headers=other).json()["data"] == []
        remix = client.post(f"/v1/videos/video_{job[4:]}/remix", json={"prompt": "x"}, headers=other)
        assert remix.status_code == 404
        assert client.get("/v1/videos", headers=other).json()["data"] == []
        stolen = {"type": "file_id", "file_id": file}
        refused = client.post("/v1/video/ltx2/generate", json=SMALL | {"image": stolen}, headers=other)
        assert refused.status_code == 400
        assert client.get(f"/v1/files/{file}/download", headers=mine).status_code == 200
    assert "key-a" not in locked.log


@pytest.mark.parametrize("key", ["x" * 22, "MDEyMzQ1Njc4OWFiY2RlZg=="])
def test_an_unasked_upgrade_is_refused_and_not_logged(locked: Server, key: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    refused = 403 if key.endswith("=") else 400
    for path in ("/outputs/x?token=SECRET", "/v1/jobs?token=SECRET", "/nothing?token=SECRET"):
        for headers in ({}, {"X-API-Key": "key-a"}):
            assert httpx.get(locked.url + path, headers=upgrade | headers).status_code == refused
    assert "SECRET" not in locked.log
    assert "Traceback" not in locked.log


@pytest.mark.parametrize("keys", [" , ", "", "schlüssel"])
def test_a_server_whose_keys_are_none_does_not_start(tmp_path: Path, keys: str) -> None:
    command = [sys.executable, str(ROOT / "server.py"), "--engine", "fake", "--port", "0"]
    settings = environment(tmp_path, LTX2_API_KEYS=keys)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "LTX2_API_KEYS" in done.stderr
    assert "schl" not in done.stderr


def test_a_second_server_on_the_same_folder_says_so(fake_server: Server) -> None:
    command = [sys.executable, str(ROOT / "server.py"), "--engine", "fake", "--port", "0"]
    settings = environment(fake_server.data_dir)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "another server uses this data folder" in done.stderr
    assert "LTX2_DATA_DIR" in done.stderr
    assert httpx.get(fake_server.url + "/health").status_code == 200


def test_a_thousand_posts_with_one_key_make_one_job(fake_server: Server) -> None:
    made: list[Any] = []

    def post(number: int) -> None:
        with httpx.Client(base_url=fake_server.url, timeout=60) as client:
            for _ in range(number):
                body = SMALL | {"mode": "async", "prompt": "once", "seed": 5}
                answer = client.post("/v1/video/ltx2/generate", json=body, headers={"Idempotency-Key": "one"})
                made.append((answer.status_code, answer.json()["job_id"]))

    threads = [threading.Thread(target=post, args=(20,)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1000
    assert len(set(made)) == 1
    changed = httpx.post(
        fake_server.url + "/v1/video/ltx2/generate",
        content=json.dumps(SMALL | {"mode": "async", "prompt": "twice", "seed": 5}),
        headers={"Idempotency-Key": "one", "Content-Type": "application/json"},
    )
    assert changed.status_code == 422
