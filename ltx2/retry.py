"""A clip with a flaw that its request will not have is made once more, with another seed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ltx2.engine import Clip
from ltx2.request import Flaw, GenerationRequest

_SEEDS: Final = 2**63
_WORDS: Final[Mapping[Flaw, str]] = {"silent": "is silent", "frozen": "does not move"}


def without_flaws(request: GenerationRequest, make: Callable[[GenerationRequest], Clip]) -> Clip:
    """The clip of a request; the second one where the first has a flaw that the request names.

    There is never a third: the second is given as it is. Its seed is the first one's and one more, so that the same
    request gives the same clip again, and it says which seed that was.

    Args:
        request: with a seed.
        make: makes a clip; asked again, it goes through all its phases again.
    """
    first = make(request)
    flaws = tuple(flaw for flaw in request.retry_if if flaw in _to_be_cured(request, first))
    if not flaws:
        return first
    first.path.unlink(missing_ok=True)
    seed = ((request.seed or 0) + 1) % _SEEDS
    second = make(request.model_copy(update={"seed": seed, "retry_if": ()}))
    said = " and ".join(_WORDS[flaw] for flaw in flaws)
    warning = f"With seed {first.seed} the clip {said}, so it was made again with seed {seed}."
    return replace(second, retried_for=flaws, warnings=(*second.warnings, warning))


def _to_be_cured(request: GenerationRequest, clip: Clip) -> set[Flaw]:
    """The flaws of a clip that another seed may not have: not those of what the caller sent."""
    found = set(() if clip.quality is None else clip.quality.flaws)
    track, anew = request.driving_audio, request.retake.streams if request.retake else "both"
    if (track is not None and track.strength == 1) or anew == "picture":
        found.discard("silent")
    if anew == "sound":
        found.discard("frozen")
    return found
