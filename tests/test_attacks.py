"""What strangers send to a server on purpose: nothing of it is a 5xx, keeps others waiting, or gets in."""

import asyncio
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from quick import in_loop
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ltx2.dialects.guard import MOST_FRAMES, STRANGER_BYTES, GuardedSockets
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
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": ""}, {"Authorization": "Basic key-a"}):
                answer = httpx.request(method, locked.url + real, headers=headers)
                assert answer.status_code == 401 or path in open_paths, (method, path, headers)
            right = httpx.request(method, locked.url + real, headers={"X-API-Key": "key-a"})
            assert right.status_code != 401, (method, path)
            asked += 1
    assert asked >= 20
    assert httpx.get(locked.url + "/nothing").status_code == 401
    for path in open_paths:
        assert httpx.get(locked.url + path).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1", "null", "x://", "http://[", ""])
def test_web_pages_of_other_places_are_kept_out_of_a_server_without_keys(fake_server: Server, origin: str) -> None:
    forged = {"Origin": origin}
    form = {"files": {"prompt": (None, "x")}, "headers": forged}
    for path in ("/v1/videos", "/v1/files", "/generate", "/v1", "/v2/x/purge-queue"):
        answer = httpx.post(fake_server.url + path, **form)
        assert answer.status_code == 403, path
        assert "another place" in answer.text
    place = fake_server.url.replace("http", "ws", 1) + "/v1"
    with pytest.raises(InvalidStatus, match="403"), connect(place, additional_headers=forged):
        pass
    # what only looks tells a page nothing: the browser keeps it back
    assert httpx.get(fake_server.url + "/health", headers=forged).status_code == 200


def test_the_pages_of_this_server_may_call_it(fake_server: Server, locked: Server) -> None:
    own = httpx.post(fake_server.url + "/generate", json={}, headers={"Origin": fake_server.url})
    assert own.status_code == 422
    headers = {"Origin": "https://app.example", "X-API-Key": "key-a"}
    assert httpx.post(locked.url + "/generate", json={}, headers=headers).status_code == 422


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


# websockets and other upgrades, as raw bytes

HANDSHAKE = (
    b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def sent(server: Server, data: bytes) -> socket.socket:
    """A connection on which this was sent."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5)
    connection.sendall(data)
    return connection


def answered(connection: socket.socket) -> bytes:
    """All that comes until the other end closes the connection."""
    came = b""
    with connection, suppress(ConnectionResetError):
        while block := connection.recv(65_536):
            came += block
    return came


def frame(code: int, length: int, *, is_last: bool = True) -> bytes:
    """The beginning of a websocket's frame, masked by zeros."""
    return struct.pack("!BBQ", code | (0x80 if is_last else 0), 0x80 | 127, length) + bytes(4)


def socket_of(server: Server) -> socket.socket:
    """A stranger's websocket."""
    connection = sent(server, b"GET /v1 HTTP/1.1\r\n" + HANDSHAKE)
    assert connection.recv(4096).startswith(b"HTTP/1.1 101")
    return connection


@pytest.mark.parametrize("is_last", [True, False])
def test_of_a_strangers_message_little_is_kept(locked: Server, is_last: bool) -> None:
    with socket_of(locked) as connection:
        connection.sendall(frame(1, STRANGER_BYTES + 1, is_last=is_last))
        assert answered(connection)[2:4] == struct.pack("!H", 1009)  # before the rest of it comes


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param((b"\x89\x80" + bytes(4)) * 100_000, id="pings"),
        pytest.param(b"\x01\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 2 * MOST_FRAMES, id="empty parts"),
    ],
)
def test_who_floods_a_websocket_is_cut_off(fake_server: Server, flood: bytes) -> None:
    with socket_of(fake_server) as connection, suppress(ConnectionError):
        connection.sendall(flood)
        assert len(answered(connection)) < 100_000


@in_loop
async def test_who_leaves_unread_what_is_sent_is_cut_off() -> None:
    gone = asyncio.Event()

    async def talk(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x" * 65_536})
                await asyncio.sleep(0)
        finally:
            gone.set()

    class Impatient(GuardedSockets):
        unread_seconds = 0.1

    config, state = uvicorn.Config(talk), uvicorn.server.ServerState()
    config.load()
    loop = asyncio.get_running_loop()
    serving = await loop.create_server(lambda: Impatient(config, state, {}), "127.0.0.1", 0)
    async with serving:
        connection = socket.create_connection(serving.sockets[0].getsockname(), timeout=5)
        with connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + HANDSHAKE)
            await asyncio.wait_for(gone.wait(), 5)
    await asyncio.gather(*state.tasks)


def test_a_message_that_is_no_text_is_no_fault_of_ours(fake_server: Server) -> None:
    before = fake_server.log.count("Traceback")
    with socket_of(fake_server) as connection:
        connection.sendall(b"\x81\x82" + bytes(4) + b"\xff\xfe")
        assert b"not valid JSON" in connection.recv(4096)
    assert fake_server.log.count("Traceback") == before


@pytest.mark.parametrize(
    "begin", [b"POST /v1 HTTP/1.1\r\nContent-Length: 5\r\n", b"GET /v1 HTTP/1.1\r\nCookie: " + b"x" * 9000]
)
def test_a_handshake_that_is_none_is_answered(fake_server: Server, begin: bytes) -> None:
    assert answered(sent(fake_server, begin.rstrip() + b"\r\n" + HANDSHAKE)).startswith(b"HTTP/1.1 400")


def test_a_body_is_read_where_http_2_is_offered(fake_server: Server) -> None:
    body = b'[{"taskType":"ping","ping":true}]'
    offered = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    described = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    # as Java's client does
    connection = sent(fake_server, b"POST /v1 HTTP/1.1\r\n" + offered + described + body)
    assert b'"pong":true' in answered(connection)
