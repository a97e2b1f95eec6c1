"""The denoise loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ltx2.errors import Canceled
from ltx2.model.conditioning import Stream, draw_noise
from ltx2.model.denoiser import Contexts, Denoiser
from ltx2.model.guidance import Guide

StepNoise = Callable[[], tuple[Tensor, Tensor]]


def denoise(
    denoiser: Denoiser,
    video: Stream,
    audio: Stream,
    sigmas: Sequence[float],
    positive: Contexts,
    negative: Contexts,
    guide: Guide,
    *,
    step_noise: torch.Generator | None = None,
    on_step: Callable[[int], None] = lambda _step: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Stream, Stream]:
    """Denoise both streams from the first sigma to the last.

    Args:
        video, audio: streams noised to ``sigmas[0]``.
        sigmas: falling noise levels, the last of them 0.
        positive, negative: the prompts.
        guide: the guidance.
        step_noise: draws the noise of each step of ancestral Euler; plain Euler without it.
        on_step: told the number of each finished step, from 1.
        cancelled: asked before every step.

    Raises:
        Canceled: ``cancelled()`` answered True.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=1):
        if cancelled():
            raise Canceled("the generation was cancelled")
        guided = guide.predict(denoiser, video, audio, sigma, positive, negative)
        x0 = (video.keep(guided[0]), audio.keep(guided[1]))
        if sigma_next == 0:
            tokens = x0
        elif step_noise is None:
            tokens = (euler(video.tokens, x0[0], sigma, sigma_next), euler(audio.tokens, x0[1], sigma, sigma_next))
        else:
            noise = draw_noise(step_noise, video, audio)
            tokens = (
                video.keep(euler_ancestral(video.tokens, x0[0], noise[0], sigma, sigma_next)),
                audio.keep(euler_ancestral(audio.tokens, x0[1], noise[1], sigma, sigma_next)),
            )
        video, audio = replace(video, tokens=tokens[0]), replace(audio, tokens=tokens[1])
        on_step(step)
    return video, audio


def euler(tokens: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step along the straight line from the tokens to the predicted clean ones."""
    return tokens + (tokens - x0) / sigma * (sigma_next - sigma)


def euler_ancestral(tokens: Tensor, x0: Tensor, noise: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step that goes below the next noise level and comes back up to it with fresh noise (eta 1).

    For flow matching, where a sample of level s is (1 - s)·clean + s·noise; ``sigma_next`` is above 0.
    """
    down = sigma_next * (sigma_next / sigma)
    below = down / sigma * tokens + (1 - down / sigma) * x0
    keep = (1 - sigma_next) / (1 - down)
    return keep * below + noise * math.sqrt(sigma_next**2 - (down * keep) ** 2)
