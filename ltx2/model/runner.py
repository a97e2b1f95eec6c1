"""A loaded model that turns checked requests into files."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ltx2.engine import Cancelled, Phase
from ltx2.errors import NotReady, OutOfMemory
from ltx2.footprint import what_fits
from ltx2.media.clip import write_clip
from ltx2.media.signing import Signer, load_signer
from ltx2.media.videofile import VideoLimits
from ltx2.model.checkpoint import load_components
from ltx2.model.components import Components
from ltx2.model.duration import predict_frames
from ltx2.model.enhance import enhance
from ltx2.model.inputs import Inputs
from ltx2.model.lora_library import LoraLibrary
from ltx2.model.marking import marks_of
from ltx2.model.pipeline import Report, generate
from ltx2.model.placement import budget_bytes, free_memory
from ltx2.model.prompts import is_cut
from ltx2.plan import make_plan
from ltx2.provenance import Provenance
from ltx2.quality import QualityReport
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
    # first what is quick: a key that cannot be used is told at once
    signer = load_signer(settings)
    try:
        return Runner(load_components(settings), settings, signer)
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

    prompt: str
    """That was used."""
    num_frames: int
    steps: int
    stages: int
    audio_sample_rate: int | None
    provenance: Provenance
    quality: QualityReport
    warnings: tuple[str, ...]


class Runner:
    """Holds a loaded model."""

    def __init__(self, components: Components, settings: Settings, signer: Signer | None = None) -> None:
        self.components = components
        self.settings = settings
        self.signer = signer
        self.loras = LoraLibrary(components, settings.loras_dir, int(settings.lora_cache_mb * 2**20))
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
            frames = request.num_frames or "so many"
            log.warning("out of memory at %dx%d, %s frames", request.width, request.height, frames)
        # not in the except block: only now have the frames gone that hold on to tensors
        free_memory()
        raise OutOfMemory(
            f"the model ran out of memory at {request.width}x{request.height} with {frames} frames",
            hint=self._what_fits(request),
        )

    def _what_fits(self, request: GenerationRequest) -> str:
        failed = request.width, request.height, request.num_frames or DEFAULT_FRAMES
        found = None
        if self.components.residency is not None:
            placement = self.components.residency.placement
            found = what_fits(
                failed, placement.fitting_frames(failed), lambda shape: placement.should_fit(shape, failed)
            )
        return found or "ask for fewer frames or a smaller picture"

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
            if (step in (0, steps) or phase != "denoising") and self.components.device.type == "cuda":
                torch.cuda.synchronize(self.components.device)
            report(phase, step, steps)

        settings, components = self.settings, self.components
        report_when_done("encoding", 0, 0)
        inputs = Inputs(
            media,
            settings.max_image_megapixels,
            settings.max_audio_seconds,
            VideoLimits.of(settings),
            loras=self.loras.worn(request.loras),
        )
        request, doubts = self._settled(request, inputs, cancelled)
        plan = make_plan(
            request, components.recipe, can_refine=components.can_refine, piece_seconds=settings.piece_seconds
        )
        # now: a LoRA's file may be another one by the time the clip is made
        marks = marks_of(components, request, plan, media, settings, self.signer)
        result = generate(components, request, plan, inputs, report_when_done, cancelled)
        report_when_done("muxing", 0, 0)
        written = write_clip(
            target,
            request,
            result.chunks(),
            result.sound,
            default_crf=settings.video_crf,
            preset=settings.video_preset,
            encoder=settings.video_encoder,
            cancelled=cancelled,
            marks=marks,
        )
        warnings = (*self._warnings(request), *doubts, *plan.warnings, *marks.warnings, *written.quality.warnings)
        return Made(
            request.prompt,
            request.length,
            plan.steps,
            plan.stages,
            written.sample_rate,
            marks.provenance,
            written.quality,
            warnings,
        )

    def _settled(
        self, request: GenerationRequest, inputs: Inputs, cancelled: Cancelled
    ) -> tuple[GenerationRequest, list[str]]:
        """The request with the prompt and the length that its clip gets, and what is to be said of them.

        Sent as it is, it makes the same clip again.
        """
        components, settings = self.components, self.settings
        doubts = []
        if request.enhance_prompt:
            written = enhance(components, request, inputs, settings.max_prompt_chars, cancelled)
            if written is None:
                doubts.append("The model wrote nothing that can be a prompt, so yours was used as it is.")
            prompt = request.prompt if written is None else written
            request = request.model_copy(update={"prompt": prompt, "enhance_prompt": False})
        if request.num_frames is None:
            most = settings.max_num_frames
            frames = predict_frames(components, request.prompt, request.exact_fps, most, inputs.loras)
            if frames is None:
                frames = min(DEFAULT_FRAMES, most)
                doubts.append(f"This model cannot tell how long a clip should be: it has {frames} frames.")
            request = request.lasting(frames)
        return request, doubts

    def _warnings(self, request: GenerationRequest) -> list[str]:
        found = [*self.components.doubts]
        if is_cut(self.components, request.prompt):
            found.append("The prompt is longer than the model reads; its end was ignored.")
        return found
