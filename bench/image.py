"""``python -m bench.image``: builds the image without a Docker engine, and runs what is in it.

Needs root, buildah, and a root filesystem of the base's Ubuntu as a tar file, which stands for the base:
``mmdebstrap --variant=apt --include=passwd --components=main,universe noble noble.tar``. The layers need some 20 GB
below ``--folder``. Processes of the image run in its files with a process table of their own, so that the image's
command is process 1 as in a container; they have this machine's network, and no limits.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TAG = "ltx2-tried"
OWN_USER = "10001:10001"
JOB = {"input": {"prompt": "a lamp flickers", "width": 128, "height": 128, "num_frames": 17, "seed": 1}}
VERSIONS = "import platform, torch; print(platform.python_version(), torch.__version__)"
SECONDS_TO_START = 120


class Builder:
    """buildah, with everything that it keeps in one folder."""

    def __init__(self, folder: Path) -> None:
        self._command = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str) -> str:
        """What it prints. What it logs is seen."""
        return subprocess.run(
            [*self._command, *arguments], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()

    def import_base(self, archive: Path) -> str:
        """Give a root filesystem the name that the Dockerfile's FROM has."""
        found = re.search(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        name = found[1] if found else ""
        container = self("from", "scratch")
        self("add", "--quiet", container, str(archive.resolve()), "/")
        self("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self("commit", "--quiet", "--rm", container, name)
        return name

    def build(self, options: Sequence[str]) -> float:
        """Build the repository's Dockerfile; the seconds it took."""
        started = time.monotonic()
        fixed = ["--format", "docker", "--isolation", "chroot", "--pull-never", "--layers", "--tag", TAG]
        print(self("build", *fixed, *options, str(ROOT)))
        return time.monotonic() - started

    def config(self) -> dict[str, Any]:
        """What the image says of itself: Env, Cmd, Healthcheck, User."""
        config: dict[str, Any] = json.loads(self("inspect", "--type", "image", TAG))["Docker"]["config"]
        return config

    @contextmanager
    def files(self) -> Iterator[Path]:
        """The root of a container's files."""
        container = self("from", "--pull-never", TAG)
        try:
            yield Path(self("mount", container))
        finally:
            self("rm", container)


class Container:
    """A container as far as it goes without an engine: the image's files, environment and folder."""

    def __init__(self, root: Path, config: dict[str, Any], **variables: str) -> None:
        self.root = root
        self._environment = dict(line.split("=", 1) for line in config["Env"]) | variables
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")

    def start(self, command: Sequence[str], user: str) -> subprocess.Popen[str]:
        """Start a command as process 1."""
        folders = " && ".join(f"mount --rbind /{name} {self.root}/{name}" for name in ("dev", "sys"))
        enter = [
            "chroot",
            f"--userspec={user}",
            str(self.root),
            "/bin/sh",
            "-c",
            'cd /app && exec "$@"',
            "sh",
            *command,
        ]
        # the shells put another program in their place, so that the command is process 1 itself
        script = f'mount -t proc proc {self.root}/proc && {folders} && exec "$@"'
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", script, "sh", *enter],
            env=self._environment | {"HOME": "/root" if user.startswith("0:") else "/home/ltx2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: Sequence[str], user: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = self.start(command, user)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def check(self, first: int, command: Sequence[str]) -> int:
        """Exit status of a command beside process 1, as HEALTHCHECK is run.

        Args:
            first: process 1, by the number that it has outside.
            command: is looked for by the image's PATH.
        """
        inside = ["nsenter", f"--target={first}", "--pid", "--mount", "--root", "--wd"]
        return subprocess.run([*inside, *command], env=self._environment, timeout=60, check=False).returncode


def first_process(process: subprocess.Popen[str], word: str) -> int:
    """Process 1 of a container that was just started, by its number outside, once its command has this word."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        for child in children.read_text().split():
            if word.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return int(child)
        time.sleep(0.01)
    process.kill()
    raise SystemExit(f"{word} was not started:\n{process.communicate()[0]}")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def try_worker(container: Container, user: str, command: Sequence[str]) -> None:
    """One job of the embedded miniature by the image's own command."""
    started = time.monotonic()
    code, output = container.run([*command, "--test_input", json.dumps(JOB)], user)
    if code != 0 or "data:video/mp4;base64," not in output:
        raise SystemExit(f"the worker failed as {user}:\n{output[-4000:]}")
    print(f"worker as {user}: a clip in {time.monotonic() - started:.1f} s, start included")


def try_server(container: Container, check: Sequence[str]) -> None:
    """The server with test cards: health as the image checks it, and a polite end."""
    process = container.start(["python", "server.py", "--engine", "fake"], OWN_USER)
    first = first_process(process, "server.py")
    started = time.monotonic()
    sick = 0
    while container.check(first, check) != 0 and time.monotonic() - started < SECONDS_TO_START:
        sick += 1
    healthy = time.monotonic() - started
    os.kill(first, signal.SIGTERM if healthy < SECONDS_TO_START else signal.SIGKILL)
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=60)
    if sick == 0 or healthy >= SECONDS_TO_START or "Traceback" in output:
        raise SystemExit(f"the server was healthy too soon, or never, or did not end well:\n{output[-4000:]}")
    print(
        f"server as {OWN_USER}: {sick} checks said unhealthy, then healthy after {healthy:.1f} s; "
        f"ended {time.monotonic() - stopped:.1f} s after SIGTERM"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="an empty folder for the layers; remove it afterwards"
    )
    parser.add_argument("--base", type=Path, required=True, help="tar file of the root filesystem that is the base")
    parser.add_argument(
        "options", nargs="*", help="after --: options for buildah build, such as --build-arg or --volume"
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(given.folder)
    print(f"base {builder.import_base(given.base)}: {given.base.name}")
    print(f"built in {builder.build(given.options):.0f} s")
    config = builder.config()
    with builder.files() as root:
        _, versions = Container(root, config).run(["python", "-c", VERSIONS], "0:0")
        print(f"Python and torch: {versions.strip()}")
    for user in ("0:0", OWN_USER):  # a container for each: one's files may not be the other's
        with builder.files() as root:
            try_worker(Container(root, config, LTX2_MODEL="tiny"), user, config["Cmd"])
    with builder.files() as root:
        try_server(Container(root, config, PORT=free_port()), config["Healthcheck"]["Test"][1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
