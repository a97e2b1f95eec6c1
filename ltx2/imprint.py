"""What is written into a clip: the request that makes it again, and where it comes from."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ltx2 import __version__
from ltx2.errors import InvalidRequest
from ltx2.payload import Sources, body_of, parse
from ltx2.plan import Plan
from ltx2.provenance import Provenance, digest
from ltx2.request import GenerationRequest, Guidance, Output
from ltx2.settings import ClipMetadata

_PREFIX: Final = "sha256:"


class Imprint(BaseModel):
    """One clip's. Read leniently: what newer versions say beside it is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ltx2: str
    """The version of this program that wrote it."""
    request: dict[str, Any] | None = None
    """The body of ``POST /generate`` that makes the clip again, each of its media as ``sha256:…``."""
    provenance: Provenance


def settled(request: GenerationRequest, plan: Plan, default_crf: int) -> GenerationRequest:
    """The request that makes the same clip whatever the defaults are where it is sent.

    Args:
        request: as it was carried out: with its seed, its length, and the prompt that was used.
        plan: what it came to.
        default_crf: what the pictures were written with where it does not say.
    """
    streams = {"video": asdict(plan.video), "audio": asdict(plan.audio)}
    guidance = {f"{stream}_{name}": value for stream, scales in streams.items() for name, value in scales.items()}
    is_guided = plan.video.cfg != 1 or plan.audio.cfg != 1
    return explicit(request, default_crf).model_copy(
        update={
            "guidance": Guidance(**guidance),
            "num_inference_steps": plan.steps,
            "pipeline": "two_stage" if plan.stages == 2 else "one_stage",
            "negative_prompt": plan.negative_prompt if is_guided else None,
        }
    )


def explicit(request: GenerationRequest, default_crf: int) -> GenerationRequest:
    """The same without what has been done already, and with the quality that was taken."""
    output = request.output
    if output.format in ("mp4", "mov", "webm"):
        output = Output(format=output.format, crf=output.x264_crf(default_crf))
    done = {"enhance_prompt": False, "retry_if": (), "content_check": "none"}
    return request.model_copy(update={"seed": request.seed or 0, "output": output, **done})


def hashed(media: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each media, by the names that the request has for them."""
    return {name: digest(data) for name, data in media.items()}


def inputs_of(request: GenerationRequest, hashes: Mapping[str, str]) -> dict[str, str]:
    """The same by the fields of a body that they are sent in."""
    _, names = body_of(request, hashes)
    return {field: hashes[name] for field, name in names.items()}


def imprinted(
    request: GenerationRequest, hashes: Mapping[str, str], provenance: Provenance, what: ClipMetadata
) -> str | None:
    """The text for a clip: JSON in ASCII, so that it survives whatever a container takes text for.

    Nothing in it is of the moment, so that the same request gives the same file.

    Args:
        request: made explicit, see :func:`settled`.
        hashes: of its media, see :func:`hashed`.
        provenance: of the clip.
        what: the operator lets be written.

    Returns:
        None: nothing is to be written.
    """
    if what == "none":
        return None
    imprint: dict[str, Any] = {"ltx2": __version__}
    if what == "full":
        imprint["request"], _ = body_of(request, {name: _PREFIX + told for name, told in hashes.items()})
    imprint["provenance"] = provenance.model_dump(exclude_none=True)
    return json.dumps(imprint, separators=(",", ":"))


def read_imprint(text: str | None, name: str) -> Imprint:
    """The imprint that a clip has.

    Args:
        text: what stands in the file.
        name: of the file.

    Raises:
        InvalidRequest: it says nothing, or not enough to make it again.
    """
    hint = "the clips of this program do where LTX2_CLIP_METADATA=full, but for GIFs, and those that others re-encoded"
    try:
        imprint = Imprint.model_validate_json(text or "")
    except ValidationError:
        raise InvalidRequest(f"{name} does not say how it was made", hint=hint) from None
    if imprint.request is None:
        raise InvalidRequest(f"{name} says where it comes from, and not what was asked for", hint=hint)
    return imprint


def asked_again(imprint: Imprint, given: Mapping[str, bytes]) -> tuple[GenerationRequest, Sources]:
    """The request an imprint stands for, and its media.

    Args:
        imprint: with a request.
        given: media by the field they are sent in.

    Raises:
        InvalidRequest: media are missing, too many, or not those the clip was made of; or it cannot be read.
    """
    request, sources = parse(imprint.request)
    for name in given:
        if name not in sources:
            wanted = ", ".join(sources) or "nothing"
            raise InvalidRequest(f"the clip was made without it; it was made of {wanted}", field=name)
    missing = [name for name in sources if name not in given]
    if missing:
        raise InvalidRequest(
            f"the clip was made of media that are not here: {', '.join(missing)}",
            field=missing[0],
            hint=f"--media {missing[0]}=FILE at the command line",
        )
    for name, noted in sources.items():
        if _PREFIX + digest(given[name]) != noted:
            raise InvalidRequest("it is not what the clip was made of", field=name, hint=f"that has {noted!s}")
    return request, dict(given)
