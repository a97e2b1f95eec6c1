"""What a request comes to on a given checkpoint: every default filled in, every doubt said."""

from dataclasses import dataclass, replace

from ltx2.geometry import trained_frames
from ltx2.recipes import NEGATIVE_PROMPT, NEUTRAL, Recipe, Scales
from ltx2.request import GenerationRequest, Guidance


@dataclass(frozen=True)
class Plan:
    """A request with the recipe of a checkpoint applied."""

    steps: int
    video: Scales
    audio: Scales
    negative_prompt: str
    warnings: tuple[str, ...]


def make_plan(request: GenerationRequest, recipe: Recipe) -> Plan:
    """Fill in what the request leaves to the recipe. What the caller asked for explicitly is kept."""
    guidance = request.guidance
    track = request.driving_audio
    frozen = track is not None and track.strength == 1
    return Plan(
        steps=request.num_inference_steps or recipe.steps,
        video=_scales(recipe.video, guidance, "video"),
        # there is nothing to guide in a sound that stays as it is
        audio=NEUTRAL if frozen else _scales(recipe.audio, guidance, "audio"),
        negative_prompt=NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt,
        warnings=tuple(_warnings(request, recipe)),
    )


def _scales(recipe: Scales, guidance: Guidance, stream: str) -> Scales:
    asked = {name: getattr(guidance, f"{stream}_{name}") for name in ("cfg", "stg", "modality", "rescale")}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def _warnings(request: GenerationRequest, recipe: Recipe) -> list[str]:
    found = []
    if recipe.kind == "distilled":
        if request.num_inference_steps not in (None, recipe.steps):
            found.append(
                f"This is a distilled checkpoint, made for {recipe.steps} steps; "
                f"{request.num_inference_steps} were run on an interpolated schedule."
            )
        scales = (_scales(recipe.video, request.guidance, "video"), _scales(recipe.audio, request.guidance, "audio"))
        if any(replace(scale, rescale=0) != NEUTRAL for scale in scales):
            found.append(
                "This is a distilled checkpoint, which needs no guidance: the guidance you asked for was run, "
                "takes longer and usually looks worse."
            )
        elif request.negative_prompt is not None:
            found.append("negative_prompt has no effect without guidance, and this distilled checkpoint has none.")
    longest = trained_frames(request.exact_fps)
    if request.num_frames > longest:
        found.append(
            f"{request.num_frames} frames are more than the {longest} LTX-2 was trained on at this frame rate."
        )
    if request.audio is not None and request.audio.strength == 0:
        found.append("The input sound was ignored, since audio_strength is 0.")
    return found
