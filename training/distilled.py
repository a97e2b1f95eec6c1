"""The distilled form, as a LoRA: each step of the eight does what the guided model needs several for.

The teacher is the trained model with classifier-free guidance, walked from one of the distilled sigmas to the next in
small steps; the student takes the same way at once.
"""

from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ltx2.model.schedule import sigmas_for
from training import frozen, transformer
from training.branches import Branches
from training.loop import Run, averaged
from training.transformer import Batch, Library, Painter, noised

STEPS = 1500
RANK = 32
GUIDANCE: Final = 3.0
SUBSTEPS = 3
"""Of the teacher, for each of the student's."""
SIGMAS: Final = tuple(float(sigma) for sigma in sigmas_for("distilled", 8))


class Student(nn.Module):
    """Branches on a painter that stays as it is."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.branches = Branches(painter.transformer, RANK)


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train it."""
    torch.manual_seed(2)
    painter = Painter(frozen.load("reader"))
    painter.load_state_dict(averaged("transformer"))
    painter.eval().requires_grad_(requires_grad=False)
    library, student = Library(painter.transformer), Student(painter)

    def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = library.draw(rng, dropped=0.0)
        count = len(batch.prompts)
        index = int(rng.integers(len(SIGMAS) - 1))
        start, end = SIGMAS[index], SIGMAS[index + 1]
        sigma = torch.full((count,), start)
        video, _ = noised(batch.video, batch.video_mask, sigma)
        audio, _ = noised(batch.audio, batch.audio_mask, sigma)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            contexts = library.contexts(painter.connectors, batch.prompts)
            without = library.contexts(painter.connectors, [""] * count)
            wanted = _walk(painter, batch, contexts, without, (video, audio), start, end)
        with torch.autocast("cpu", torch.bfloat16), student.branches.worn():
            taken = painter(batch, contexts, video, audio, sigma)
        errors = []
        for velocity, there, clean, mask in zip(
            taken, wanted, (video, audio), (batch.video_mask, batch.audio_mask), strict=True
        ):
            errors.append(transformer.error(velocity, (there - clean) / (end - start), _evenly(mask)))
        return errors[0] + 0.5 * errors[1], {"video": float(errors[0].detach()), "audio": float(errors[1].detach())}

    return Run("distilled", student, loss, steps, rate=1e-3, minutes=minutes)


def _evenly(mask: Tensor) -> Tensor:
    """What is fully to be generated: tokens with a noise level of their own take other steps."""
    return (mask == 1).float()


def _walk(
    painter: Painter,
    batch: Batch,
    contexts: tuple[Tensor, Tensor],
    without: tuple[Tensor, Tensor],
    streams: tuple[Tensor, Tensor],
    start: float,
    end: float,
) -> tuple[Tensor, Tensor]:
    """Both streams at the noise level ``end``, guided."""
    levels = np.linspace(start, end, SUBSTEPS + 1)
    masks = (batch.video_mask, batch.audio_mask)
    now = list(streams)
    for level, following in pairwise(levels):
        sigma = torch.full((len(batch.prompts),), float(level))
        told, untold = (painter(batch, each, now[0], now[1], sigma) for each in (contexts, without))
        for stream, mask in enumerate(masks):
            velocity = told[stream] + (GUIDANCE - 1) * (told[stream] - untold[stream])
            now[stream] = now[stream] + velocity * mask * float(following - level)
    return now[0], now[1]


def file_weights() -> dict[str, Any]:
    """The branches so far, for :func:`training.branches.write`."""
    return {name.removeprefix("branches."): value for name, value in averaged("distilled").items()}
