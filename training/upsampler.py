"""The latent upsampler: what a scene's latents are at twice the size."""

from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from torch import Tensor
from torch.nn import functional

from ltx2.model.components import video_statistics
from training import frozen, pictures
from training.loop import Run
from training.world import Scene

STEPS = 3000
SMALL = ((128, 96), (96, 128), (128, 128), (160, 96))


def build() -> LTX2LatentUpsamplerModel:
    """Untrained."""
    return LTX2LatentUpsamplerModel(mid_channels=64, num_blocks_per_stage=1)


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train it on the latents of the same frames at both sizes."""
    torch.manual_seed(2)
    upsampler, vae = build(), frozen.load("vae")

    def encoded(scene: Scene, width: int, height: int, frames: int) -> Tensor:
        seen = pictures.frames(scene, width, height, np.arange(frames, dtype=np.float32), 24)
        clip = torch.from_numpy(seen).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad():
            return frozen.normalised(vae, vae.encode(clip).latent_dist.mode().float())

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        width, height = SMALL[step % len(SMALL)]
        frames = (1, 9, 17)[step % 3]
        small, large = [], []
        for _ in range(1 if frames > 1 else 4):
            scene = Scene.draw(rng)
            with torch.autocast("cpu", torch.bfloat16):
                small.append(encoded(scene, width, height, frames))
                large.append(encoded(scene, 2 * width, 2 * height, frames))
        given, wanted = torch.cat(small), torch.cat(large)
        given = given + 0.1 * torch.randn_like(given)
        # it works on latents as the VAE has them; in float32, since some gradients of its kernels overflow in bfloat16
        enlarged: Any = upsampler(_as_encoded(vae, given))
        error = functional.mse_loss(frozen.normalised(vae, enlarged), wanted)
        return error, {"share": float(error.detach() / wanted.var())}

    return Run("upsampler", upsampler, loss, steps, rate=8e-4, minutes=minutes)


def _as_encoded(vae: Any, latents: Tensor) -> Tensor:
    mean, std = video_statistics(vae, latents.device)
    return latents * std + mean
