"""What a request comes to on a given checkpoint: every default filled in, every doubt said."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from ltx2.errors import InvalidRequest
from ltx2.geometry import TRAINED_SECONDS, Grid, make_grid, trained_frames
from ltx2.pieces import NOTHING, Piece, pieces_of
from ltx2.recipes import NEGATIVE_PROMPT, NEUTRAL, REFINE_SIGMAS, TWO_STAGE_PIXELS, Kind, Recipe, Scales
from ltx2.request import GenerationRequest, Guidance

Pass = Literal["cond", "uncond", "perturbed", "isolated"]

STILL = Piece(0, 1, (0, 1), NOTHING)
"""The picture that a loop begins and ends with, where no image was given."""


def passes_of(video: Scales, audio: Scales, stg_blocks: tuple[int, ...]) -> tuple[Pass, ...]:
    """The passes of the transformer that a guided step needs: the conditional one, and what any scale asks for."""
    wanted: list[Pass] = ["cond"]
    if video.cfg != 1 or audio.cfg != 1:
        wanted.append("uncond")
    if stg_blocks and (video.stg != 0 or audio.stg != 0):
        wanted.append("perturbed")
    if video.modality != 1 or audio.modality != 1:
        wanted.append("isolated")
    return tuple(wanted)


@dataclass(frozen=True)
class Plan:
    """A request with the recipe of a checkpoint applied."""

    width: int
    height: int
    fps: Fraction
    pieces: tuple[Piece, ...]
    """What is made after each other."""
    makes_still: bool
    """Whether :data:`STILL` is made before all."""
    stages: int
    """1, or 2: at half the size first, then enlarged and refined."""
    steps: int
    """Denoising steps of the (first) stage."""
    video: Scales
    audio: Scales
    step_passes: int
    """Passes of the transformer that each of these steps needs."""
    negative_prompt: str
    warnings: tuple[str, ...]
    refines: bool = True
    """False where the second of two stages would change nothing that is wanted."""

    @property
    def grid(self) -> Grid:
        """What is generated in the longest piece, and how it is cut to what is wanted of it."""
        return self.grid_of(max(self.pieces, key=lambda piece: piece.num_frames))

    def grid_of(self, piece: Piece) -> Grid:
        """What is generated in a piece, and how it is cut to what is wanted of it."""
        return make_grid(self.width, self.height, piece.num_frames, self.fps, stages=self.stages)

    @property
    def runs(self) -> tuple[Piece, ...]:
        """Everything that is made after each other."""
        return (STILL, *self.pieces) if self.makes_still else self.pieces

    @property
    def run_steps(self) -> int:
        """Steps of one run, in all stages."""
        return self.steps + self._refine_steps

    @property
    def all_steps(self) -> int:
        """Steps of everything, for progress."""
        return self.run_steps * len(self.runs)

    @property
    def passes(self) -> int:
        """Passes of the transformer, of everything."""
        return (self.steps * self.step_passes + self._refine_steps) * len(self.runs)

    @property
    def _refine_steps(self) -> int:
        return len(REFINE_SIGMAS) - 1 if self.stages == 2 and self.refines else 0


def make_plan(
    request: GenerationRequest, recipe: Recipe, *, can_refine: bool = False, piece_seconds: float = TRAINED_SECONDS
) -> Plan:
    """Fill in what the request leaves to the recipe. What the caller asked for explicitly is kept.

    Args:
        request: checked.
        recipe: of the loaded checkpoint.
        can_refine: whether what a second stage needs is loaded as well.
        piece_seconds: what is longer is made in pieces.

    Raises:
        InvalidRequest: two stages were asked for, and there is nothing to make the second with.
    """
    stages = _stages(request, can_refine)
    guidance = request.guidance
    track = request.driving_audio
    streams = request.retake.streams if request.retake else "both"
    frozen = (track is not None and track.strength == 1) or streams == "picture"
    # there is nothing to guide in what stays as it is
    video = NEUTRAL if streams == "sound" else _scales(recipe.video, guidance, "video")
    audio = NEUTRAL if frozen else _scales(recipe.audio, guidance, "audio")
    pieces = pieces_of(request, piece_seconds)
    warnings = [*_doubts_of_the_recipe(request, recipe, video, audio), *_doubts_of_the_request(request, stages, pieces)]
    if frozen and _scales(NEUTRAL, guidance, "audio") != NEUTRAL:
        warnings.append("The sound stays as it was given, so guidance of it has no effect: leave that out.")
    return Plan(
        width=request.width,
        height=request.height,
        fps=request.exact_fps,
        pieces=pieces,
        makes_still=_makes_still(request),
        stages=stages,
        steps=request.num_inference_steps or recipe.steps,
        video=video,
        audio=audio,
        step_passes=len(passes_of(video, audio, recipe.stg_blocks)),
        negative_prompt=NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt,
        warnings=tuple(warnings),
        refines=not ((request.is_sound_only or streams == "sound") and keeps_sound(recipe.kind)),
    )


def _makes_still(request: GenerationRequest) -> bool:
    has_first = any(keyframe.is_first for keyframe in request.shown_keyframes)
    return request.loop and request.length > 1 and not has_first and not request.is_sound_only


def keeps_sound(kind: Kind) -> bool:
    """Whether a second stage leaves the first one's sound as it is: a dev checkpoint's is guided, and by all of it."""
    return kind == "dev"


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
                f"This is a distilled checkpoint, made for {recipe.steps} steps: with {request.num_inference_steps} it "
                "follows an interpolated schedule, and usually looks worse. Leave the steps to it."
            )
        if any(replace(scales, rescale=0) != NEUTRAL for scales in (video, audio)):
            yield (
                "This is a distilled checkpoint, which needs no guidance: what you ask for takes longer and usually "
                "looks worse. Leave it out."
            )
    if request.negative_prompt is not None and video.cfg == audio.cfg == 1:
        yield (
            "negative_prompt has no effect, since there is no classifier-free guidance: leave it out, or ask for a "
            "guidance above 1."
        )


def _doubts_of_the_request(request: GenerationRequest, stages: int, pieces: tuple[Piece, ...]) -> Iterator[str]:
    if request.pipeline == "auto" and stages == 1 and _is_large(request):
        yield (
            f"{request.width}x{request.height} is made in one stage, since the model has no second one: two are faster "
            "and usually look better at this size. Ask for a smaller picture, or have LTX2_UPSAMPLER set on the server "
            "(and for a dev checkpoint LTX2_DISTILLED_LORA)."
        )
    longest = trained_frames(request.exact_fps)
    at_once = max(piece.num_frames for piece in pieces)
    if at_once > longest:
        shorter = "Retake less at once." if request.retake else "Have LTX2_PIECE_SECONDS lowered, or ask for fewer."
        yield f"{at_once} frames at once are more than the {longest} LTX-2 was trained on at this frame rate. {shorter}"
    if len(pieces) > 1:
        yield (
            f"It is made in {len(pieces)} pieces, each shown the end of what there is: pictures and voices may change "
            "over them. A shorter clip is made at once."
        )
    yield from _doubts_of_the_retake(request, pieces[0])
    if request.audio is not None and request.audio.strength == 0:
        yield "The input sound is ignored, since its strength is 0: leave it out, or follow it more strictly."
    if any(keyframe.strength == 0 for keyframe in request.keyframes):
        yield "An image is ignored, since its strength is 0: leave it out, or show it more strictly."


def _doubts_of_the_retake(request: GenerationRequest, piece: Piece) -> Iterator[str]:
    if request.retake is None or request.retake.streams == "sound":
        return
    begin, end = (float(frame / request.exact_fps) for frame in piece.pictures)
    if end - begin > request.retake.end - request.retake.start + float(1 / request.exact_fps):
        yield (
            f"The picture is made anew from {begin:.2f} to {end:.2f} seconds: LTX-2 makes eight frames at once, and a "
            "part of them cannot be kept."
        )
