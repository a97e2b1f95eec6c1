"""A job: one request, from its acceptance to its one terminal state."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ltx2.engine import ClipFacts, Phase, Progress
from ltx2.errors import Failure
from ltx2.request import GenerationRequest

State = Literal["queued", "running", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "canceled"})
"""States that are never left."""
MOST_TRIES = 2
"""How often a job is begun. A model process may be lost by bad luck once; twice, it is the job."""

PRIORITIES: Mapping[str, int] = {"low": -1, "normal": 0, "high": 1}

_SHARES: Mapping[Phase, tuple[float, float]] = {
    "queued": (0.0, 0.0),
    "loading": (0.0, 0.02),
    "encoding": (0.02, 0.08),
    "denoising": (0.08, 0.85),
    "decoding": (0.85, 0.95),
    "muxing": (0.95, 1.0),
}
"""From where to where each phase takes a job, roughly as real clips on a GPU go."""


def new_id(kind: Literal["job", "file", "msg"]) -> str:
    """An id that nobody guesses, such as ``job_`` and 32 hexadecimal digits."""
    return f"{kind}_{secrets.token_hex(16)}"


def fraction(progress: Progress) -> float:
    """How much of a job is done, from 0 to 1: best effort.

    It falls where another machine has to begin again, and where a clip is made once more for its flaw.
    """
    begin, end = _SHARES[progress.stretch]
    return begin + (end - begin) * (progress.step / progress.steps if progress.steps else 0.0)


@dataclass(frozen=True)
class Order:
    """Who asks, and what is to be done around the generation."""

    owner: str = ""
    """Of an API key, see :mod:`ltx2.studio.keys`; empty where none are wanted."""
    dialect: str = "native"
    priority: int = 0
    """Higher goes first, among the jobs of the same owner."""
    idempotency_key: str | None = None
    webhook_url: str | None = None
    """Told when the job has ended."""
    upload_url: str | None = None
    """Where the clip is PUT when it is finished."""
    batch: str | None = None
    """The name its dialect has for a request that is several jobs, or for one that was tried again."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what its dialect needs to show the job as it was ordered. Nobody else looks at it."""
    base_url: str = ""
    """Where the caller reached this server, for links that are sent to others."""
    run_seconds: float | None = None
    """How long the generation may take, where that is less than the server allows."""
    ttl_seconds: float | None = None
    """How long after it was sent the job must be over."""
    clip_seconds: float | None = None
    """How long the clip is kept, where that is less than the server keeps files."""


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read."""

    id: str
    order: Order
    request: GenerationRequest
    """With its seed."""
    inputs: Mapping[str, str]
    """The file id of each media the request names."""
    state: State
    created_at: float
    """Unix time, as all times here."""
    started_at: float | None = None
    """Of the last try."""
    finished_at: float | None = None
    tries: int = 0
    cancel_requested: bool = False
    progress: Progress = field(default_factory=lambda: Progress("queued"))
    result: ClipFacts | None = None
    """There when it succeeded."""
    file_id: str | None = None
    """Of the clip, there when it succeeded; the file itself may have been deleted since."""
    file_size: int = 0
    """Bytes of the clip."""
    fake: bool = False
    """Whether the clip is a test card."""
    failure: Failure | None = None
    """There when it failed."""

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def num_frames(self) -> int | None:
        """Frames of the clip, once that is settled."""
        return self.result.num_frames if self.result else self.request.num_frames

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1."""
        return 1.0 if self.state == "succeeded" else fraction(self.progress)


def outline(job: Job) -> str:
    """A job in a log line: nothing that anybody wrote, said or showed."""
    request = job.request
    began, ended = job.started_at or job.created_at, job.finished_at or job.created_at
    facts = {
        "job": job.id,
        "state": job.state,
        "code": job.failure.code if job.failure else "-",
        "dialect": job.order.dialect,
        "mode": request.mode,
        "size": f"{request.width}x{request.height}x{job.num_frames or '?'}",
        "seed": request.seed,
        "tries": job.tries,
        "waited": f"{began - job.created_at:.2f}",
        "seconds": f"{ended - began:.2f}",
    }
    return " ".join(f"{name}={value}" for name, value in facts.items())
