"""What several dialects have no word of their own for and take by ours: said once."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Protocol

from pydantic import BeforeValidator, Field

from ltx2.errors import InvalidRequest
from ltx2.payload import OF_THE_VIDEO, few_values
from ltx2.request import MOST_FLAWS, MOST_LORAS, Extend, Flaw, GenerationRequest, LoraChoice, Retake

# the bodies around them ignore what they do not know, however much of it there is
_FEW: Final = BeforeValidator(few_values)

Loop = Annotated[bool, Field(description="ours: whether it loops: the last frame is the first one again")]
Loras = Annotated[
    list[LoraChoice],
    _FEW,
    Field(max_length=MOST_LORAS, description="ours: LoRAs of the operator's to apply: name, and scale from -10 to 10"),
]
EnhancePrompt = Annotated[bool, Field(description="ours: whether the model first writes the prompt out at length")]
RetryIf = Annotated[
    list[Flaw],
    _FEW,
    Field(max_length=MOST_FLAWS, description="ours: flaws for which another seed is tried, once: silent, frozen"),
]
Part = Annotated[
    Retake | None,
    _FEW,
    Field(description="ours: what is regenerated of the video: start, end in seconds; streams: both, picture, sound"),
]
More = Annotated[Extend | None, _FEW, Field(description="ours: how the video is continued: seconds; side: end, start")]

_NAMES: Final = frozenset({"retake", "extend", "loop", "loras", "enhance_prompt", "retry_if"})


class Creative(Protocol):
    """A body with these fields, of the types above."""

    @property
    def loop(self) -> bool: ...

    @property
    def loras(self) -> list[LoraChoice]: ...

    @property
    def enhance_prompt(self) -> bool: ...

    @property
    def retry_if(self) -> list[Flaw]: ...


def asked(body: Creative) -> dict[str, Any]:
    """The same fields of a request."""
    return {
        "loop": body.loop,
        "loras": tuple(body.loras),
        "enhance_prompt": body.enhance_prompt,
        "retry_if": tuple(dict.fromkeys(body.retry_if)),
    }


def said(request: GenerationRequest) -> dict[str, Any]:
    """Of these fields of a request those that ask for something, as JSON."""
    fields = request.model_dump(mode="json", include=set(_NAMES))
    return {name: value for name, value in fields.items() if value}


def refuse(given: Mapping[str, object]) -> None:
    """Refuse what was said of a clip that has it from its video.

    Args:
        given: what was sent for each field; None where nothing was.

    Raises:
        InvalidRequest: naming the field.
    """
    for field, value in given.items():
        if value is not None:
            raise InvalidRequest(OF_THE_VIDEO, field=field)
