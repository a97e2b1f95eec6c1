"""The RunPod worker as a real process, in the SDK's own loop, for tests."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane import ControlPlane

from processes import ROOT, environment

SMALL = {"prompt": "a lamp", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}
LARGE = SMALL | {"prompt": "a long note", "fps": 1, "num_frames": 265, "output_format": "wav"}
"""A file of 25 MB."""
WHISPERED = "nobody-but-them-knows-this"
PATIENCE = 120.0
"""Seconds for what takes a few of them."""


def config_at(store: str) -> dict[str, str]:
    """A job's own bucket."""
    return {"accessId": "AKIATHEIRS", "accessSecret": WHISPERED, "bucketName": "theirs", "endpointUrl": store}


@dataclass
class WorkerProcess:
    """A running worker, and the control plane that it talks to."""

    process: subprocess.Popen[bytes]
    plane: ControlPlane
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")

    @property
    def left(self) -> list[Path]:
        """Files below its data folder."""
        return [path for path in (self.folder / "data").rglob("*") if path.is_file()]

    def send(self, job: str, asked: object, **beside: Any) -> None:
        """Put a job into the queue."""
        self.plane.jobs.put({"id": job, "input": asked, **beside})

    def answer(self, job: str) -> dict[str, Any]:
        """What a job was answered with, once: ``output``, ``error`` and ``stopPod`` as RunPod gets them."""
        self.wait_for(lambda: bool(self.plane.results(job)))
        (result,) = self.plane.results(job)
        return result.body

    def ask(self, job: str, asked: object, **beside: Any) -> dict[str, Any]:
        """Send a job and wait for its answer."""
        self.send(job, asked, **beside)
        return self.answer(job)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self) -> int:
        """Wait until it has ended, and return its status."""
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def started_worker(folder: Path, plane: ControlPlane, *program: str, **settings: str) -> Iterator[WorkerProcess]:
    """A worker as RunPod starts it. What happens to it is the test's business; in the end it is gone.

    Args:
        folder: for all that it writes.
        plane: where its jobs come from.
        program: what to run instead of ``handler.py``.
        settings: environment variables.
    """
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", *(program or (str(ROOT / "handler.py"),))],
            env=environment(folder / "data", **plane.environment(), PYTHONPATH=str(ROOT), **settings),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield WorkerProcess(process, plane, folder)
    finally:
        plane.closing.set()
        process.kill()
        process.wait()


@contextmanager
def running_worker(folder: Path, plane: ControlPlane, *program: str, **settings: str) -> Iterator[WorkerProcess]:
    """A worker that takes jobs. At the end SIGTERM must end it with 0, and all it said must have been JSON."""
    with started_worker(folder, plane, *program, **settings) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        plane.closing.set()
        assert running.end() == 0, running.log
        assert plane.unreadable == []
