"""Floods and kills a real server and counts what became of every job: ``python -m bench.reliability``.

Every change of a job's state is recorded by a trigger inside its database, so that what is counted is what was
written, whoever was killed in between.
"""

import asyncio
import json
import math
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from ltx2.errors import LTX2Error
from ltx2.media.probe import probe_video

ROOT = Path(__file__).parent.parent
SLOW_MS = 50
"""What the server's health must take less than, 99 times of 100."""
TERMINAL = ("succeeded", "failed", "canceled")
TINY_STEPS_A_SECOND = 80
"""Of the miniature at the size below, on one busy core."""
CREATE = "/v1/video/ltx2/generate"
WATCH = """
import http.client, json, select, sys, time
address = sys.argv[1].removeprefix("http://")
times = []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    times.append(time.monotonic() - began)
    connection.close()
print(json.dumps(times))
"""
SMALL = {"width": 64, "height": 64, "num_frames": 9, "mode": "async"}


@dataclass
class Ground:
    """A server in a folder of its own, which can be killed and started again."""

    folder: Path
    engine: str
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    async def start(self) -> float:
        """Start the server on a free port. Returns the seconds until it answered."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LTX2_")}
        ours = {"LTX2_DATA_DIR": str(self.data), "LTX2_QUEUE_LIMIT": "1000", "LTX2_LOG_LEVEL": "WARNING"}
        began = time.monotonic()
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "server.py"), "--port", str(port), "--engine", self.engine],
                env=kept | ours | self.settings,
                stdout=log,
                stderr=log,
            )
        async with httpx.AsyncClient(base_url=self.url) as client:
            while True:
                try:
                    (await client.get("/health")).raise_for_status()
                    return time.monotonic() - began
                except httpx.TransportError:
                    if self.process.poll() is not None:
                        raise RuntimeError((self.folder / "server.log").read_text()) from None
                    await asyncio.sleep(0.02)

    def kill_server(self) -> None:
        """Kill the server, and with it nothing: its model process has to notice by itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_model(self) -> bool:
        """Kill the process that holds the model, if there is one now."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            child.kill()
            return True
        return False

    async def is_idle(self) -> bool:
        """Whether there is nothing to do any more."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            health = (await client.get("/health")).json()
        return not health["running"] and not health["queue_len"]

    def stop(self) -> None:
        """Tell the server to end, and wait for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)

    def record_states(self) -> None:
        """From now on, the database notes every change of a job's state."""
        with closing(sqlite3.connect(self.data / "jobs.db", timeout=30)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS moves (job TEXT, old TEXT, new TEXT)")
            database.execute(
                "CREATE TRIGGER IF NOT EXISTS moved AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state "
                "BEGIN INSERT INTO moves VALUES (NEW.id, OLD.state, NEW.state); END"
            )


@asynccontextmanager
async def ground(folder: Path, engine: str, **settings: str) -> AsyncIterator[Ground]:
    """A running server, which is stopped at the end."""
    there = Ground(folder, engine, settings)
    try:
        await there.start()
        there.record_states()
        yield there
    finally:
        if there.process is not None and there.process.poll() is None:
            there.stop()


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs."""

    states: Counter[str]
    most_tries: int
    left_a_terminal_state: int
    """Changes of state that began at a terminal one: there must be none."""
    most_ends: int
    """Changes to a terminal state, of the job that has most of them: one."""
    most_at_once: int
    """Jobs that were running at the same time, as the database saw it."""
    broken_files: int
    """Files of finished jobs that cannot be played, or are missing."""
    leftovers: int
    """Half-written files after the server has ended."""


def examine(there: Ground, jobs: Iterable[str]) -> Outcome:
    """Read what the database recorded, and play every clip. The server must have ended."""
    wanted = set(jobs)
    with closing(sqlite3.connect(there.data / "jobs.db")) as database:
        rows = {row[0]: row for row in database.execute("SELECT id, state, tries, file_id FROM jobs")}
        moves = list(database.execute("SELECT job, old, new FROM moves ORDER BY rowid"))
    assert wanted <= rows.keys(), "a job was lost"
    ends = Counter(job for job, _, new in moves if new in TERMINAL)
    running: set[str] = set()
    most = 0
    for job, _, new in moves:
        running = running | {job} if new == "running" else running - {job}
        most = max(most, len(running))
    broken = sum(not _plays(there.data / "files" / rows[job][3]) for job in wanted if rows[job][1] == "succeeded")
    leftovers = list(there.data.rglob("*.part*")) + list((there.data / "engine").rglob("*.mp4"))
    return Outcome(
        Counter(rows[job][1] for job in wanted),
        max(rows[job][2] for job in wanted),
        sum(old in TERMINAL for _, old, _ in moves),
        max(ends.values(), default=0),
        most,
        broken,
        len(leftovers),
    )


def _plays(path: Path) -> bool:
    with suppress(LTX2Error, OSError):
        return probe_video(path, "mp4").num_frames == SMALL["num_frames"]
    return False


async def create(client: httpx.AsyncClient, prompt: str, key: str, **fields: Any) -> str | None:
    """Make a job, however often the server has to be asked. None when the queue is full."""
    while True:
        try:
            answer = await client.post(
                CREATE, json=SMALL | {"prompt": prompt} | fields, headers={"Idempotency-Key": key}
            )
        except httpx.TransportError:
            await asyncio.sleep(0.05)
            continue
        if answer.status_code == 429:
            return None
        if answer.status_code != 503:
            answer.raise_for_status()
            return str(answer.json()["job_id"])
        await asyncio.sleep(0.05)


async def until_over(there: Ground, jobs: Iterable[str], seconds: float) -> None:
    """Wait until every job has ended, as callers see it."""
    waiting = list(jobs)
    deadline = time.monotonic() + seconds
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(waiting)} jobs have not ended")
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=there.url, timeout=10) as client:
                # the oldest first, as long as they have ended
                while waiting:
                    answer = await client.get(f"/v1/jobs/{waiting[0]}")
                    if answer.json().get("status") not in TERMINAL:
                        break
                    waiting.pop(0)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[list[float]]:
    """Ask for the server's health fifty times a second; afterwards the list has how long each answer took.

    From a process of its own: who floods is too busy to measure.
    """
    times: list[float] = []
    command = [sys.executable, "-c", WATCH, url]
    watcher = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield times
    finally:
        said, _ = await watcher.communicate(b"stop")
        times += json.loads(said)


def percentile(times: list[float], share: float) -> float:
    """The time that this share of the times is not above."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


async def flood(folder: Path, jobs: int, engine: str = "fake", **settings: str) -> dict[str, Any]:
    """Post many jobs at once, and watch the server's health meanwhile."""
    async with ground(folder, engine, **settings) as there:
        async with httpx.AsyncClient(base_url=there.url) as client:
            while not (await client.get("/health")).json()["warm"]:
                await asyncio.sleep(0.1)
        async with watched(there.url) as times:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=there.url, timeout=300, limits=limits) as client:
                made = await asyncio.gather(
                    *(create(client, f"flood {number}", f"f{number}") for number in range(jobs))
                )
            accepted = time.monotonic() - began
            taken = [job for job in made if job is not None]
            await until_over(there, taken, 600)
            took = time.monotonic() - began
        there.stop()
        return {
            "outcome": examine(there, taken),
            "refused": made.count(None),
            "accept_seconds": accepted,
            "total_seconds": took,
            "health_p50_ms": 1000 * percentile(times, 0.5),
            "health_p99_ms": 1000 * percentile(times, 0.99),
            "health_answers": len(times),
        }


async def kill(
    folder: Path, jobs: int, model_kills: int, server_kills: int, engine: str = "fake", seconds: float = 0.1
) -> dict[str, Any]:
    """Post jobs, and kill the model process and the server at random moments while they run.

    Args:
        folder: an empty one.
        jobs: how many.
        model_kills: of the process that holds the model.
        server_kills: of the server, which is started again each time.
        engine: fake or local.
        seconds: that each generation takes: a fake one by its prompt, a real one by its steps, roughly.
    """
    chance = random.Random(1)
    async with ground(folder, engine) as there:
        client = httpx.AsyncClient(timeout=30)

        async def post() -> list[str]:
            made = []
            for number in range(jobs):
                client.base_url = there.url  # another one after each restart
                steps = 8 if engine == "fake" else min(100, round(seconds * TINY_STEPS_A_SECOND))
                prompt = f"seconds={seconds} {number}"
                job = await create(client, prompt, f"k{number}", num_inference_steps=steps)
                assert job is not None
                made.append(job)
            return made

        posting = asyncio.create_task(post())
        blows = ["model"] * model_kills + ["server"] * server_kills
        chance.shuffle(blows)
        span = jobs * seconds / len(blows)
        starts, struck = [], 0
        for blow in blows:
            await asyncio.sleep(chance.uniform(0.2, 1.8) * span)
            if blow == "server":
                there.kill_server()
                starts.append(await there.start())
            else:
                while not (hit := there.kill_model()) and not (posting.done() and await there.is_idle()):
                    await asyncio.sleep(0.01)
                struck += hit
        made = await posting
        await client.aclose()
        await until_over(there, made, 600)
        there.stop()
        most = max(starts, default=0.0)
        return {"outcome": examine(there, made), "model_kills": struck, "most_seconds_to_start": most}


def verdict(outcome: Outcome) -> list[str]:
    """What is wrong; nothing when all is well."""
    wrong = {
        "a job did not end": set(outcome.states) - set(TERMINAL),
        "a terminal state was left": outcome.left_a_terminal_state,
        "a job ended more than once": outcome.most_ends > 1,
        "a job was tried more than twice": outcome.most_tries > 2,
        "two jobs ran at once": outcome.most_at_once > 1,
        "a clip cannot be played": outcome.broken_files,
        "something half-written was left": outcome.leftovers,
    }
    return [what for what, is_wrong in wrong.items() if is_wrong]


RUNS: Mapping[str, Callable[[Path], Awaitable[dict[str, Any]]]] = {
    "500 posts at once, fake engine": lambda folder: flood(folder, 500),
    "100 posts at once, tiny model": lambda folder: flood(folder, 100, "local"),
    "100 jobs, 30 kills of the model process, 10 of the server, fake engine": (
        lambda folder: kill(folder, 100, 30, 10, seconds=1.0)
    ),
    "30 jobs, 5 kills of the model process, tiny model": (lambda folder: kill(folder, 30, 5, 0, "local", seconds=1.0)),
}


async def _run(run: Callable[[Path], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return await run(Path(folder))


def main() -> int:
    failed = False
    for name, run in RUNS.items():
        found = asyncio.run(_run(run))
        outcome = found.pop("outcome")
        wrong = verdict(outcome)
        if found.get("health_p99_ms", 0.0) >= SLOW_MS:
            wrong.append(f"the server's health took more than {SLOW_MS} ms")
        failed = failed or bool(wrong)
        figures = {key: round(value, 2) for key, value in found.items()}
        print(f"{name}\n  {'; '.join(wrong) or 'all is well'}")
        print("  " + json.dumps({"states": outcome.states, "most_tries": outcome.most_tries, **figures}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
