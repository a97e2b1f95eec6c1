"""The modules of one LTX-2, named."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltx2.model.denoiser import Denoiser
from ltx2.recipes import Recipe

Module = Any
"""An ``nn.Module`` of diffusers or transformers. They declare configuration and buffers at run time only,
so a type checker that took the class at its word would refuse every use of them."""


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
    is_random: bool = False
    """True for the embedded models, whose weights were never trained."""

    @cached_property
    def denoiser(self) -> Denoiser:
        """The transformer, called the way the official code calls it."""
        return Denoiser(self.transformer)

    @property
    def modules(self) -> tuple[Module, ...]:
        return (self.text_encoder, self.connectors, self.transformer, self.vae, self.audio_vae, self.vocoder)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights and buffers."""
        tensors: list[Tensor] = []
        for module in self.modules:
            tensors += [*module.parameters(), *module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def video_statistics(vae: Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, ``[1, C, 1, 1, 1]`` float32: how latents are normalised."""
    mean, std = vae.latents_mean.float(), vae.latents_std.float() / vae.config.scaling_factor
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def dtype_of(module: Module) -> torch.dtype:
    """The dtype a module computes in: that of its first floating-point weight."""
    dtypes: Iterator[torch.dtype] = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    return next(dtypes)
