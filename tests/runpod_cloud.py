"""A stand-in for RunPod as a whole on loopback: an endpoint as its callers see it, and as its workers do.

Jobs that are posted wait until a worker takes them; one whose worker's pings stop is given to another. What callers
see of the endpoint can be taken away and given back, and any answer can be replaced by another.
"""

import base64
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ltx2.engine import CancelFlag
from ltx2.fake import FakeEngine
from ltx2.payload import file_field, parse, view
from ltx2.settings import Settings

KEY = "rpa_a-key-of-the-stand-in"
ENDPOINT = "stand-in-7"
SECONDS_WITHOUT_PING = 12.0
"""Then a worker is taken for lost."""
LONGEST_POLL = 10.0
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

Answer = tuple[int, Any]
"""A status, and JSON; text is sent as it is, and with a status of 0 nothing is answered."""


@dataclass
class CloudJob:
    """A job that was posted to the endpoint."""

    body: Mapping[str, Any]
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-u1")
    state: str = "IN_QUEUE"
    output: Any = None
    error: Any = None
    worker: str | None = None
    starts: int = 0
    """How often it was given to a worker."""
    answers: int = 0
    """How often a worker has answered it."""
    progress: list[Any] = field(default_factory=list)

    @property
    def input(self) -> Any:
        return self.body["input"]

    @property
    def view(self) -> dict[str, Any]:
        """What /status says."""
        told: dict[str, Any] = {"id": self.id, "status": self.state, "delayTime": 1}
        told |= {"output": self.output} if self.output is not None else {}
        return told | ({"error": self.error} if self.error is not None else {})


class Cloud:
    """Everything there is at this RunPod. All threads may call it."""

    def __init__(self) -> None:
        self.port = 0
        """Where workers ask."""
        self.api_port = 0
        """Where callers ask."""
        self.jobs: dict[str, CloudJob] = {}
        self.asked: list[str] = []
        """The route of every request of a caller's."""
        self.scripted: dict[str, deque[Answer]] = {}
        """By route, answers to be given before its own ones."""
        self.refusal: Answer | None = None
        """The answer to every caller, whatever they ask."""
        self.stopped: list[tuple[str, str]] = []
        """Workers that were told to stop, and which job."""
        self.changed = threading.Condition(threading.RLock())
        self.is_closing = False
        self._stops: dict[str, deque[str]] = {}
        self._pings: dict[str, float] = {}
        self._api: ThreadingHTTPServer | None = None

    @property
    def base_url(self) -> str:
        """What callers set as RUNPOD_ENDPOINT_BASE_URL."""
        return f"http://127.0.0.1:{self.api_port}/v2"

    def caller(self) -> dict[str, str]:
        """The environment of a server that sends its generations here."""
        return {
            "RUNPOD_ENDPOINT_BASE_URL": self.base_url,
            "RUNPOD_API_KEY": KEY,
            "LTX2_RUNPOD_ENDPOINT": ENDPOINT,
        }

    def worker(self, name: str) -> dict[str, str]:
        """What RunPod sets in a worker's environment."""
        base = f"http://127.0.0.1:{self.port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID?id=$ID",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": name,
            "RUNPOD_AI_API_KEY": "key",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
        }

    def wait_for(self, happened: Callable[[], bool], seconds: float = 90) -> None:
        """Wait for something that is seen here."""
        with self.changed:
            assert self.changed.wait_for(happened, seconds), "it did not happen in time"

    def count(self, route: str) -> int:
        """How often callers have asked for a route."""
        return self.asked.count(route)

    # what callers ask

    def open(self) -> None:
        """Let callers in, at the same place as before."""
        server = _serve(type("Api", (_Api,), {"cloud": self}), self.api_port)
        self._api, self.api_port = server, server.server_address[1]

    def shut(self) -> None:
        """Refuse every connection of callers."""
        if self._api is not None:
            _end(self._api)
            self._api = None

    def answer(self, route: str, job: str, body: Any) -> Answer:
        """What a caller is answered."""
        with self.changed:
            self.asked.append(route)
            self.changed.notify_all()
            if self.refusal is not None:
                return self.refusal
            if waiting := self.scripted.get(route):
                return waiting.popleft()
            match route:
                case "run" | "runsync":
                    posted = self.post(body)
                    return 200, {"id": posted.id, "status": posted.state}
                case "health":
                    return 200, self.health()
                case "purge-queue":
                    waiting_jobs = [each for each in self.jobs.values() if each.state == "IN_QUEUE"]
                    for each in waiting_jobs:
                        self.cancel(each.id)
                    return 200, {"removed": len(waiting_jobs), "status": "completed"}
                case "status" if job in self.jobs:
                    return 200, self.jobs[job].view
                case "cancel" if job in self.jobs:
                    self.cancel(job)
                    return 200, {"id": job, "status": self.jobs[job].state}
            return 404, {"error": "not found"}

    def post(self, body: Any) -> CloudJob:
        """A new job."""
        with self.changed:
            job = CloudJob(body)
            self.jobs[job.id] = job
            self.changed.notify_all()
            return job

    def cancel(self, job_id: str) -> None:
        """Stop a job that is not over."""
        with self.changed:
            job = self.jobs[job_id]
            if job.state == "IN_PROGRESS" and job.worker is not None:
                self._stops.setdefault(job.worker, deque()).append(job_id)
                self.stopped.append((job.worker, job_id))
            if job.state not in OVER:
                job.state, job.output = "CANCELLED", None
            self.changed.notify_all()

    def health(self) -> dict[str, Any]:
        states = [job.state for job in self.jobs.values()]
        jobs = {"inQueue": states.count("IN_QUEUE"), "inProgress": states.count("IN_PROGRESS")}
        return {"jobs": jobs, "workers": {"idle": 0, "running": len(self._pings)}}

    # what workers ask

    def take(self, worker: str, seconds: float = LONGEST_POLL) -> CloudJob | None:
        """The job that has waited longest, for a worker; None if there is none."""
        with self.changed:
            job: CloudJob | None = None

            def found() -> bool:
                nonlocal job
                job = next((each for each in self.jobs.values() if each.state == "IN_QUEUE"), None)
                return job is not None or self.is_closing

            self.changed.wait_for(found, seconds)
            if job is not None:
                job.state, job.worker, job.starts = "IN_PROGRESS", worker, job.starts + 1
                self.changed.notify_all()
            return job

    def told(self, job_id: str, body: Mapping[str, Any]) -> None:
        """A worker reports progress, or answers a job."""
        with self.changed:
            job = self.jobs[job_id]
            if body.get("status") == "IN_PROGRESS":
                job.progress.append(body.get("output"))
                if job.state == "IN_PROGRESS":
                    job.output = body.get("output")
            else:
                job.answers += 1
                if job.state not in OVER:
                    job.output, job.error = body.get("output"), body.get("error")
                    job.state = "COMPLETED" if job.error is None else "FAILED"
            self.changed.notify_all()

    def stop_of(self, worker: str) -> str | None:
        """The job that a worker shall stop, as soon as there is one."""
        with self.changed:
            stops = self._stops.setdefault(worker, deque())
            self.changed.wait_for(lambda: bool(stops) or self.is_closing, LONGEST_POLL)
            return stops.popleft() if stops else None

    def ping(self, worker: str) -> None:
        """A worker is alive."""
        with self.changed:
            self._pings[worker] = time.monotonic()

    def look(self) -> None:
        """Give the jobs of workers whose pings have stopped to others."""
        with self.changed:
            now = time.monotonic()
            for worker in [name for name, at in self._pings.items() if now - at > SECONDS_WITHOUT_PING]:
                self.lose(worker)

    def lose(self, worker: str) -> None:
        """Take a worker for lost, and give its jobs to others."""
        with self.changed:
            self._pings.pop(worker, None)
            for job in self.jobs.values():
                if job.worker == worker and job.state == "IN_PROGRESS":
                    job.state, job.worker, job.output = "IN_QUEUE", None, None
                    self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    cloud: Cloud

    def do_GET(self) -> None:
        self.handle_one(None)

    def do_POST(self) -> None:
        read = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.handle_one(json.loads(read) if read else None)

    def handle_one(self, body: Any) -> None:
        raise NotImplementedError

    def send(self, status: int, content: Any) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if 300 <= status < 400:
            self.send_header("Location", f"http://localhost:{self.cloud.api_port}/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Api(_Handler):
    """One request of a caller."""

    def handle_one(self, body: Any) -> None:
        version, endpoint, route, *rest = [*urlsplit(self.path).path.strip("/").split("/"), "", "", ""][:4]
        if version != "v2":
            self.cloud.asked.append("elsewhere")
            return self.send(404, {})
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.send(401, {"error": "unauthorized"})
        if endpoint != ENDPOINT:
            return self.send(404, {"error": "no such endpoint"})
        status, content = self.cloud.answer(route, rest[0], body)
        if status:
            return self.send(status, content)
        return None


class _Workers(_Handler):
    """One request of a worker."""

    def handle_one(self, body: Any) -> None:
        parts = urlsplit(self.path)
        what, worker = parts.path.strip("/").split("/")
        match what:
            case "job-take":
                self.cloud.ping(worker)  # asking is a sign of life, too
                job = self.cloud.take(worker)
                self.send(200, {"id": job.id, "input": job.input}) if job else self.send(204, "")
            case "job-stop":
                stop = self.cloud.stop_of(worker)
                self.send(200, {"jobsToStop": [stop]}) if stop else self.send(204, "")
            case "job-done":
                self.cloud.told(parse_qs(parts.query)["id"][0], body)
                self.send(200, {})
            case "ping":
                self.cloud.ping(worker)
                self.send(200, {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Whoever was killed or shut out has not waited for the answer."""


def _serve(handler: type[BaseHTTPRequestHandler], port: int = 0) -> ThreadingHTTPServer:
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def _end(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def results_of(job: CloudJob, folder: Path, **more: Any) -> dict[str, Any]:
    """What our worker answers a job with: a test card."""
    request, _ = parse(job.input)
    clip = FakeEngine(Settings(data_dir=folder / "worker")).generate(request, {}, lambda _: None, CancelFlag())
    field, prefix = file_field(request)
    file = clip.path.read_bytes()
    clip.path.unlink()
    return {field: prefix + base64.b64encode(file).decode()} | view(request, clip) | more


@contextmanager
def runpod_cloud() -> Iterator[Cloud]:
    """A RunPod of one endpoint, without workers yet."""
    cloud = Cloud()
    workers = _serve(type("Workers", (_Workers,), {"cloud": cloud}))
    cloud.port = workers.server_address[1]
    cloud.open()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            cloud.look()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield cloud
    finally:
        over.set()
        watching.join()
        with cloud.changed:
            cloud.is_closing = True
            cloud.changed.notify_all()
        cloud.shut()
        _end(workers)
