"""Asks a container's own server for its health: ``python -m ltx2.healthcheck``.

The image runs either the server or the RunPod worker. The worker has no port to ask, so it counts as
healthy as long as its process is there, which is what the container itself stands for.
"""

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ltx2.settings import Settings, load_settings

TIMEOUT_SECONDS = 4


def server_port(command: Sequence[str], settings: Settings) -> int | None:
    """The port of the server that a command line starts; None when it starts something else."""
    if not any(Path(word).name == "server.py" for word in command):
        return None
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == "--port":
            return int(after)
        if word.startswith("--port="):
            return int(word.removeprefix("--port="))
    return settings.port


def is_healthy(port: int) -> bool:
    """Whether ``GET /health`` on this machine answers 200 in time."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def main(command_file: Path = Path("/proc/1/cmdline")) -> int:
    # a shell may have the whole command as one word
    command = command_file.read_text().replace("\0", " ").split()
    port = server_port(command, load_settings())
    return 0 if port is None or is_healthy(port) else 1


if __name__ == "__main__":
    sys.exit(main())
