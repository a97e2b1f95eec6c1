"""What a request will come to, before it is paid for: the answer of ``POST /plan``."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import Field

from ltx2.engine import PHASES, EngineStatus, ModelFacts
from ltx2.footprint import Footprint, Shape, longest_below, what_fits
from ltx2.geometry import make_grid
from ltx2.imprint import settled
from ltx2.payload import SAID_BY_A_VIDEO, GenerateBody
from ltx2.plan import Plan
from ltx2.request import GenerationRequest, Mode, Strict
from ltx2.settings import Settings

GB: Final = 1e9
WASTE: Final = 1.1
"""How much more may be generated than was asked for until that is worth a word."""

NO_GPU: Final = "the model runs on a CPU"
NOT_TOLD: Final = "the model is on another machine, which does not say"
NOTHING_MADE: Final = "no clip of this model was made here yet; the first ones tell"


class QuoteGrid(Strict):
    """What is generated, of the longest piece, and how it is cut."""

    width: int = Field(description="pixels: a multiple of 32, in two stages of 64")
    height: int
    num_frames: int = Field(description="8k + 1")
    crop_left: int = Field(description="pixels cut away on the left; what is left over on the right goes, too")
    crop_top: int = Field(description="pixels cut away above; what is left over below goes, too")
    kept_frames: int = Field(description="frames that are left of these")


class QuoteMemory(Strict):
    """The GPU's memory, in GB of 10^9 bytes."""

    peak_gb: float | None = Field(description="most at once, predicted; null where that cannot be known")
    resident_gb: float | None = Field(description="what the model holds of it all the time")
    budget_gb: float | None = Field(description="what there is to plan with")
    fits: bool | None
    reason: str | None = Field(description="why nothing is known")


class QuoteSeconds(Strict):
    """Wall time of the generation, without waiting in the queue."""

    total: float | None = Field(description="null while nothing is known")
    phases: dict[str, float] = Field(description="of each phase")
    learned_from: int = Field(description="clips of this model, made here, that this was learned from")
    reason: str | None = Field(description="why nothing is known")


class QuoteQueue(Strict):
    """What is before this request, if it is sent now."""

    length: int = Field(description="requests that wait")
    running: int = Field(description="generations in hand")
    seconds: float | None = Field(description="how long it will wait, about; null where that cannot be said")


class Quote(Strict):
    """The answer of ``POST /plan``."""

    model: str
    request: GenerateBody = Field(
        description="with every default filled in; media by their fields' names, and a seed only if one was given"
    )
    mode: Mode = Field(description="what kind of generation the inputs make it")
    grid: QuoteGrid
    num_frames: int = Field(description="of the clip; at most so many where the prompt decides")
    duration_seconds: float
    pieces: int = Field(description="runs of the model, each going on where the one before ended")
    stages: int = Field(description="1, or 2: at half the size first, then enlarged and refined")
    steps: int = Field(description="denoising steps in all")
    passes: int = Field(description="passes of the transformer in all")
    memory: QuoteMemory
    seconds: QuoteSeconds
    cost_usd: float | None = Field(description="by LTX2_PRICE_PER_SECOND; null without one, or without seconds")
    queue: QuoteQueue
    warnings: list[str] = Field(description="what you would want to know before, and what to do about it")

    def told(self) -> dict[str, Any]:
        """The answer. What a video says for itself is left out of the body, so that it may be sent."""
        left_out = {"request": set(SAID_BY_A_VIDEO)} if self.request.video is not None else None
        return self.model_dump(mode="json", exclude=left_out)


def make_quote(
    body: GenerateBody,
    request: GenerationRequest,
    plan: Plan,
    model: ModelFacts,
    seconds: QuoteSeconds,
    queue: QuoteQueue,
    status: EngineStatus,
    settings: Settings,
    *,
    is_open: bool,
) -> Quote:
    """Put everything together.

    Args:
        body: as it was sent.
        request: as its media settle it, with a length.
        plan: of the request.
        model: that would make it.
        seconds: predicted.
        queue: as it is now.
        status: of the engine.
        settings: of the server.
        is_open: whether nothing but the model will say how long the clip is to be.
    """
    grid, memory = plan.grid, _memory(plan, model, status)
    price = settings.price_per_second
    warnings = [*model.doubts, *_before_all(status), *_of_the_clip(body, plan, model, is_open=is_open), *plan.warnings]
    return Quote(
        model=model.name,
        request=_resolved(body, request, plan, settings.video_crf, is_open=is_open),
        mode=request.mode,
        grid=QuoteGrid(
            width=grid.grid_width,
            height=grid.grid_height,
            num_frames=grid.grid_frames,
            crop_left=grid.left,
            crop_top=grid.top,
            kept_frames=grid.num_frames,
        ),
        num_frames=request.length,
        duration_seconds=round(float(request.length / request.exact_fps), 3),
        pieces=len(plan.pieces),
        stages=plan.stages,
        steps=plan.all_steps,
        passes=plan.passes,
        memory=memory,
        seconds=seconds,
        cost_usd=None if seconds.total is None or not price else round(seconds.total * price, 6),
        queue=queue,
        warnings=[*warnings, *_of_the_memory(plan, model, memory), *_of_the_time(seconds, queue, settings)],
    )


def predicted(phases: Mapping[str, float], clips: int) -> QuoteSeconds:
    """The seconds of the phases, in their order, so many clips being learned from."""
    known = {phase: round(phases[phase], 3) for phase in (*PHASES, "checking") if phase in phases}
    total = round(sum(phases.values()), 3) if phases else None
    return QuoteSeconds(total=total, phases=known, learned_from=clips, reason=None if phases else NOTHING_MADE)


def _resolved(
    body: GenerateBody, request: GenerationRequest, plan: Plan, default_crf: int, *, is_open: bool
) -> GenerateBody:
    """The body with every default filled in, and without its media."""
    full = settled(request, plan, default_crf)
    named = {name: name for name in ("image_start", "image_end", "audio", "video") if getattr(body, name) is not None}
    keyframes = [
        keyframe.model_copy(update={"image": f"keyframes[{number}].image"})
        for number, keyframe in enumerate(body.keyframes)
    ]
    same = ("width", "height", "fps", "negative_prompt", "num_inference_steps", "guidance", "pipeline", "retake")
    return body.model_copy(
        update={
            **named,
            **{name: getattr(full, name) for name in same},
            "num_frames": None if is_open else request.num_frames,
            "keyframes": keyframes,
            "image_end_strength": body.image_strength if body.image_end_strength is None else body.image_end_strength,
            "guidance_scale": None,
            "crf": full.output.crf,
            "quality": full.output.quality,
        }
    )


def _memory(plan: Plan, model: ModelFacts, status: EngineStatus) -> QuoteMemory:
    footprint = model.footprint
    if footprint is None:
        reason = NOT_TOLD if status.model is None else NO_GPU
        return QuoteMemory(peak_gb=None, resident_gb=None, budget_gb=None, fits=None, reason=reason)
    peak = max(footprint.peaks(plan.grid))
    return QuoteMemory(
        peak_gb=round(peak / GB, 2),
        resident_gb=round(footprint.held / GB, 2),
        budget_gb=round(footprint.available / GB, 2),
        fits=peak <= footprint.available,
        reason=None,
    )


def _before_all(status: EngineStatus) -> Iterator[str]:
    if status.fault is not None:
        yield f"No clip can be made now: {status.fault.rstrip('.')}. Send the request when GET /health/ready says so."
    if status.model is None:
        yield "The model is on another machine: what is said of it here is what its name says."


def _of_the_clip(body: GenerateBody, plan: Plan, model: ModelFacts, *, is_open: bool) -> Iterator[str]:
    grid = plan.grid
    frames = grid.num_frames
    if is_open and model.has_duration_head:
        yield "The prompt decides about the length: this is reckoned with the longest. Send num_frames to be sure."
    if is_open and not model.has_duration_head:
        yield f"This model cannot tell how long a clip should be: it will have {frames} frames. Send num_frames."
    if body.retry_if:
        yield "This is for one try: a clip that is made again because of retry_if takes, and costs, twice as much."
    made, asked = grid.grid_width * grid.grid_height * grid.grid_frames, grid.width * grid.height * grid.num_frames
    if body.video is None and made > WASTE * asked:
        yield (
            f"{grid.grid_width}x{grid.grid_height} with {grid.grid_frames} frames are generated, and cut to "
            f"{grid.width}x{grid.height} with {grid.num_frames}: sizes that are multiples of {32 * plan.stages} and "
            "lengths of 8k + 1 frames waste nothing."
        )


def _of_the_memory(plan: Plan, model: ModelFacts, memory: QuoteMemory) -> Iterator[str]:
    if memory.fits is False and model.footprint is not None:
        yield (
            f"It will hardly fit: it takes about {memory.peak_gb:g} GB of the {memory.budget_gb:g} GB there are. "
            f"{_what_fits(plan, model.footprint)}."
        )


def _what_fits(plan: Plan, footprint: Footprint) -> str:
    """The longest clip of the same size that fits, and the same length at half the size."""
    grid = plan.grid

    def fits(shape: Shape) -> bool:
        other = make_grid(*shape, grid.fps, stages=plan.stages)
        return max(footprint.peaks(other)) <= footprint.available

    frames = longest_below(grid.num_frames, lambda frames: fits((grid.width, grid.height, frames)))
    shape = grid.width, grid.height, grid.num_frames
    return what_fits(shape, frames, fits) or "Ask for fewer frames or a smaller picture"


def _of_the_time(seconds: QuoteSeconds, queue: QuoteQueue, settings: Settings) -> Iterator[str]:
    total = seconds.total or 0.0
    if seconds.total is not None and "loading" not in seconds.phases:
        yield "The model has to be loaded first, and nobody knows yet how long that takes: it comes on top."
    if total > settings.deadline_seconds:
        yield (
            f"It will be ended after {settings.deadline_seconds:g} seconds, before it is finished: ask for fewer "
            "frames, fewer steps or a smaller picture, or raise LTX2_DEADLINE_SECONDS."
        )
    elif total + (queue.seconds or 0.0) > settings.sync_seconds:
        yield (
            f"A caller who waits for it is sent away after {settings.sync_seconds:g} seconds; the job goes on. "
            "Have it made as a job, and ask for that."
        )
    if queue.length >= settings.queue_limit:
        yield "The queue is full now: a request would be refused. Send it later."
