"""What a request comes to on a given checkpoint: every default filled in, every doubt said."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ltx2.errors import InvalidRequest
from ltx2.geometry import Grid, make_grid, trained_frames
from ltx2.recipes import NEGATIVE_PROMPT, NEUTRAL, REFINE_SIGMAS, TWO_STAGE_PIXELS, Recipe, Scales
from ltx2.request import GenerationRequest, Guidance


@dataclass(frozen=True)
class Plan:
    """A request with the recipe of a checkpoint applied."""

    grid: Grid
    """What is generated, and how it is cut to what was asked."""
    stages: int
    """1, or 2: at half the size first, then enlarged and refined."""
    steps: int
    """Denoising steps of the (first) stage."""
    video: Scales
    audio: Scales
    negative_prompt: str
    warnings: tuple[str, ...]

    @property
    def all_steps(self) -> int:
        """Steps of all stages, for progress."""
        return self.steps + (len(REFINE_SIGMAS) - 1 if self.stages == 2 else 0)


def make_plan(request: GenerationRequest, recipe: Recipe, *, can_refine: bool = False) -> Plan:
    """Fill in what the request leaves to the recipe. What the caller asked for explicitly is kept.

    Args:
        request: checked.
        recipe: of the loaded checkpoint.
        can_refine: whether what a second stage needs is loaded as well.

    Raises:
        InvalidRequest: two stages were asked for, and there is nothing to make the second with.
    """
    stages = _stages(request, can_refine)
    guidance = request.guidance
    track = request.driving_audio
    frozen = track is not None and track.strength == 1
    video = _scales(recipe.video, guidance, "video")
    # there is nothing to guide in a sound that stays as it is
    audio = NEUTRAL if frozen else _scales(recipe.audio, guidance, "audio")
    warnings = [*_doubts_of_the_recipe(request, recipe, video, audio), *_doubts_of_the_request(request, stages)]
    if frozen and _scales(NEUTRAL, guidance, "audio") != NEUTRAL:
        warnings.append("The sound is followed strictly, so its own guidance had no effect.")
    return Plan(
        grid=make_grid(request.width, request.height, request.length, request.exact_fps, stages=stages),
        stages=stages,
        steps=request.num_inference_steps or recipe.steps,
        video=video,
        audio=audio,
        negative_prompt=NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt,
        warnings=tuple(warnings),
    )


def _stages(request: GenerationRequest, can_refine: bool) -> int:
    if request.pipeline == "two_stage" and not can_refine:
        raise InvalidRequest(
            "the loaded model has no second stage",
            field="pipeline",
            hint="leave it out, or set LTX2_UPSAMPLER (and for a dev checkpoint LTX2_DISTILLED_LORA) on the server",
        )
    wanted = request.pipeline == "two_stage" or (request.pipeline == "auto" and _is_large(request))
    return 2 if wanted and can_refine else 1


def _is_large(request: GenerationRequest) -> bool:
    return request.width * request.height > TWO_STAGE_PIXELS


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


def _doubts_of_the_request(request: GenerationRequest, stages: int) -> Iterator[str]:
    if request.pipeline == "auto" and stages == 1 and _is_large(request):
        yield (
            f"{request.width}x{request.height} was made in one stage, since the loaded model has no second one: "
            "two are faster and usually look better at this size."
        )
    longest = trained_frames(request.exact_fps)
    if request.length > longest:
        yield f"{request.length} frames are more than the {longest} LTX-2 was trained on at this frame rate."
    if request.audio is not None and request.audio.strength == 0:
        yield "The input sound was ignored, since its strength is 0."
    if request.shown_keyframes != request.keyframes:
        yield "An image was ignored, since its strength is 0."
