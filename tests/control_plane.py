"""A stand-in for RunPod's control plane on loopback: hands out jobs, takes results, signals stops, hears pings."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit


@dataclass
class Posted:
    """Something a worker posted about a job."""

    job: str
    seconds: float
    """When it had arrived, by the monotonic clock."""
    body: dict[str, Any]
    raw: bytes = b""
    worker: str = ""
    answered: float | None = None
    """When the worker was told that it has arrived; None while that is held back."""

    @property
    def is_progress(self) -> bool:
        return self.body.get("status") == "IN_PROGRESS"


@dataclass
class Ping:
    """A worker has said that it lives, or, with a ``check``, that it is not fit."""

    worker: str
    seconds: float
    jobs: tuple[str, ...]
    check: str | None = None
    reason: str | None = None


@dataclass
class Taken:
    """A worker has got a job."""

    job: str
    worker: str
    seconds: float


@dataclass
class ControlPlane:
    port: int = 0
    jobs: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)
    stops: "queue.Queue[str]" = field(default_factory=queue.Queue)
    posted: list[Posted] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)
    """What was posted and is no strict JSON object."""
    taken: list[Taken] = field(default_factory=list)
    pings: list[Ping] = field(default_factory=list)
    prompt: threading.Event = field(default_factory=threading.Event)
    """Cleared, it holds back the answers to progress, as a slow network would."""
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.prompt.set()

    def environment(self, worker: str = "pod") -> dict[str, str]:
        """What RunPod sets in a worker's environment."""
        base = f"http://127.0.0.1:{self.port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID?id=$ID",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_POD_ID": worker,
            "RUNPOD_AI_API_KEY": "key",
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
        }

    def results(self, job: str) -> list[Posted]:
        return [posted for posted in self.posted if posted.job == job and not posted.is_progress]

    def progress(self, job: str) -> list[Posted]:
        return [posted for posted in self.posted if posted.job == job and posted.is_progress]

    def pings_of(self, worker: str) -> list[float]:
        """When a worker has said that it lives."""
        return [ping.seconds for ping in self.pings if ping.worker == worker and ping.check is None]

    def unfit(self) -> list[Ping]:
        """The workers that have said that they are not fit."""
        return [ping for ping in self.pings if ping.check is not None]


class Handler(BaseHTTPRequestHandler):
    """One request of the worker."""

    plane: ControlPlane

    def do_GET(self) -> None:
        if "/job-take/" in self.path:
            self.poll(self.plane.jobs, self.take)
        elif "/job-stop/" in self.path:
            self.poll(self.plane.stops, lambda job: {"jobsToStop": [job]})
        elif "/ping/" in self.path:
            said = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            jobs = tuple(filter(None, said.get("job_id", "").split(",")))
            ping = Ping(self.worker, time.monotonic(), jobs, said.get("check"), said.get("reason"))
            self.plane.pings.append(ping)
            self.answer(200, {})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            body = strict_json(raw)
        except ValueError:
            self.plane.unreadable.append(raw)
            self.answer(400, {})
            return
        job = parse_qs(urlsplit(self.path).query)["id"][0]
        posted = Posted(job, time.monotonic(), body, raw, self.worker)
        self.plane.posted.append(posted)
        while posted.is_progress and not self.plane.prompt.wait(0.1) and not self.plane.closing.is_set():
            pass
        posted.answered = time.monotonic()
        self.answer(200, {})

    @property
    def worker(self) -> str:
        """The id of the worker, the last part of every path here."""
        return urlsplit(self.path).path.rpartition("/")[2]

    def take(self, job: dict[str, Any]) -> dict[str, Any]:
        self.plane.taken.append(Taken(job["id"], self.worker, time.monotonic()))
        return job

    def poll(self, waiting: "queue.Queue[Any]", render: Callable[[Any], Any]) -> None:
        """Hold the request until there is something to say, as the real one does."""
        for _ in range(100):
            try:
                return self.answer(200, render(waiting.get(timeout=0.1)))
            except queue.Empty:
                if self.plane.closing.is_set():
                    break
        return self.answer(204, None)

    def answer(self, status: int, content: Any) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        with contextlib.suppress(ConnectionError):  # the worker may have ended
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def strict_json(raw: bytes) -> dict[str, Any]:
    """The object that these bytes are.

    Raises:
        ValueError: they are none, not UTF-8, or have a NaN, an infinity or half a character.
    """

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    found = json.loads(raw.decode(), parse_constant=no_number)
    json.dumps(found, ensure_ascii=False).encode()  # half a character, escaped
    return dict(found.items() if isinstance(found, dict) else no_number("what is no object"))


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("PlaneHandler", (Handler,), {"plane": plane}))
    server.daemon_threads = True
    plane.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield plane
    finally:
        plane.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
