"""Where each part of a model lives, and in which precision."""

import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import psutil
import torch

from ltx2.errors import NotReady
from ltx2.footprint import Activations, Footprint, Peaks, Precision, Shape, longest_below
from ltx2.geometry import Grid
from ltx2.model.fp8 import has_fp8_matmul
from ltx2.model.memory import OUTSIDE_SHARE, streamed_bytes, typical_grid, weight_bytes
from ltx2.model.parts import Part
from ltx2.settings import Settings

Offload = Literal["none", "text-encoder", "model", "group"]
"""What waits in host memory: nothing; what only prompts need; all parts but the one at work; and of that one, where
it is large, all blocks but a few. Each moves more weights for a clip than the one before."""
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
PROMPT_PARTS: frozenset[Part] = frozenset({"text_encoder", "connectors"})
"""What is needed for a prompt and then no more, as long as the prompt's contexts are remembered."""

RESERVED = 500_000_000
"""Bytes never planned with: the kernels that a GPU loads, the workspaces of its libraries."""
RESERVED_SHARE = 0.04
"""The share of all memory never planned with: what the allocator cannot use between two tensors."""
PINNED = 1.1
"""What a weight takes in pinned memory, of what it has: torch rounds each tensor up to a power of two."""
GB = 1e9
RELIEF = 0.75
"""The share of what was too much that should not be."""


@dataclass(frozen=True)
class Card:
    """The memory a model is to fit into: that of a GPU, or the host's."""

    kind: Literal["cuda", "cpu"]
    total_bytes: int
    free_bytes: int
    fp8_matmul: bool = False
    """Whether it multiplies float8 faster than bf16."""
    host_free_bytes: int = sys.maxsize
    """Beside a GPU: free host memory, where parts wait."""

    @property
    def available_bytes(self) -> int:
        """What can be planned with."""
        return int(self.free_bytes - RESERVED - RESERVED_SHARE * self.total_bytes)


@dataclass(frozen=True)
class Placement:
    """One way to place a model on a card."""

    precision: Precision
    offload: Offload
    card: Card
    sizes: Mapping[Part, int]
    """How many weights each part has."""
    shape: Grid
    """The largest clip that room is kept for."""
    activations: Activations
    lora_parameters: int = 0
    """Numbers of the LoRA that the transformer wears: on the device while it is there."""

    def stays(self, part: Part) -> bool:
        """Whether a part is on the device all the time."""
        return self.offload == "none" or (self.offload == "text-encoder" and part not in PROMPT_PARTS)

    def streams(self, part: Part) -> bool:
        """Whether a part's blocks pass through the device while it works."""
        return self.offload == "group" and part in OUTSIDE_SHARE

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number outside float8. CPUs compute in float32 unless bf16 was asked for."""
        return 4 if self.precision == "fp32" or (self.card.kind == "cpu" and self.precision != "bf16") else 2

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is not float8, but for the vocoder, which is always in float32."""
        return torch.float32 if self.compute_bytes == 4 else torch.bfloat16

    def weight_bytes(self, part: Part) -> int:
        """What a part weighs; 0 if there is none."""
        return weight_bytes(part, self.sizes.get(part, 0), self.precision, self.compute_bytes)

    @property
    def lora_bytes(self) -> int:
        """What the LoRA weighs."""
        return self.lora_parameters * self.compute_bytes

    @property
    def resident_bytes(self) -> int:
        """What is on the device all the time."""
        lora = self.lora_bytes if self.stays("transformer") else 0
        return lora + sum(self.weight_bytes(part) for part in self.sizes if self.stays(part))

    @property
    def host_bytes(self) -> int:
        """What is in host memory all the time."""
        lora = 0 if self.stays("transformer") else self.lora_bytes
        waiting = lora + sum(self.weight_bytes(part) for part in self.sizes if not self.stays(part))
        return round(waiting * (PINNED if self.card.kind == "cuda" else 1))

    @property
    def footprint(self) -> Footprint:
        """What a clip of any size takes."""
        part: Part = "diffusion_decoder" if "diffusion_decoder" in self.sizes else "vae"
        return Footprint(
            held=self.resident_bytes + (self.host_bytes if self.card.kind == "cpu" else 0),
            text_encoder=self._visiting("text_encoder"),
            connectors=self._visiting("connectors"),
            transformer=self._visiting("transformer") + (0 if self.stays("transformer") else self.lora_bytes),
            decoder=self._visiting(part),
            voice=max(self._visiting("audio_vae"), self._visiting("vocoder")),
            activations=self.activations,
            diffuses=part == "diffusion_decoder",
            precision=self.precision,
            compute_bytes=self.compute_bytes,
            available=self.card.available_bytes,
        )

    @property
    def tiled(self) -> bool:
        """Whether the largest clip is decoded in tiles."""
        return self.footprint.is_tiled(self.shape)

    @property
    def peaks(self) -> Peaks:
        """Of the largest clip."""
        return self.footprint.peaks(self.shape)

    @property
    def peak_bytes(self) -> int:
        """Most bytes ever, for the largest clip."""
        return max(self.peaks)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.card.available_bytes and self.host_bytes <= self.card.host_free_bytes

    def tiled_at(self, width: int, height: int, num_frames: int) -> bool:
        """Whether pictures of this size (pixels) and length (frames) must be decoded in tiles to fit."""
        return self.footprint.is_tiled(typical_grid(width, height, num_frames))

    def should_fit(self, shape: Shape, failed: Shape) -> bool:
        """Whether a clip should fit where another did not.

        What did not fit is more than there was room for, whatever was planned: of what it needs beyond the smallest
        clip, one that should fit needs at most ``RELIEF``, and in all no more than there is.

        Args:
            shape: width, height and frames.
            failed: the same of the one that did not fit.
        """

        def peak(of: Shape) -> int:
            return replace(self, shape=typical_grid(*of)).peak_bytes

        least = peak((64, 64, 1))
        room = min(self.card.available_bytes, least + RELIEF * (peak(failed) - least))
        return peak(shape) <= room

    def fitting_frames(self, failed: Shape) -> int:
        """The longest clip of the same size that should fit where this one did not; 0 if none does."""
        width, height, num_frames = failed
        return longest_below(num_frames, lambda frames: self.should_fit((width, height, frames), failed))

    def describe(self) -> str:
        """What was decided and what it costs, for the log."""
        peaks = ", ".join(f"{phase} {size / GB:.1f}" for phase, size in self.peaks._asdict().items())
        tiled = " in tiles" if self.tiled else ""
        return (
            f"{self.precision}, offload {self.offload}: {self.resident_bytes / GB:.1f} GB stay on the device, "
            f"{self.host_bytes / GB:.1f} GB in host memory; predicted peak at {name_of(self.shape)} "
            f"{self.peak_bytes / GB:.1f} of {self.card.available_bytes / GB:.1f} GB ({peaks}{tiled})"
        )

    def _visiting(self, part: Part) -> int:
        """What comes to the device when a part is used."""
        if self.stays(part):
            return 0
        if self.streams(part):
            return streamed_bytes(part, self.sizes.get(part, 0), self.compute_bytes)
        return self.weight_bytes(part)


def plan_placement(
    card: Card,
    sizes: Mapping[Part, int],
    precision: Literal["auto", Precision],
    offload: Literal["auto", Offload],
    shape: Grid,
    activations: Activations,
    *,
    stored_fp8: bool = False,
    lora_parameters: int = 0,
) -> Placement:
    """The best way to place a model, within what is asked for.

    Without wishes: bf16 if that fits with at most the prompt's parts in host memory, else float8; and as little as
    possible in host memory. Everything stays on a GPU only if it also leaves room to decode in one piece: tiles
    show at their borders, and taking the text encoder away costs a second per new prompt. On a CPU float32, and
    nothing moves.

    Args:
        card: where it is to fit.
        sizes: how many weights each part has.
        precision, offload: as in the settings.
        shape: the largest clip that room is kept for.
        activations: what the parts need beside their weights.
        stored_fp8: whether the checkpoint is stored in float8; it then stays so unless another precision is asked for.
        lora_parameters: numbers of the LoRA that the transformer wears.

    Raises:
        NotReady: nothing fits; the message has all that was tried, the hint what would help.
    """
    tried = []
    for chosen, offloads in _candidates(card, precision, offload, stored_fp8):
        for moved in offloads:
            placement = Placement(chosen, moved, card, sizes, shape, activations, lora_parameters)
            shows = placement.tiled and moved == "none" and offload == "auto" and card.kind == "cuda"
            if placement.fits and not shows:
                return placement
            tried.append(placement)
    raise _does_not_fit(tried)


def _candidates(
    card: Card, precision: Literal["auto", Precision], offload: Literal["auto", Offload], stored_fp8: bool
) -> list[tuple[Precision, tuple[Offload, ...]]]:
    """What is to be tried, the best first."""
    float8: Precision = "fp8" if card.fp8_matmul else "fp8-storage"
    offloads = (offload,) if offload != "auto" else OFFLOADS if card.kind == "cuda" else OFFLOADS[:1]
    if precision == "fp8" or (precision == "auto" and stored_fp8):
        return [(float8, offloads)]
    if precision != "auto":
        return [(precision, offloads)]
    return [("fp32", offloads)] if card.kind == "cpu" else [("bf16", offloads[:2]), (float8, offloads)]


def _does_not_fit(tried: list[Placement]) -> NotReady:
    def line(placement: Placement) -> str:
        phase, size = max(placement.peaks._asdict().items(), key=lambda peak: peak[1])
        host = f" and {placement.host_bytes / GB:.1f} GB of host memory" if placement.host_bytes else ""
        return f"{placement.precision} with offload {placement.offload} needs {size / GB:.1f} GB to {phase}{host}"

    last = tried[-1]
    card = last.card
    lora = f", {last.lora_bytes / GB:.1f} GB of it for a LoRA" if last.lora_bytes else ""
    free = f", {card.host_free_bytes / GB:.1f} GB of host memory are free" if card.kind == "cuda" else ""
    others = {
        "LTX2_PRECISION=fp8": replace(last, precision="fp8"),
        "LTX2_OFFLOAD=group": replace(last, offload="group"),
    }
    remedies = [setting for setting, other in others.items() if other.fits]
    return NotReady(
        f"the model does not fit for a clip of {name_of(last.shape)}: {card.available_bytes / GB:.1f} GB of "
        f"{card.total_bytes / GB:.1f} GB can be used{free}; " + "; ".join(map(line, tried)) + lora,
        hint="set " + " or ".join([*remedies, "LTX2_PLAN_FOR to a smaller clip"]),
    )


def name_of(shape: Grid) -> str:
    """A clip's size and length, as in ``LTX2_PLAN_FOR``."""
    return f"{shape.width}x{shape.height}x{shape.num_frames}"


def planned_shape(settings: Settings) -> Grid:
    """The largest clip that room is kept for."""
    width, height, num_frames = map(int, settings.plan_for.split("x"))
    return typical_grid(width, height, num_frames)


def choose_device(settings: Settings) -> torch.device:
    """The device asked for; ``auto`` takes a GPU if there is one.

    Raises:
        NotReady: it is not there.
    """
    if settings.device != "auto":
        device = torch.device(settings.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise NotReady(
                f"LTX2_DEVICE is {settings.device}, but torch sees {torch.cuda.device_count()} CUDA devices",
                hint="set LTX2_DEVICE=auto, or install a torch built for your GPU",
            )
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # pinned memory and kernels go by the current device: another one would get a context, and pay for it
        torch.cuda.set_device(device)
    return device


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_card(device: torch.device) -> Card:
    """What a device has, and has left, right now."""
    memory = psutil.virtual_memory()
    if device.type == "cuda":
        free_memory()  # what torch keeps for itself, of a model that was not loaded to its end, counts as taken
        free, total = torch.cuda.mem_get_info(device)
        return Card("cuda", total, free, has_fp8_matmul(device), memory.available)
    # that a CPU can multiply float8 does not mean that it is fast
    return Card("cpu", memory.total, memory.available)


def budget_bytes(device: torch.device) -> int:
    """All the memory the device has."""
    return read_card(device).total_bytes
