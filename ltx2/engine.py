"""The boundary between the life of a request and the model that answers it.

An engine takes a checked request and the raw bytes of its media, and gives the path of a finished
file. Frames and tensors never cross. Implementations: a model in this process
(:class:`ltx2.model.local.LocalEngine`), one in a process of its own
(:class:`ltx2.studio.process.ProcessEngine`), many on other machines
(:class:`ltx2.fleet.endpoint.EndpointEngine`, :class:`ltx2.fleet.cluster.ClusterEngine`), and a quick one
that makes test cards (:class:`ltx2.fake.FakeEngine`).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

from ltx2.errors import Canceled
from ltx2.footprint import Footprint
from ltx2.provenance import Provenance
from ltx2.quality import QualityReport
from ltx2.recipes import Recipe
from ltx2.request import Flaw, GenerationRequest

Phase = Literal["queued", "loading", "encoding", "denoising", "decoding", "muxing"]
PHASES: tuple[Phase, ...] = ("queued", "loading", "encoding", "denoising", "decoding", "muxing")


@dataclass(frozen=True)
class Progress:
    """Where a generation is: a phase and, while denoising, the step of ``steps`` that was finished.

    A clip in pieces is also encoded and decoded between its steps; these are told then, too.
    """

    phase: Phase
    step: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase

    @property
    def stretch(self) -> Phase:
        """The phase of the clip as a whole: from its first step to its last it is being denoised."""
        return "denoising" if self.steps else self.phase


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What is known of a finished clip."""

    width: int
    height: int
    num_frames: int
    """Frames that were asked for and made. A sound alone has none of them, a GIF of many a second not all."""
    fps: Fraction
    audio_sample_rate: int | None
    """Samples a second of the file's sound; None when there is none."""
    seed: int
    steps: int
    """Denoising steps, those of a second stage not counted."""
    stages: int
    model: str
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    """Wall seconds of each phase that took place."""
    prompt: str | None = None
    """The prompt that was used, where it was not the request's."""
    provenance: Provenance | None = None
    """Where it comes from; None where nobody said, as older versions do not."""
    quality: QualityReport | None = None
    """What was measured of it; None where nobody did, as older versions do not."""
    retried_for: tuple[Flaw, ...] = ()
    """What the clip of the seed that was asked for had, so that this one was made in its place."""

    @property
    def duration_seconds(self) -> float:
        return float(self.num_frames / self.fps)

    @property
    def total_seconds(self) -> float:
        """Wall seconds of the generation, without waiting in a queue."""
        return sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True)
class Clip(ClipFacts):
    """A finished file and the facts about it."""

    path: Path

    @property
    def facts(self) -> ClipFacts:
        """The facts alone, which outlive the file's place."""
        return ClipFacts(**{field.name: getattr(self, field.name) for field in fields(ClipFacts)})


@dataclass(frozen=True)
class ModelFacts:
    """What of a model decides what a request will come to."""

    name: str
    """As clips and the status have it."""
    recipe: Recipe
    can_refine: bool = False
    """Whether clips can be made in two stages."""
    has_duration_head: bool = False
    """Whether it tells how long the clip of a prompt should be."""
    footprint: Footprint | None = None
    """What it takes of its GPU's memory; None where there is none."""
    doubts: tuple[str, ...] = ()
    """What is to be said of every clip of it."""


@dataclass(frozen=True)
class EngineStatus:
    """What an engine holds in memory, in GB."""

    loaded: tuple[str, ...]
    resident_gb: float
    budget_gb: float
    fake: bool = False
    """Whether its clips are test cards."""
    ready: bool = True
    """False while the model is being loaded for the first time, and after that failed."""
    fault: str | None = None
    """Why no clip can be made: a sentence that callers may read. None also while the model is being loaded."""
    recovers: bool = False
    """Whether the fault may go by itself. Until then nothing new is accepted, and what was accepted waits."""
    seats: int = 1
    """How many generations it takes at the same time. Never changes."""
    idle_seconds: float = 0.0
    """Since the model was last used."""
    ttl_seconds: float | None = None
    """How long the model stays after it was last used; None for ever."""
    restarts: int = 0
    """How often a process that held the model was lost."""
    model: ModelFacts | None = None
    """Of the model that was loaded last; None before that, and where it is on machines that do not tell."""


class CancelFlag:
    """Set once, from any thread; asked at every step, and told at once to those who wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Cancel. Again changes nothing."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
            self._is_set = True
        for listener in listeners:
            listener()

    def when_set(self, listener: Callable[[], None]) -> None:
        """Call the listener once: when the flag is set, or now if it is."""
        with self._lock:
            if not self._is_set:
                self._listeners.append(listener)
                return
        listener()


def has_lost_gpu(error: Exception) -> bool:
    """Whether an error never goes away in this process, since every call after it fails in the same way."""
    words = str(error)
    return isinstance(error, RuntimeError) and "CUDA error" in words and "out of memory" not in words


OnProgress = Callable[[Progress], None]
Cancelled = Callable[[], bool]


class Clock:
    """Passes progress on, adds up the wall seconds of each phase, and ends a cancelled generation between them."""

    def __init__(self, on_progress: OnProgress, cancelled: Cancelled) -> None:
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._seconds: dict[str, float] = {}
        self._phase: Phase | None = None
        self._since = time.perf_counter()

    def report(self, phase: Phase, step: int = 0, steps: int = 0) -> None:
        if self._cancelled():
            raise Canceled("the generation was cancelled")
        if phase != self._phase:
            self.finish()
            self._phase = phase
        self._on_progress(Progress(phase, step, steps))

    def finish(self) -> dict[str, float]:
        """The seconds of all phases so far."""
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now
        return dict(self._seconds)


class Engine(Protocol):
    """Makes clips: as many at a time as its status has seats, each asked for by another thread."""

    def load(self) -> None:
        """Make the model ready; cheap when it is. May go on in a thread of its own while a generation is asked for.

        Raises:
            NotReady: it cannot be loaded; the message says why.
        """

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        """Make the clip of a request.

        Args:
            request: checked, with a seed.
            media: the bytes of everything the request names.
            on_progress: told of each phase and each step; must return quickly.
            cancelled: asked at every step.

        Raises:
            Canceled: the flag was set; no file is left.
            WorkerCrashed: what made it was lost; another try may be luckier.
            EngineDown: it was not even begun, and may be later; the status says so, too.
            LTX2Error: anything else a caller should see; no file is left.
        """

    def status(self) -> EngineStatus:
        """What is in memory now. Answers at once, also during a generation."""

    def close(self) -> None:
        """Free everything; a generation in hand is lost. Called from any thread; may be called again."""
