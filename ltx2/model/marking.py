"""What a clip of a loaded model says of itself."""

from collections.abc import Mapping

from ltx2.imprint import settled
from ltx2.loras import find_loras
from ltx2.media.clip import h264_of
from ltx2.media.marks import Marks
from ltx2.media.signing import Signer
from ltx2.model.components import Components, dtype_of
from ltx2.plan import Plan
from ltx2.provenance import LIBRARIES, Provenance, file_digest, versions
from ltx2.request import GenerationRequest
from ltx2.settings import Settings


def marks_of(
    components: Components,
    request: GenerationRequest,
    plan: Plan,
    media: Mapping[str, bytes],
    settings: Settings,
    signer: Signer | None,
) -> Marks:
    """The marks of one clip.

    Args:
        components: what made it.
        request: as it was carried out: with its seed, its length, and the prompt that was used.
        plan: what it came to.
        media: what it names.
        settings: of this machine.
        signer: of the operator.
    """
    made_by = provenance_of(components, request, settings)
    return Marks(settled(request, plan, settings.video_crf), media, made_by, settings.clip_metadata, signer)


def provenance_of(components: Components, request: GenerationRequest, settings: Settings) -> Provenance:
    """What makes a clip here, but for its inputs."""
    recipe, residency = components.recipe, components.residency
    shows = {
        "piece_seconds": f"{settings.piece_seconds:.15g}",
        "video_decoder": "conv" if components.diffusion_decoder is None else "diffusion",
        "video_preset": settings.video_preset,
    }
    if (encoder := h264_of(request, settings.video_crf, settings.video_encoder)) is not None:
        shows["video_encoder"] = encoder
    files = zip(request.loras, find_loras(request.loras, settings.loras_dir), strict=True)
    return Provenance(
        model=components.name,
        generation=recipe.generation,
        kind=recipe.kind,
        versions=dict(versions(*LIBRARIES)),
        device=components.device.type,
        precision=residency.placement.precision if residency else str(dtype_of(components.transformer)),
        settings=shows,
        seed=request.seed or 0,
        loras={choice.name: file_digest(path) for choice, path in files if choice.scale},
    )
