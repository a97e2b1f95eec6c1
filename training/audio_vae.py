"""The audio VAE, on log-mel spectrograms of the world's sounds and of others."""

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import Tensor

from ltx2.model.mel import SAMPLE_RATE, log_mel
from training import sounds
from training.loop import Run
from training.world import Scene

STEPS = 1300
SECONDS = 0.84
"""Of a sound: 21 latents."""
KL = 1e-3
NOISE = 0.08


def build() -> AutoencoderKLLTX2Audio:
    """Untrained. Its first width has to be 128, since the statistics of its latents are as wide."""
    return AutoencoderKLLTX2Audio(ch_mult=(1, 1, 1), num_res_blocks=0)


def sound(rng: np.random.Generator, seconds: float, rate: int) -> Tensor:
    """A moment of any sound, ``[2, samples]``."""
    if rng.random() < 0.25:
        return torch.from_numpy(sounds.anything(rng, seconds, rate))
    skipped = rng.uniform(0, 1.5)
    whole = sounds.sound(Scene.draw(rng, unseen=rng.random() < 0.1), seconds + skipped, rate)
    level = 10 ** rng.uniform(-0.5, 0.3) if rng.random() < 0.5 else 1.0
    wave = whole[:, -round(seconds * rate) :] * level
    if rng.random() < 0.2:
        wave = np.broadcast_to(wave.mean(0), wave.shape)
    if rng.random() < 0.2:
        wave = wave + rng.standard_normal(wave.shape) * 10 ** rng.uniform(-4, -2)
    return torch.from_numpy(np.ascontiguousarray(wave, np.float32))


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train encoder and decoder together."""
    torch.manual_seed(2)
    vae = build()

    def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        mels = torch.stack([log_mel(sound(rng, SECONDS, SAMPLE_RATE)) for _ in range(3)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(mels).latent_dist
            z = latents.sample().float()
            z = z + NOISE * z.detach().std() * torch.randn_like(z)
            heard = vae.decode(z).sample.float()
        error = heard - mels[:, :, : heard.shape[2]]
        spread = latents.mean.float() ** 2 + latents.var.float() - 1 - latents.logvar.float()
        kl = 0.5 * spread.mean()
        total = error.abs().mean() + 0.1 * error.square().mean() + KL * kl
        return total, {
            "error": float(error.detach().abs().mean()),
            "kl": float(kl.detach()),
            "z": float(z.detach().std()),
        }

    return Run("audio_vae", vae, loss, steps, rate=7e-4, minutes=minutes)
