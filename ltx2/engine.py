"""The boundary between the life of a request and the model that answers it.

An engine takes a checked request and the raw bytes of its media, and gives the path of a finished
file. Frames and tensors never cross. Implementations: a model in this process
(:class:`ltx2.model.local.LocalEngine`); anything else that can keep the promise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

from ltx2.request import GenerationRequest

Phase = Literal["queued", "loading", "encoding", "denoising", "decoding", "muxing"]
PHASES: tuple[Phase, ...] = ("queued", "loading", "encoding", "denoising", "decoding", "muxing")


@dataclass(frozen=True)
class Progress:
    """Where a generation is: a phase and, while denoising, the step of ``steps`` that was finished."""

    phase: Phase
    step: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase


@dataclass(frozen=True)
class Clip:
    """A finished file and the facts about it."""

    path: Path
    width: int
    height: int
    num_frames: int
    fps: Fraction
    audio_sample_rate: int | None
    """Samples a second of the sound track; None when there is none."""
    seed: int
    steps: int
    """Denoising steps, those of a second stage not counted."""
    stages: int
    model: str
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    """Wall seconds of each phase that took place."""

    @property
    def duration_seconds(self) -> float:
        return float(self.num_frames / self.fps)


@dataclass(frozen=True)
class EngineStatus:
    """What an engine holds in memory, in GB."""

    loaded: tuple[str, ...]
    resident_gb: float
    budget_gb: float


OnProgress = Callable[[Progress], None]
Cancelled = Callable[[], bool]


class Engine(Protocol):
    """Makes clips, one at a time."""

    def load(self) -> None:
        """Make the model ready; cheap when it is.

        Raises:
            NotReady: it cannot be loaded; the message says why.
        """

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: Cancelled,
    ) -> Clip:
        """Make the clip of a request.

        Args:
            request: checked, with a seed.
            media: the bytes of everything the request names.
            on_progress: told of each phase and each step; must return quickly.
            cancelled: asked at every step.

        Raises:
            Canceled: ``cancelled()`` answered True; no file is left.
            LTX2Error: anything else a caller should see; no file is left.
        """

    def status(self) -> EngineStatus:
        """What is in memory now. Answers at once, also during a generation."""
