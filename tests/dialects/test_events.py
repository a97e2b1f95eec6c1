"""Progress as server-sent events, and cancelling, over HTTP."""

import asyncio
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ltx2.dialects.events import stream, view
from ltx2.engine import Progress
from ltx2.errors import Failure, NotFound
from ltx2.request import GenerationRequest
from ltx2.studio.job import Job, Order
from processes import Server, running_server, wait_until_warm

PHASES = ["queued", "loading", "encoding", "denoising", "decoding", "muxing"]
SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9}
NOBODYS = "job_" + "0" * 32

# one for all, and nothing of TLS: reading the certificates takes longer than most answers do
http = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


class Event(NamedTuple):
    """One event as it came."""

    name: str
    id: str
    data: dict[str, Any]


def submit(server: Server, prompt: str, **fields: Any) -> str:
    answer = http.post(server.url + "/v1/video/async_t2v", json=SMALL | {"prompt": prompt} | fields)
    assert answer.status_code == 200
    return str(answer.json()["task_id"])


@contextmanager
def watching(server: Server, job_id: str) -> Iterator[Iterator[Event]]:
    """The events of a job while they come."""
    with http.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-cache"
        yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif fields.keys() & {"data"}:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}


def seen(server: Server, job_id: str) -> list[Event]:
    """All events of a job, to its end."""
    with watching(server, job_id) as events:
        return list(events)


def cancel(server: Server, job_id: str) -> httpx.Response:
    return http.post(f"{server.url}/v1/jobs/{job_id}/cancel")


def job(**facts: Any) -> Job:
    request = GenerationRequest(prompt="x", seed=1)
    return Job(id=NOBODYS, order=Order(), request=request, inputs={}, created_at=0.0, **facts)


def test_an_event_says_how_far_a_job_is() -> None:
    half = {"phase": "denoising", "step": 1, "steps": 3, "fraction": 0.3367, "seconds_left": 12.3}
    running = job(state="running", progress=Progress("denoising", 1, 3))
    assert view(running, 12.345) == {"id": NOBODYS, "status": "running"} | half
    nothing = {"phase": "queued", "step": 0, "steps": 0, "fraction": 0.0, "seconds_left": None}
    assert view(job(state="queued"), None) == {"id": NOBODYS, "status": "queued"} | nothing


def test_the_last_event_says_what_became_of_it() -> None:
    failed = view(job(state="failed", failure=Failure("invalid_request", "too wide", field="width")), None)
    assert failed["error"] == {"code": "invalid_request", "message": "too wide", "field": "width", "hint": None}
    done = view(job(state="succeeded", file_id="file_1"), None)
    assert (done["file_id"], done["fraction"]) == ("file_1", 1.0)
    assert "error" not in done


def test_a_quiet_stream_is_kept_alive() -> None:
    async def changes() -> AsyncIterator[tuple[Job, float | None]]:
        yield job(state="queued"), None
        await asyncio.sleep(0.2)
        yield job(state="canceled"), None

    async def run() -> list[bytes]:
        return [sent async for sent in stream(changes(), ping_seconds=0.05)]

    sent = asyncio.run(run())
    assert sent[0].startswith(b"event: progress\ndata: {")
    assert sent[0].endswith(b"}\nid: 1\n\n")
    assert set(sent[1:-1]) == {b": ping\n\n"}
    assert sent[-1].startswith(b"event: canceled\n")


def test_a_job_deleted_before_the_first_event_is_an_empty_stream() -> None:
    async def changes() -> AsyncIterator[tuple[Job, float | None]]:
        raise NotFound("there is no such job")
        yield

    async def run() -> list[bytes]:
        return [sent async for sent in stream(changes())]

    assert asyncio.run(run()) == []


def test_the_changes_end_with_the_stream_of_a_caller_who_left() -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def changes() -> AsyncIterator[tuple[Job, float | None]]:
            try:
                yield job(state="queued"), None
                await asyncio.sleep(60)
            finally:
                ended.set()

        async def read() -> None:
            async for _ in stream(changes()):
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(run())


def test_the_phases_come_in_order_and_the_stream_ends_with_the_clip(fake_server: Server) -> None:
    job_id = submit(fake_server, "seconds=0.6", num_inference_steps=6)
    events = seen(fake_server, job_id)
    assert [event.id for event in events] == [str(number) for number in range(1, len(events) + 1)]
    assert [event.name for event in events[:-1]] == ["progress"] * (len(events) - 1)
    places = [(PHASES.index(event.data["phase"]), event.data["step"]) for event in events]
    assert places == sorted(places)
    steps = {event.data["step"] for event in events if event.data["phase"] == "denoising"}
    assert len(steps) >= 4  # two may be overtaken
    assert {event.data["steps"] for event in events if event.data["phase"] == "denoising"} == {6}
    fractions = [event.data["fraction"] for event in events]
    assert fractions == sorted(fractions)
    assert [event.data["seconds_left"] for event in events if event.data["seconds_left"]]
    assert all(event.data["status"] in ("queued", "running") for event in events[:-1])
    last = events[-1]
    assert (last.name, last.data["status"], last.data["fraction"]) == ("succeeded", "succeeded", 1.0)
    assert http.get(f"{fake_server.url}/v1/files/{last.data['file_id']}/download").content[4:8] == b"ftyp"


def test_who_comes_late_is_told_the_end_at_once(fake_server: Server) -> None:
    job_id = submit(fake_server, "a lamp")
    first = seen(fake_server, job_id)[-1]
    again = seen(fake_server, job_id)
    assert [(event.name, event.id) for event in again] == [("succeeded", "1")]
    assert again[0].data == first.data


def test_a_failure_is_an_event_with_its_code(fake_server: Server) -> None:
    last = seen(fake_server, submit(fake_server, "fail=out_of_memory"))[-1]
    assert (last.name, last.data["status"], last.data["error"]["code"]) == ("failed", "failed", "out_of_memory")
    assert "file_id" not in last.data


@pytest.mark.parametrize("job_id", [NOBODYS, "job_1"])
def test_a_job_nobody_knows_is_not_found_before_a_stream_begins(fake_server: Server, job_id: str) -> None:
    for answer in (http.get(f"{fake_server.url}/v1/jobs/{job_id}/events"), cancel(fake_server, job_id)):
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/json"
        assert "no such job" in answer.json()["detail"]


def test_who_watches_sees_a_job_being_canceled(fake_server: Server) -> None:
    running = submit(fake_server, "seconds=60")
    waiting = submit(fake_server, "seconds=60")
    with watching(fake_server, running) as events:
        assert next(event for event in events if event.data["step"] == 0 and event.data["phase"] == "denoising")
        assert cancel(fake_server, waiting).json() == {"id": waiting, "status": "canceled"}
        assert cancel(fake_server, running).json()["id"] == running
        last = list(events)[-1]
    assert (last.name, last.data["status"]) == ("canceled", "canceled")
    assert "error" not in last.data
    for job_id in (running, waiting):
        # once more is harmless
        assert cancel(fake_server, job_id).json() == {"id": job_id, "status": "canceled"}
        assert [event.name for event in seen(fake_server, job_id)] == ["canceled"]


def test_a_job_that_has_ended_cannot_be_canceled_any_more(fake_server: Server) -> None:
    job_id = submit(fake_server, "a lamp")
    seen(fake_server, job_id)
    answer = cancel(fake_server, job_id)
    assert (answer.status_code, answer.json()) == (200, {"id": job_id, "status": "succeeded"})


def leave(server: Server, job_id: str, number: int) -> None:
    """Watch for a moment and hang up: some without having read, some without a goodbye."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(number % 5 / 50)
        if number % 2:
            connection.recv(100 * number)
        if number % 3 == 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_those_who_leave_a_stream_harm_nothing(fake_server: Server) -> None:
    before = len(fake_server.log)
    job_id = submit(fake_server, "seconds=0.5", num_inference_steps=100)
    threads = [threading.Thread(target=leave, args=(fake_server, job_id, number)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen(fake_server, job_id)[-1].name == "succeeded"
    assert "Traceback" not in fake_server.log[before:]


def test_many_watch_one_job_and_all_see_its_end(fake_server: Server) -> None:
    job_id = submit(fake_server, "seconds=0.3")
    last: list[str] = []
    threads = [threading.Thread(target=lambda: last.append(seen(fake_server, job_id)[-1].name)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert last == ["succeeded"] * 20


def test_streams_end_when_the_server_is_told_to(tmp_path: Path) -> None:
    with running_server(tmp_path, {"LTX2_SHUTDOWN_SECONDS": "1"}, engine="fake") as server:
        wait_until_warm(server)
        job_id = submit(server, "seconds=60")
        with watching(server, job_id) as events:
            next(events)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert [event.name for event in events][-1:] in ([], ["progress"])
            assert time.monotonic() - told < 1
        assert server.process.wait(timeout=20) is not None
        assert "Traceback" not in server.log
