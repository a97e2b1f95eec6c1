"""What a server and the process that is connected to a Ray cluster for it say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass

from ltx2.engine import Clip, EngineStatus, Progress
from ltx2.errors import Failure
from ltx2.request import GenerationRequest
from ltx2.settings import Settings


@dataclass(frozen=True)
class Start:
    """The first message: what to connect to, and what is to run there."""

    settings: Settings
    build: str
    seconds_to_heed: float


@dataclass(frozen=True)
class Load:
    """Wait until a model is loaded. The answer is None."""

    number: int


@dataclass(frozen=True)
class Generate:
    """Make a clip."""

    number: int
    request: GenerationRequest
    media: Mapping[str, bytes]


@dataclass(frozen=True)
class Cancel:
    """Cancel what has this number."""

    number: int


@dataclass(frozen=True)
class Connected:
    """The cluster is there. Nothing is to be sent before."""


@dataclass(frozen=True)
class Told:
    """Something about what was asked for under a number. Anything but progress is the last."""

    number: int
    what: Progress | Clip | Failure | None


Message = Start | Load | Generate | Cancel
"""What the process is told."""
Reply = Connected | EngineStatus | Told
"""What it tells."""
