"""What a request comes to on a given checkpoint: every default filled in, every doubt said."""

from collections.abc import Iterator
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
    video = _scales(recipe.video, guidance, "video")
    # there is nothing to guide in a sound that stays as it is
    audio = NEUTRAL if frozen else _scales(recipe.audio, guidance, "audio")
    warnings = [*_doubts_of_the_recipe(request, recipe, video, audio), *_doubts_of_the_request(request)]
    if frozen and _scales(NEUTRAL, guidance, "audio") != NEUTRAL:
        warnings.append("The sound is followed strictly, so its own guidance had no effect.")
    return Plan(
        steps=request.num_inference_steps or recipe.steps,
        video=video,
        audio=audio,
        negative_prompt=NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt,
        warnings=tuple(warnings),
    )


def _scales(recipe: Scales, guidance: Guidance, stream: str) -> Scales:
    asked = {name: getattr(guidance, f"{stream}_{name}") for name in ("cfg", "stg", "modality", "rescale")}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def _doubts_of_the_recipe(request: GenerationRequest, recipe: Recipe, video: Scales, audio: Scales) -> Iterator[str]:
    if recipe.kind == "distilled":
        if request.num_inference_steps not in (None, recipe.steps):
            yield (
                f"This is a distilled checkpoint, made for {recipe.steps} steps; "
                f"{request.num_inference_steps} were run on an interpolated schedule."
            )
        if any(replace(scales, rescale=0) != NEUTRAL for scales in (video, audio)):
            yield (
                "This is a distilled checkpoint, which needs no guidance: the guidance you asked for was run, "
                "takes longer and usually looks worse."
            )
    if request.negative_prompt is not None and video.cfg == audio.cfg == 1:
        yield "negative_prompt had no effect: there was no classifier-free guidance."


def _doubts_of_the_request(request: GenerationRequest) -> Iterator[str]:
    longest = trained_frames(request.exact_fps)
    if request.num_frames > longest:
        yield f"{request.num_frames} frames are more than the {longest} LTX-2 was trained on at this frame rate."
    if request.audio is not None and request.audio.strength == 0:
        yield "The input sound was ignored, since its strength is 0."
    if request.shown_keyframes != request.keyframes:
        yield "An image was ignored, since its strength is 0."
