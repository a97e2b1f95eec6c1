"""Parts as the next ones need them: the averaged weights of a run, and the statistics of their latents.

``python -m training.frozen vae`` (or ``audio_vae``) fixes what the encoder says from now on; whatever is trained
on its latents is bound to it. The decoder may go on (``video_decoder``).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ltx2.model.components import video_statistics
from ltx2.model.mel import SAMPLE_RATE, log_mel
from training import audio_vae, text, video_vae
from training.loop import RUNS, averaged

FROZEN = RUNS / "frozen"
PARTS = Path(__file__).parent / "parts"
"""In the repository: what is done, as :mod:`training.ship` writes it."""
SAMPLES = 96


def freeze(part: str) -> None:
    """Write a VAE with the mean and spread of each of its latents' channels over the world."""
    rng = np.random.default_rng(5)
    vae: Any = video_vae.build() if part == "vae" else audio_vae.build()
    vae.load_state_dict(averaged("video_vae" if part == "vae" else part))
    vae.eval()
    drawn = []
    with torch.inference_mode():
        for _ in range(SAMPLES):
            if part == "vae":
                drawn.append(vae.encode(video_vae.batch(rng, 128, 9, 1)).latent_dist.mode().flatten(2))
            else:
                mel = log_mel(audio_vae.sound(rng, 0.84, SAMPLE_RATE))
                # one statistic for each channel and band
                drawn.append(vae.encode(mel[None]).latent_dist.mode().transpose(2, 3).flatten(1, 2))
    values = torch.cat(drawn, dim=-1).transpose(0, 1).flatten(1)
    vae.latents_mean.copy_(values.mean(1))
    vae.latents_std.copy_(values.std(1).clamp_min(1e-2))
    print(
        part, "spread", [round(float(x), 3) for x in vae.latents_std.quantile(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]))]
    )
    vae.save_pretrained(FROZEN / part)


def load(part: str) -> Any:
    """A part that is done: ``vae``, ``audio_vae``, ``tokenizer``, or ``reader``, a :class:`training.text.Reader`.

    Of this machine's runs, or else as the repository has it.
    """
    if part == "tokenizer":
        return PreTrainedTokenizerFast.from_pretrained((RUNS if (RUNS / part).exists() else PARTS) / part)
    if part == "reader":
        module: Any = text.Reader()
        if (RUNS / "text.pt").exists():
            module.load_state_dict(averaged("text"))
        else:
            module.text_encoder = type(module.text_encoder).from_pretrained(PARTS / "text_encoder", dtype=torch.float32)
            module.connectors = type(module.connectors).from_pretrained(PARTS / "connectors")
    else:
        kind: Any = type(video_vae.build() if part == "vae" else audio_vae.build())
        module = kind.from_pretrained((FROZEN if (FROZEN / part).exists() else PARTS) / part)
    return torch.nn.Module.float(module).eval().requires_grad_(requires_grad=False)


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Video latents ``[B, C, F, h, w]`` with a spread of 1."""
    mean, std = video_statistics(vae, latents.device)
    return (latents - mean) / std


if __name__ == "__main__":
    freeze(sys.argv[1])
