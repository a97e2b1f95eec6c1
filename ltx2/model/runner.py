"""A loaded model that turns checked requests into files."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ltx2.engine import Cancelled, Phase
from ltx2.errors import NotReady, OutOfMemory
from ltx2.media.clip import write_clip
from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components
from ltx2.model.decode import to_uint8_chunks
from ltx2.model.pipeline import Inputs, Report, generate
from ltx2.model.placement import budget_bytes, free_memory
from ltx2.model.prompts import is_cut
from ltx2.plan import make_plan
from ltx2.request import DEFAULT_FRAMES, GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)


OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. Not all that do have a class for that, only these words."""
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or any(words in str(error) for words in OUT_OF_MEMORY)


def load(settings: Settings) -> "Runner":
    """Load ``LTX2_MODEL``.

    Raises:
        NotReady: it cannot be loaded; what was has been freed again.
    """
    try:
        return Runner(load_components(settings), settings)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.exception("out of memory while loading")
    free_memory()
    raise NotReady(
        "the model ran out of memory while it was loaded",
        hint="see that nothing else takes the GPU's memory, or set LTX2_PRECISION=fp8 or LTX2_OFFLOAD=model",
    )


@dataclass(frozen=True)
class Made:
    """What is known of a clip only after it was made."""

    num_frames: int
    steps: int
    stages: int
    audio_sample_rate: int | None
    warnings: tuple[str, ...]


class Runner:
    """Holds a loaded model."""

    def __init__(self, components: Components, settings: Settings) -> None:
        self.components = components
        self.settings = settings
        self.name = self.components.name
        self.resident_bytes = self.components.resident_bytes
        self.budget_bytes = budget_bytes(self.components.device)

    def run(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        target: Path,
        report: Report,
        cancelled: Cancelled,
    ) -> Made:
        """Make the clip of a request and write it to ``target``, whose folder exists.

        Raises:
            Canceled: ``cancelled()`` answered True; nothing was written.
            OutOfMemory: what was held has been freed again.
        """
        try:
            return self._run(request, media, target, report, cancelled)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory at %dx%d, %d frames", request.width, request.height, request.num_frames)
        # not in the except block: only now have the frames gone that hold on to tensors
        free_memory()
        raise OutOfMemory(
            f"the model ran out of memory at {request.width}x{request.height} with {request.num_frames} frames",
            hint=self._what_fits(request),
        )

    def _what_fits(self, request: GenerationRequest) -> str:
        width, height, num_frames = failed = request.width, request.height, request.num_frames or DEFAULT_FRAMES
        halved = width // 64 * 32, height // 64 * 32
        fits = []
        if self.components.residency is not None:
            placement = self.components.residency.placement
            if frames := placement.fitting_frames(failed):
                fits.append(f"{frames} frames at {width}x{height}")
            if min(halved) >= 64 and placement.should_fit((*halved, num_frames), failed):
                fits.append(f"{num_frames} frames at {halved[0]}x{halved[1]}")
        return " or ".join(fits) + " should fit" if fits else "ask for fewer frames or a smaller picture"

    def _run(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        target: Path,
        report: Report,
        cancelled: Cancelled,
    ) -> Made:
        def report_when_done(phase: Phase, step: int, steps: int) -> None:
            # a GPU works on after it was told: without this its seconds would count for the next phase
            if step in (0, steps) and self.components.device.type == "cuda":
                torch.cuda.synchronize(self.components.device)
            report(phase, step, steps)

        settings, components = self.settings, self.components
        if request.num_frames is None:
            request = request.model_copy(update={"num_frames": DEFAULT_FRAMES})
        inputs = Inputs(media, settings.max_image_megapixels, settings.max_audio_seconds)
        plan = make_plan(request, components.recipe, can_refine=components.can_refine)
        result = generate(components, request, plan, inputs, report_when_done, cancelled)
        report_when_done("muxing", 0, 0)
        rate = write_clip(
            target,
            request,
            None if result.pictures is None else to_uint8_chunks(result.pictures),
            result.sound,
            default_crf=settings.video_crf,
            preset=settings.video_preset,
            encoder=settings.video_encoder,
            cancelled=cancelled,
        )
        return Made(request.length, plan.steps, plan.stages, rate, (*self._warnings(request), *plan.warnings))

    def _warnings(self, request: GenerationRequest) -> list[str]:
        found = []
        if self.components.is_random:
            found.append(
                f"The model {self.name!r} is a random miniature: its pictures and sounds mean nothing. "
                "Set LTX2_MODEL to a real LTX-2, see README.md."
            )
        if is_cut(self.components, request.prompt):
            found.append("The prompt is longer than the model reads; its end was ignored.")
        return found
