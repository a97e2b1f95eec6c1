"""Files as answers: ranges, deletions in between, callers who leave, and what is left open."""

import asyncio
import base64
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response
from starlette.requests import Request
from starlette.types import Message

from ltx2.dialects.kiapi import render_error
from ltx2.dialects.sending import file_answer, find_range, response, response_answer
from ltx2.engine import ClipFacts
from ltx2.errors import NotFound
from ltx2.fake import FakeEngine
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.job import Job, Order
from ltx2.studio.studio import Studio
from processes import Server, running_server, wait_until_warm

LARGE = os.urandom(1000) * 20_000
"""More than all buffers on the way together."""
BLOCK = 3 * 2**16


# ranges by themselves


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-1", (0, 2)),
        ("bytes=4-", (4, 10)),
        ("bytes=4-99", (4, 10)),
        ("bytes=4-" + "9" * 40, (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("BYTES= 1-2 ", (1, 3)),
        ("bytes=10-", ()),
        ("bytes=10-9", None),
        ("bytes=99999999-", ()),
        ("bytes=" + "9" * 40 + "-", ()),
        ("bytes=-0", ()),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("bytes=a-b", None),
        ("bytes=1_0-", None),
        ("bytes=٣-", None),
        ("bytes=+1-", None),
        ("bytes=0-1,4-5", None),
        ("items=0-1", None),
        ("", None),
        ("bytes=" + "1" * 10_240 + "-", None),
        ("bytes=" + "0-1," * 2500, None),
        ("bytes=" + " " * 10_240, None),
        ("x" * 10_240, None),
    ],
)
def test_a_range_is_found_refused_or_ignored(text: str, found: object) -> None:
    began = time.perf_counter()
    assert find_range(text, 10) == found
    assert time.perf_counter() - began < 0.05


def test_of_an_empty_file_all_is_answered() -> None:
    assert find_range("bytes=0-", 0) is None


# answers by themselves


def asked(method: str = "GET", **headers: str) -> Request:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "path": "/", "headers": lines, "path_params": {}})


async def never() -> Message:
    await asyncio.sleep(60)
    raise AssertionError("nobody leaves")


async def sent(answer: Response, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await answer({"type": "http", "method": method, "headers": []}, never, send)
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], headers, b"".join(message["body"] for message in messages[1:])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Runs a test in a studio of its own, in one loop; with a remote store where one is named."""

    def start(test: Callable[[Studio], Any], **settings: Any) -> None:
        checked = Settings(data_dir=tmp_path, **settings)

        async def whole() -> None:
            studio = Studio(checked, FakeEngine(checked))
            try:
                await test(studio)
            finally:
                await studio.close()

        asyncio.run(whole())

    return start


@pytest.mark.parametrize("size", [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, len(LARGE)])
def test_a_file_in_json_is_encoded_while_it_is_sent(run: Callable[..., Any], size: int, tmp_path: Path) -> None:
    async def test(studio: Studio) -> None:
        record = studio.files.add(LARGE[:size], owner="", filename="a.bin")
        request = GenerationRequest(prompt="x", seed=1)
        shape: dict[str, Any] = {
            "width": 64,
            "height": 64,
            "num_frames": 9,
            "fps": Fraction(25),
            "audio_sample_rate": None,
        }
        facts = ClipFacts(**shape, seed=1, steps=1, stages=1, model="m", warnings=(), seconds={})
        job = Job("job", Order(), request, {}, "succeeded", 1.0, result=facts, file_id=record.id)
        answer = await response_answer(studio, job, b'{"output":', b"}")
        assert held(tmp_path)
        pieces: list[bytes] = []

        async def send(message: Message) -> None:
            pieces.append(message.get("body", b""))

        await answer({"type": "http", "method": "GET", "headers": []}, never, send)
        whole = b"".join(pieces)
        assert answer.headers["content-length"] == str(len(whole))
        assert max(map(len, pieces)) <= BLOCK // 3 * 4
        assert json.loads(whole) == {"output": response(studio, job)}
        assert response(studio, job)["video"].endswith(base64.b64encode(LARGE[:size]).decode())
        assert held(tmp_path) == []

    run(test)


STORES = [{}, {"files_url": "memory://sending"}]


def held(data_dir: Path, process: int | str = "self") -> list[str]:
    """The files a process has open, and what it has downloaded."""
    names = [str(path) for path in data_dir.glob("work/download-*")]
    folder = Path(f"/proc/{process}/fd")
    for link in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # it was closed a moment ago
            names.append(str(link.readlink()))
    return [name for name in names if "/files/file_" in name or "/work/download-" in name]


@pytest.mark.parametrize("store", STORES)
def test_a_file_deleted_before_it_is_sent_is_sent_all_the_same(
    run: Callable[..., Any], store: dict[str, str], tmp_path: Path
) -> None:
    async def test(studio: Studio) -> None:
        record = studio.files.add(LARGE, owner="", filename="a.bin")
        answer = await file_answer(studio, record.id, "", asked(), render_error)
        studio.files.delete(record.id, "")
        status, headers, body = await sent(answer)
        assert (status, body, headers["content-length"]) == (200, LARGE, str(len(LARGE)))
        with pytest.raises(NotFound):
            await file_answer(studio, record.id, "", asked(), render_error)
        assert held(tmp_path) == []

    run(test, **store)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("headers", [{}, {"range": "bytes=5-"}, {"range": "bytes=99999999999-"}])
def test_nothing_stays_open_when_the_caller_leaves(
    run: Callable[..., Any], store: dict[str, str], headers: dict[str, str], tmp_path: Path
) -> None:
    async def test(studio: Studio) -> None:
        record = studio.files.add(LARGE, owner="", filename="a.bin")
        answer = await file_answer(studio, record.id, "", asked(**headers), render_error)
        left = asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and answer.status_code < 400:
                left.set()
                await asyncio.sleep(60)

        await asyncio.wait_for(answer({"type": "http", "method": "GET", "headers": []}, receive, send), 10)
        assert held(tmp_path) == []

    run(test, **store)


@pytest.mark.parametrize("store", STORES)
def test_nothing_stays_open_when_the_connection_breaks_or_the_server_ends(
    run: Callable[..., Any], store: dict[str, str], tmp_path: Path
) -> None:
    async def test(studio: Studio) -> None:
        record = studio.files.add(LARGE, owner="", filename="a.bin")

        async def broken(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise OSError("broken pipe")

        async def slow(_message: Message) -> None:
            await asyncio.sleep(60)

        answer = await file_answer(studio, record.id, "", asked(), render_error)
        with pytest.raises(OSError, match="broken pipe"):
            await answer({"type": "http", "method": "GET", "headers": []}, never, broken)
        answer = await file_answer(studio, record.id, "", asked(), render_error)
        sending = asyncio.create_task(answer({"type": "http", "method": "GET", "headers": []}, never, slow))
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert held(tmp_path) == []

    run(test, **store)


def test_the_mark_of_a_file_is_good_for_resuming_also_where_it_is_downloaded_anew(run: Callable[..., Any]) -> None:
    async def test(studio: Studio) -> None:
        record = studio.files.add(b"0123456789", owner="", filename="a.bin")

        async def answered(method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
            answer = await file_answer(studio, record.id, "", asked(method, **headers), render_error)
            return await sent(answer, method)

        _, whole, _ = await answered()
        await asyncio.sleep(1.1)  # what is dated has seconds
        for mark in (whole["etag"], whole["last-modified"]):
            status, _, body = await answered(range="bytes=4-", if_range=mark)
            assert (status, body) == (206, b"456789")
        for mark in ('"another"', "W/" + whole["etag"], "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense"):
            status, _, body = await answered(range="bytes=4-", if_range=mark)
            assert (status, body) == (200, b"0123456789")
        # RFC 9110 knows ranges of GET alone
        status, headers, body = await answered("HEAD", range="bytes=4-")
        assert (status, headers["content-length"], body) == (200, "10", b"")
        assert (await answered("POST", range="bytes=4-"))[0] == 200

    run(test, files_url="memory://sending")


# over HTTP


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose files lie in another place."""
    settings = {"LTX2_FILES_URL": "memory://elsewhere"}
    with running_server(tmp_path_factory.mktemp("remote"), settings, engine="fake") as running:
        wait_until_warm(running)
        yield running


@pytest.fixture
def client(fake_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fake_server.url, timeout=30) as client:
        yield client


def kept(client: httpx.Client, data: bytes) -> str:
    """The path of a file's bytes."""
    answer = client.post("/v1/files", files={"file": ("a.bin", data)}).raise_for_status()
    return f"/v1/files/{answer.json()['file_id']}/download"


@pytest.fixture
def paths(client: httpx.Client) -> list[str]:
    """The same clip in two dialects."""
    small = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
    done = client.post("/v1/video/t2v", json=small).raise_for_status().json()
    (file_id,) = client.get(f"/v1/jobs/{done['task_id']}").json()["artifacts"]
    return [f"/v1/files/{file_id}/download", f"/outputs/ltx2_{done['task_id']}.mp4"]


def test_every_dialect_sends_ranges_and_refuses_those_that_are_not_there(
    client: httpx.Client, paths: list[str]
) -> None:
    for path in paths:
        whole = client.get(path)
        size = len(whole.content)
        assert whole.headers["Cache-Control"] == "private"
        assert whole.headers["Accept-Ranges"] == "bytes"
        some = client.get(path, headers={"Range": "bytes=4-7"})
        assert (some.status_code, some.content, some.headers["Content-Length"]) == (206, b"ftyp", "4")
        assert some.headers["Content-Range"] == f"bytes 4-7/{size}"
        assert some.headers["Content-Type"] == whole.headers["Content-Type"] == "video/mp4"
        for ignored in ("items=0-1", "bytes=5-2", "bytes=0-1,4-5", "nonsense"):
            answer = client.get(path, headers={"Range": ignored})
            assert (answer.status_code, answer.content) == (200, whole.content)
            assert "Content-Range" not in answer.headers
        for wrong in ("bytes=99999999-", "bytes=-0"):
            answer = client.get(path, headers={"Range": wrong})
            assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
            assert list(answer.json()) == ["detail"]
            assert "no such range" in answer.json()["detail"]


def test_a_range_as_long_as_a_header_may_be_takes_no_time(client: httpx.Client, paths: list[str]) -> None:
    for text in ("bytes=" + "1" * 10_240, "bytes=" + "0-1," * 2500, "bytes=" + "-" * 10_240, "bytes=" + " 1" * 5000):
        began = time.monotonic()
        assert client.get(paths[0], headers={"Range": text}).status_code == 200
        assert time.monotonic() - began < 0.05


def test_a_clip_is_not_cut_in_two_by_a_range_asked_of_the_route_that_makes_it(client: httpx.Client) -> None:
    small = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
    answer = client.post("/v1/video/ltx2/generate", json=small, headers={"Range": "bytes=4-7"})
    assert (answer.status_code, answer.content[4:8]) == (200, b"ftyp")


def test_downloads_race_with_deletions_and_are_whole_or_not_found(fake_server: Server, client: httpx.Client) -> None:
    before = len(fake_server.log)
    statuses: list[int] = []

    def download(path: str) -> None:
        answer = httpx.get(fake_server.url + path, timeout=30)
        statuses.append(answer.status_code)
        assert answer.content == LARGE if answer.status_code == 200 else answer.status_code == 404

    for _ in range(10):
        path = kept(client, LARGE)
        readers = [threading.Thread(target=download, args=(path,)) for _ in range(6)]
        for reader in readers:
            reader.start()
        client.delete(path.removesuffix("/download")).raise_for_status()
        for reader in readers:
            reader.join()
    assert len(statuses) == 60
    assert set(statuses) <= {200, 404}
    assert "Traceback" not in fake_server.log[before:]


@pytest.mark.parametrize("which", ["fake_server", "remote"])
def test_callers_who_leave_in_the_middle_leave_nothing_behind(which: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(which)
    before = len(server.log)
    host, port = server.url.removeprefix("http://").split(":")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        path = kept(client, LARGE)
        for number in range(20):
            with socket.create_connection((host, int(port))) as connection:
                more = "Range: bytes=7-\r\n" if number % 2 else ""
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
                connection.recv(100)
                if number % 3 == 0:  # without a goodbye
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 10
        while left := held(server.data_dir, server.process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert client.get(path).content == LARGE
    assert "Traceback" not in server.log[before:]


def test_the_document_says_what_a_download_answers(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v1/files/{file_id}/download", "/outputs/{filename}"):
        route = document["paths"][path]["get"]
        assert {"200", "206", "416", "404", "503", "507"} <= route["responses"].keys()
        assert "Content-Range" in route["responses"]["416"]["headers"]
        assert "Range" in [parameter["name"] for parameter in route["parameters"]]
    assert "stands for an API key" in json.dumps(document["paths"]["/outputs/{filename}"])
