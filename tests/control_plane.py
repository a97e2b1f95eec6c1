"""A stand-in for RunPod's control plane on loopback: hands out jobs, takes results, signals stops."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Posted:
    """Something the worker posted about a job."""

    job: str
    seconds: float
    body: dict[str, Any]

    @property
    def is_progress(self) -> bool:
        return self.body.get("status") == "IN_PROGRESS"


@dataclass
class ControlPlane:
    port: int = 0
    jobs: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)
    stops: "queue.Queue[str]" = field(default_factory=queue.Queue)
    posted: list[Posted] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def environment(self) -> dict[str, str]:
        """What RunPod sets in a worker's environment."""
        base = f"http://127.0.0.1:{self.port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done?id=$ID",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping",
            "RUNPOD_POD_ID": "pod",
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


class Handler(BaseHTTPRequestHandler):
    """One request of the worker."""

    plane: ControlPlane

    def do_GET(self) -> None:
        if "/job-take/" in self.path:
            self.poll(self.plane.jobs, lambda job: job)
        elif "/job-stop/" in self.path:
            self.poll(self.plane.stops, lambda job: {"jobsToStop": [job]})
        else:
            self.answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        job = parse_qs(urlsplit(self.path).query)["id"][0]
        self.plane.posted.append(Posted(job, time.monotonic(), body))
        self.answer(200, {})

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
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


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
