"""The modules of one LTX-2, named."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltx2.engine import ModelFacts
from ltx2.errors import NotReady
from ltx2.geometry import Grid
from ltx2.model.denoiser import Denoiser
from ltx2.model.lora import Lora
from ltx2.model.parts import PARTS, Module, Part
from ltx2.model.prompt_cache import PromptCache
from ltx2.model.residency import Residency
from ltx2.model.source import Enhancer
from ltx2.recipes import Recipe


@dataclass(frozen=True)
class Components:
    """One loaded LTX-2. The modules are diffusers' and transformers' own classes, in eval mode."""

    name: str
    """What the user called it."""
    recipe: Recipe
    tokenizer: Any
    text_encoder: Module
    connectors: Module
    transformer: Module
    vae: Module
    audio_vae: Module
    vocoder: Module
    device: torch.device
    upsampler: Module = None
    """Enlarges latents for a second stage. This and other parts that not every checkpoint has are None without."""
    refine_lora: Lora | None = None
    """What makes a dev checkpoint's transformer refine in few steps."""
    diffusion_decoder: Module = None
    """Decodes pictures in the VAE's place."""
    duration_head: Module = None
    """Tells how long the clip of a prompt should be."""
    open_enhancer: Callable[[], Enhancer] | None = None
    """Finds what writes prompts out; raises NotReady where that is not there."""
    residency: Residency | None = None
    """Where each part is when; without it they all stay on the device."""
    prompt_cache: PromptCache = field(default_factory=PromptCache)
    is_random: bool = False
    """True for the embedded models, whose weights were never trained."""

    @cached_property
    def denoiser(self) -> Denoiser:
        """The transformer, called the way the official code calls it."""
        return Denoiser(self.transformer)

    @cached_property
    def enhancer(self) -> Enhancer:
        """What writes prompts out.

        Raises:
            NotReady: it is not there; the message says what is missing.
        """
        if self.open_enhancer is None:
            raise NotReady(f"the model {self.name!r} has nothing that writes prompts out")
        return self.open_enhancer()

    @property
    def parts(self) -> dict[Part, Module]:
        """The modules by name, those that are there."""
        return {part: module for part in PARTS if (module := getattr(self, part)) is not None}

    @property
    def can_refine(self) -> bool:
        """Whether clips can be made in two stages."""
        return self.upsampler is not None and (self.recipe.kind == "distilled" or self.refine_lora is not None)

    @property
    def refine_loras(self) -> tuple[tuple[Lora, float], ...]:
        """What the transformer wears in the second stage: Lora and scale."""
        return () if self.refine_lora is None or self.recipe.kind == "distilled" else ((self.refine_lora, 1.0),)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is to be said of every clip."""
        if not self.is_random:
            return ()
        meaning = f"The model {self.name!r} is a random miniature: its pictures and sounds mean nothing."
        return (f"{meaning} Set LTX2_MODEL to a real LTX-2, see README.md.",)

    @property
    def facts(self) -> ModelFacts:
        """What of all this decides what a request will come to."""
        placement = self.residency.placement if self.residency is not None else None
        return ModelFacts(
            name=self.name,
            recipe=self.recipe,
            can_refine=self.can_refine,
            has_duration_head=self.duration_head is not None,
            footprint=placement.footprint if placement is not None and placement.card.kind == "cuda" else None,
            doubts=self.doubts,
        )

    def using(self, *parts: Part) -> AbstractContextManager[None]:
        """Have these parts on the device for a while."""
        return nullcontext() if self.residency is None else self.residency.using(*parts)

    def is_tiled(self, grid: Grid) -> bool:
        """Whether pictures of this size must be decoded in tiles to fit into memory."""
        return self.residency is not None and self.residency.placement.tiled_at(
            grid.grid_width, grid.grid_height, grid.grid_frames
        )

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights and buffers that stay on the device."""
        tensors: list[Tensor] = []
        for part, module in self.parts.items():
            if self.residency is None or self.residency.placement.stays(part):
                tensors += [*module.parameters(), *module.buffers()]
        return sum(tensor.nbytes for tensor in tensors)


def video_statistics(vae: Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, ``[1, C, 1, 1, 1]`` float32: how latents are normalised."""
    mean, std = vae.latents_mean.to(device).float(), vae.latents_std.to(device).float() / vae.config.scaling_factor
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def audio_statistics(vae: Module, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each packed audio channel, ``[128]`` float32."""
    return vae.latents_mean.to(device).float(), vae.latents_std.to(device).float()


def dtype_of(module: Module) -> torch.dtype:
    """The dtype a module computes in: that of its first floating-point weight that is not merely stored in float8."""
    dtypes: Iterator[torch.dtype] = (
        weight.dtype for weight in module.parameters() if weight.is_floating_point() and weight.itemsize > 1
    )
    return next(dtypes)
