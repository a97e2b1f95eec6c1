"""What tests of the Ray engine share: real clusters on this machine, and generations in threads of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ltx2.engine import CancelFlag, Clip, Engine, Progress
from ltx2.fleet.cluster import FAKE, SECONDS_TO_HEED, ClusterEngine
from ltx2.media.probe import probe_video
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from processes import environment

LONG = 90.0
"""Seconds that are enough for anything here, on any machine."""
PRIVATE = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
"""A test has no secret to keep from other users of this machine, and need not wait for them."""


def make(prompt: str = "x", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": prompt, "width": 64, "height": 64, "num_frames": 9, "seed": 1} | fields)


def generate(engine: Engine, request: GenerationRequest, media: Mapping[str, bytes] | None = None) -> Clip:
    return engine.generate(request, media or {}, lambda _progress: None, CancelFlag())


def works(engine: Engine) -> bool:
    clip = generate(engine, make())
    is_whole = probe_video(clip.path).num_frames == 9
    clip.path.unlink()
    return is_whole


def until(happened: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below(pid: int) -> list[int]:
    """A process, and what it and those have started."""
    return [pid, *(process.pid for process in psutil.Process(pid).children(recursive=True))]


def actors(pids: list[int]) -> list[int]:
    """Those of these processes that are actors of ours."""
    found = []
    for pid in pids:
        try:
            if any("ray::Actor" in word for word in psutil.Process(pid).cmdline()):
                found.append(pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
    return found


@dataclass
class Head:
    """A cluster on this machine, started as its operator would."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        kill(self.process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the power fails. Asked to end, Ray would wait half a minute for whoever is still connected."""
    if process.poll() is None:
        family = below(process.pid)
        for pid in reversed(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for pid in family:
            until(lambda pid=pid: not is_alive(pid))


def ray_start(folder: Path, cpus: int, *options: str) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-gpus=0", *options]
    program += [f"--num-cpus={cpus}", f"--object-store-memory={200 * 2**20}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(program, env=environment(folder) | PRIVATE, **quiet)


@contextmanager
def ray_cluster(port: int, cpus: int = 4) -> Iterator[Head]:
    # the sockets in this folder must have short names
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = ("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
        head = Head(port, ray_start(Path(folder), cpus, *options, "--disable-usage-stats"))
        try:
            until((Path(folder) / "ray_current_cluster").exists)
            yield head
        finally:
            head.kill()


@contextmanager
def ray_machine(head: Head, folder: Path, cpus: int = 2) -> Iterator["subprocess.Popen[bytes]"]:
    """Another machine in a cluster; really this one, once more."""
    process = ray_start(folder, cpus, f"--address={head.address}")
    try:
        yield process
    finally:
        kill(process)


@contextmanager
def running(
    folder: Path, address: str | None, build: str = FAKE, heed: float = SECONDS_TO_HEED, **settings: Any
) -> Iterator[ClusterEngine]:
    """An engine of its own. Nothing of it is left."""
    more = {"data_dir": folder, "ray_address": address, "device": "cpu"} | settings
    before = set(threading.enumerate())
    engine = ClusterEngine(Settings(**more), build, seconds_to_heed=heed)
    try:
        yield engine
    finally:
        engine.close()
    assert [path.name for path in folder.rglob("*") if path.is_file() and path.name != "ray-token"] == []
    until(lambda: not {thread for thread in set(threading.enumerate()) - before if "Ray" in thread.name})


@dataclass
class Generation:
    """One in a thread of its own."""

    engine: Engine
    request: GenerationRequest
    flag: CancelFlag = field(default_factory=CancelFlag)
    seen: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        thread = ThreadPoolExecutor(1)
        self.made = thread.submit(self.engine.generate, self.request, {}, self.seen.append, self.flag)
        thread.shutdown(wait=False)

    def wait_for(self, phase: str) -> None:
        until(lambda: any(progress.phase == phase for progress in self.seen))

    def clip(self) -> Clip:
        return self.made.result(timeout=LONG)

    def error(self) -> BaseException | None:
        return self.made.exception(timeout=LONG)
