"""The vocoder: mel spectrogram → sound at 24 kHz, by what its spectra are at several resolutions."""

import numpy as np
import torch
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import Tensor

from ltx2.model.mel import HOP, SAMPLE_RATE, log_mel, resample
from training.audio_vae import sound
from training.loop import Run

STEPS = 3000
RATE = 24_000
SECONDS = 0.5
WINDOWS = (256, 512, 1024, 2048)


def build() -> LTX2Vocoder:
    """Untrained."""
    return LTX2Vocoder(hidden_channels=128)


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train it on spectrograms with the errors that a VAE makes."""
    torch.manual_seed(2)
    vocoder = build()

    def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        waves = torch.stack([sound(rng, SECONDS, RATE) for _ in range(6)])
        mels = torch.stack([log_mel(resample(wave, RATE, SAMPLE_RATE)) for wave in waves])
        mels = mels + 0.1 * torch.rand(()) * torch.randn_like(mels)
        with torch.autocast("cpu", torch.bfloat16):
            heard = vocoder(mels).float()
        # its first sample is the middle of the first window
        length = min(heard.shape[-1], waves.shape[-1])
        heard, waves = heard[..., :length].flatten(0, 1), waves[..., :length].flatten(0, 1)
        total, figures = _spectral(heard, waves)
        return total, figures

    return Run("vocoder", vocoder, loss, steps, rate=1e-3, minutes=minutes)


def _spectral(heard: Tensor, waves: Tensor) -> tuple[Tensor, dict[str, float]]:
    total = heard.new_zeros(())
    log_error = 0.0
    for size in WINDOWS:
        window = torch.hann_window(size)
        there, wanted = (
            torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().clamp_min(1e-4) / size**0.5
            for wave in (heard, waves)
        )
        distance = (there.log() - wanted.log()).abs().mean()
        share = (there - wanted).norm() / wanted.norm().clamp_min(1e-3)
        total = total + 0.5 * distance + share + 4 * (there - wanted).abs().mean()
        log_error += float(distance.detach()) / len(WINDOWS)
    return total / len(WINDOWS), {"log_error": log_error}


FRAME = HOP * RATE // SAMPLE_RATE
"""Samples of sound for each frame of a spectrogram."""
