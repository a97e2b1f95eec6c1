"""Real processes for tests: the server on loopback, with everything it writes in a folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """This process's environment without any setting of ours or RunPod's, and with the given ones."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LTX2_", "RUNPOD_"))}
    return kept | {"LTX2_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"} | settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running ``server.py``."""

    url: str
    process: subprocess.Popen[bytes]
    data_dir: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def clips(self) -> int:
        """How many files it keeps."""
        return len(list((self.data_dir / "files").iterdir()))

    def leftovers(self) -> list[Path]:
        """What is half-written, or was to be moved."""
        work = (self.data_dir / "engine").rglob("*.mp4")
        return [*self.data_dir.rglob("*.part*"), *work]


@contextmanager
def running_server(
    folder: Path, settings: Mapping[str, str] | None = None, *, engine: str = "local"
) -> Iterator[Server]:
    """Start ``server.py`` and wait until it answers; stop it at the end."""
    port = free_port()
    data_dir, log_file = folder / "data", folder / "server.log"
    started = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "server.py"), "--port", str(port), "--engine", engine],
            env=environment(data_dir, **(settings or {})),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(url + "/health", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() - started > 60:
                    raise RuntimeError(log_file.read_text(errors="replace")) from None
                time.sleep(0.05)
        yield Server(url, process, data_dir, log_file)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_warm(server: Server) -> None:
    """Wait until the model is loaded."""
    deadline = time.monotonic() + 60
    while not httpx.get(server.url + "/health", timeout=5).json()["warm"]:
        if time.monotonic() > deadline:
            raise RuntimeError(server.log)
        time.sleep(0.1)
