"""The video VAE: stills first, then short clips, all of them windows into scenes of any size."""

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor
from torch.nn import functional

from training import clutter, pictures
from training.loop import Run
from training.world import Pixels, Scene

STILLS = 2400
"""Steps. Begun with clips, it stays at grey for long."""
STEPS = 6000
KL = 2e-4
NOISE = 0.08
"""Added to what the decoder gets, of a latent's spread, since samplers are never exact."""


def build() -> AutoencoderKLLTX2Video:
    """Untrained."""
    return AutoencoderKLLTX2Video(
        block_out_channels=(64, 64, 64, 128),
        decoder_block_out_channels=(32, 64, 128),
        # nothing where the encoder is at its widest, a quarter of the pictures' size: that would be nine tenths of all
        layers_per_block=(0, 1, 1, 2, 1),
        decoder_layers_per_block=(1, 1, 1, 2),
        upsample_factor=(1, 2, 2),
        decoder_causal=False,
        # diffusers would infer other ratios from a decoder of three blocks
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def window(rng: np.random.Generator, side: int, count: int) -> Pixels:
    """``count`` frames of a square window into something, ``[count, side, side, 3]``."""
    if rng.random() < 0.05:
        return clutter.frames(rng, side, count)
    scene = Scene.draw(rng, unseen=rng.random() < 0.1)
    short = int(rng.integers(max(side, 96), 321))
    width, height = (short, int(short * rng.uniform(1, 1.8)))[:: rng.choice((1, -1))]
    fps = float(rng.choice((12, 24, 24, 25, 30)))
    start = rng.integers(0, 60)
    indices = np.arange(start, start + count, dtype=np.float32)
    look = scene.at(np.array([start / fps], np.float32))
    full = scene.radius * short
    # mostly where the shape is, since grounds are easy
    reach = 1.2 * full if rng.random() < 0.85 else 1e6
    middle_x = full + float(look.x[0]) * (width - 2 * full) + rng.uniform(-reach, reach)
    middle_y = full + float(look.y[0]) * (height - 2 * full) + rng.uniform(-reach, reach)
    left = int(np.clip(middle_x - side / 2, 0, width - side))
    top = int(np.clip(middle_y - side / 2, 0, height - side))
    return pictures.frames(scene, width, height, indices, fps, (left, top, side, side))


def batch(rng: np.random.Generator, side: int, count: int, size: int) -> Tensor:
    """``[size, 3, count, side, side]``, -1 to 1."""
    clips = np.stack([window(rng, side, count) for _ in range(size)])
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def settle(vae: AutoencoderKLLTX2Video) -> None:
    """Have each kernel look at one moment only, which for a still is the same.

    A still is repeated to fill the kernels in time, so that stills train all of a kernel's moments alike. Left so, they
    are an average over time, and a latent knows little of its own frames.
    """
    for name, weight in vae.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3:
            # the encoder's end with the frame they are for; the decoder's have it in the middle
            now = 2 if name.startswith("encoder.") else 1
            whole = weight.sum(2)
            weight.zero_()
            weight[:, :, now] = whole


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train encoder and decoder together."""
    torch.manual_seed(2)
    vae = build()

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == STILLS:
            settle(vae)
        if step < STILLS:
            clips = batch(rng, 64, 1, 32) if step % 2 else batch(rng, 128, 1, 12)
        elif step % 3 == 0:
            clips = batch(rng, 128, 1, 16)
        else:
            clips = batch(rng, 96, 17, 4) if step % 3 == 1 else batch(rng, 128, 9, 4)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(clips).latent_dist
            z = latents.sample().float()
            z = z + NOISE * z.detach().std() * torch.randn_like(z)
            seen = vae.decode(z).sample.float()
        error = seen - clips
        spread = latents.mean.float() ** 2 + latents.var.float() - 1 - latents.logvar.float()
        kl = 0.5 * spread.mean()
        # a point of an edge in the wrong place costs as much as a whole cell a shade off
        edges = functional.l1_loss(seen.diff(dim=-1), clips.diff(dim=-1)) + functional.l1_loss(
            seen.diff(dim=-2), clips.diff(dim=-2)
        )
        total = error.abs().mean() + error.square().mean() + 0.5 * edges + KL * kl
        psnr = float(10 * torch.log10(4 / error.detach().square().mean((1, 2, 3, 4)).clamp_min(1e-6)).mean())
        kind = "stills" if clips.shape[2] == 1 else "clips"
        return total, {f"psnr_{kind}": psnr, "kl": float(kl), "z": float(z.detach().std())}

    return Run("video_vae", vae, loss, steps, rate=8e-4, fall=0.5, minutes=minutes)
