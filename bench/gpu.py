"""``python -m bench.gpu``: the full-size 19B model with random weights on this machine's GPU.

For bf16 and for fp8 it makes one 768x512 clip of 121 frames in 8 steps, after one to warm up, and prints the seconds
of each phase and the peak of its memory beside what the placement predicted. What the weights are changes neither.
Without a GPU the embedded miniature takes its place, and nothing is said about GPUs.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from bench import memory
from ltx2.engine import Phase
from ltx2.errors import NotReady
from ltx2.media.probe import probe_video
from ltx2.model.checkpoint import Checkpoint, assemble, place
from ltx2.model.components import Components
from ltx2.model.parts import PARTS, Module, Part
from ltx2.model.placement import GB, choose_device
from ltx2.model.runner import Runner
from ltx2.model.source import Enhancer
from ltx2.model.tiny import TinySource
from ltx2.recipes import Generation
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

SHAPE = (768, 512, 121)
PEAK_OF: dict[Phase, str] = {"encoding": "encode", "denoising": "denoise", "decoding": "decode"}
"""What the placement calls the peak of a phase."""


class RandomSource:
    """Implements :class:`ltx2.model.source.Source`: full-size parts with random weights."""

    num_layers = 48
    stored_fp8 = False

    def __init__(self, generation: Generation, device: torch.device) -> None:
        self.generation = generation
        self._device = device
        self._patterns = memory.parts(generation)

    def parts(self) -> frozenset[Part]:
        return frozenset(self._patterns)

    def parameters(self, part: Part) -> int:
        return sum(weight.numel() for weight in self._patterns[part].parameters())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (stored_fp8)
        pattern = self._patterns[part]
        kind: Any = type(pattern)
        with init_empty_weights(include_buffers=False):
            module = kind(pattern.config) if part == "text_encoder" else kind.from_config(pattern.config)
        for name, weight in list(module.named_parameters()):
            # drawn on the device, where that is quick, one at a time, since not all of them may fit there
            value = torch.empty(weight.shape, dtype=dtype, device=self._device).normal_(std=0.02)
            set_module_tensor_to_device(module, name, "cpu", value)
        if part == "text_encoder":
            module.tie_weights()  # of the head and the embedding, which the meta device has separated
        return torch.nn.Module.to(module.eval().requires_grad_(requires_grad=False), dtype)

    def tokenizer(self) -> Any:
        """The miniature's: its tokens are among Gemma's."""
        return TinySource("tiny").tokenizer()

    def enhancer(self) -> Enhancer:
        """The miniature's."""
        return TinySource("tiny").enhancer()


@dataclass
class Meter:
    """Seconds and the peak of memory of each phase."""

    device: torch.device
    seconds: dict[Phase, float] = field(default_factory=dict)
    peaks: dict[Phase, int] = field(default_factory=dict)
    _phase: Phase | None = None
    _since: float = 0.0

    def report(self, phase: Phase, _step: int = 0, _steps: int = 0) -> None:
        """Told by the runner where a generation is."""
        if phase == self._phase:
            return
        self.finish()
        self._phase, self._since = phase, time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def finish(self) -> None:
        """The last phase is over."""
        if self._phase is None:
            return
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
            self.peaks[self._phase] = torch.cuda.max_memory_allocated(self.device)
        self.seconds[self._phase] = time.perf_counter() - self._since


def measure(components: Components, settings: Settings, request: GenerationRequest) -> Meter:
    """The second of two clips: the first one pays for everything that is only made once."""
    runner = Runner(components, settings)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            meter, target = Meter(components.device), Path(folder) / f"{number}.mp4"
            runner.run(request, {}, target, meter.report, lambda: False)
            meter.finish()
            assert probe_video(target).num_frames == request.num_frames
    return meter


def lines(checkpoint: Checkpoint, settings: Settings, request: GenerationRequest) -> Iterator[str]:
    """What one way of placing the model comes to."""
    device = choose_device(settings)
    parts = tuple(part for part in PARTS if part in checkpoint.source.parts())
    try:
        checkpoint, placement = place(checkpoint, parts, device, settings)
    except NotReady as error:
        yield f"  {error}"
        return
    yield f"  plan: {placement.describe()}"
    components = assemble(checkpoint, parts, placement, device, settings)
    meter = measure(components, settings, request)
    predicted = placement.peaks._asdict()
    for phase, seconds in meter.seconds.items():
        line = f"  {phase:10} {seconds:8.2f} s"
        if phase in meter.peaks:
            line += f"   peak {meter.peaks[phase] / GB:6.1f} GB"
        if phase in PEAK_OF and phase in meter.peaks:
            line += f"   predicted {predicted[PEAK_OF[phase]] / GB:6.1f} GB"
        yield line
    yield f"  {'all':10} {sum(meter.seconds.values()):8.2f} s"


def main() -> int:
    """Print the figures of both precisions."""
    logging.basicConfig(level=logging.WARNING)
    width, height, num_frames = SHAPE
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        width, height, num_frames = 256, 192, 25
        print("No GPU: the embedded miniature on the CPU. Figures of GPUs remain unmeasured.")
    request = GenerationRequest(
        prompt="A lighthouse in the fog, waves break on the rocks",
        width=width,
        height=height,
        num_frames=num_frames,
        seed=1,
        num_inference_steps=8,
    )
    for precision in ("bf16", "fp8"):
        # without the cache, so that the second clip encodes its prompt as well
        settings = Settings(precision=precision, plan_for=f"{width}x{height}x{num_frames}", prompt_cache_mb=0)
        source = RandomSource("2.0", torch.device("cuda")) if has_gpu else TinySource("tiny")
        what = "19B with random weights" if has_gpu else "tiny"
        print(f"{what}, {precision}, {width}x{height}x{num_frames}, 8 steps")
        for line in lines(Checkpoint(what, source, "distilled", is_random=True), settings, request):
            print(line, flush=True)
        if has_gpu:
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
