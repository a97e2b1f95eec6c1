"""The transformer and the connectors, by LTX-2's flow matching with a noise level for each token.

Whatever a request can give is drawn at training: first images, keyframes at any pixel frame with any strength, frames
and sounds that stay, sounds to follow strictly or by and large, prompts that are dropped, and nothing at all.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltx2.model.conditioning import pack_video
from ltx2.model.denoiser import TIMESTEP_SCALE, gate_timestep
from training import captions, frozen, latents, text
from training.latents import Shelf
from training.loop import Run

STEPS = 4800
TOKENS = 2900
"""Of all clips of a step, about."""
LAYERS = 5
KEYFRAMES: Final = (0, 0, 0, 1, 1, 2)
"""How many images are appended in a step: one of these."""
GRAIN = 0.05
"""Noise on what is given, since real images come through H.264."""


def build() -> LTX2VideoTransformer3DModel:
    """Untrained."""
    return LTX2VideoTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=48,
        cross_attention_dim=192,
        audio_num_attention_heads=4,
        audio_attention_head_dim=24,
        audio_cross_attention_dim=96,
        num_layers=LAYERS,
        caption_channels=text.WIDTH,
        rope_type="split",
        perturbed_attn=True,
    )


@dataclass
class Batch:
    """Both streams of some clips: clean tokens, masks, and how noisy each clip's streams are."""

    video: Tensor
    audio: Tensor
    video_mask: Tensor
    audio_mask: Tensor
    video_noise: Tensor
    audio_noise: Tensor
    positions: Tensor
    audio_positions: Tensor
    prompts: list[str]


class Painter(nn.Module):
    """What is trained: connectors and transformer."""

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self.connectors = text.connectors()
        self.connectors.load_state_dict(reader.connectors.state_dict())
        self.transformer = build()

    def forward(
        self,
        batch: Batch,
        contexts: tuple[Tensor, Tensor],
        video: Tensor,
        audio: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Velocities of both streams, with the conditioning of :class:`ltx2.model.denoiser.Denoiser`."""
        transformer: Any = self.transformer
        video_sigma, audio_sigma = sigma * batch.video_noise, sigma * batch.audio_noise
        with ExitStack() as hooks:
            hooks.enter_context(gate_timestep(transformer.av_cross_attn_video_a2v_gate, audio_sigma))
            hooks.enter_context(gate_timestep(transformer.av_cross_attn_audio_v2a_gate, video_sigma))
            seen, heard = transformer(
                hidden_states=video,
                audio_hidden_states=audio,
                encoder_hidden_states=contexts[0],
                audio_encoder_hidden_states=contexts[1],
                timestep=batch.video_mask[..., 0] * sigma[:, None] * TIMESTEP_SCALE,
                audio_timestep=batch.audio_mask[..., 0] * sigma[:, None] * TIMESTEP_SCALE,
                sigma=video_sigma * TIMESTEP_SCALE,
                audio_sigma=audio_sigma * TIMESTEP_SCALE,
                video_coords=batch.positions,
                audio_coords=batch.audio_positions,
                return_dict=False,
            )
        return seen.float(), heard.float()


class Library:
    """All clips, and prompts as connectors take them."""

    def __init__(self, transformer: Any) -> None:
        self.shelves = latents.shelves()
        self.reader, self.words = frozen.load("reader"), frozen.load("tokenizer")
        self._rope, self._audio_rope = transformer.rope, transformer.audio_rope

    def draw(self, rng: np.random.Generator, dropped: float = 0.12) -> Batch:
        """Some clips of one size, with something known of each; so many of their prompts are dropped."""
        weights = np.array([shelf.size.count * shelf.video[0].numel() ** 0.5 for shelf in self.shelves])
        shelf = self.shelves[int(rng.choice(len(self.shelves), p=weights / weights.sum()))]
        keyframes = int(rng.choice(KEYFRAMES))
        frames, height, width = shelf.video.shape[2:]
        count = max(2, TOKENS // ((frames + keyframes) * height * width))
        chosen = rng.integers(0, len(shelf.scenes), count)
        batch = self.whole(shelf, chosen, rng, dropped)
        for row in range(count):
            self._reveal(batch, row, height * width, frames, rng)
        for number in range(keyframes):
            self._append(batch, shelf, chosen, number, rng)
        return batch

    def contexts(self, connectors: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts as both streams see them. The text encoder stays as it is."""
        tokens = self.words(prompts, padding=True, max_length=text.TOKENS, truncation=True, return_tensors="pt")
        with torch.no_grad():
            layers, mask = self.reader.layers(tokens)
        video, audio, _ = connectors(layers, mask, padding_side="left")
        return video, audio

    def whole(self, shelf: Shelf, chosen: Any, rng: np.random.Generator, dropped: float) -> Batch:
        """These clips of a shelf, with nothing known of them but prompts."""
        video, audio = pack_video(shelf.video[chosen].float()), shelf.audio[chosen].float()
        count, (frames, height, width) = len(chosen), shelf.video.shape[2:]
        positions = self._rope.prepare_video_coords(count, frames, height, width, "cpu", fps=shelf.size.fps)
        told = [
            captions.nothing(rng) if rng.random() < dropped else captions.caption(shelf.scenes[index], rng)
            for index in chosen
        ]
        return Batch(
            video,
            audio,
            torch.ones_like(video[..., :1]),
            torch.ones_like(audio[..., :1]),
            torch.ones(count),
            torch.ones(count),
            positions,
            self._audio_rope.prepare_audio_coords(count, audio.shape[1], "cpu"),
            [each.text for each in told],
        )

    def _reveal(self, batch: Batch, row: int, area: int, frames: int, rng: np.random.Generator) -> None:
        """Let a clip know its first image, some of its frames, its sound, or nothing."""
        if rng.random() < 0.35:
            batch.video_mask[row, :area] = 1 - _strength(rng)
        draw = rng.random()
        if draw < 0.08:
            batch.video_mask[row, : area * int(rng.integers(1, frames))] = 0
        elif draw < 0.12:
            batch.video_mask[row, area * int(rng.integers(1, frames)) :] = 0
        elif draw < 0.17:
            batch.video_mask[row], batch.video_noise[row] = 0, 0
            return
        draw, tokens = rng.random(), batch.audio.shape[1]
        if draw < 0.22:
            batch.audio_mask[row], batch.audio_noise[row] = 0, 0
        elif draw < 0.3:
            left = 1 - float(rng.uniform(0.2, 0.9))
            batch.audio_mask[row], batch.audio_noise[row] = left, left
        elif draw < 0.36:
            batch.audio_mask[row, : int(rng.integers(1, tokens))] = 0
        elif draw < 0.39:
            batch.audio_mask[row, int(rng.integers(1, tokens)) :] = 0

    def _append(self, batch: Batch, shelf: Shelf, chosen: Any, number: int, rng: np.random.Generator) -> None:
        """Give every clip an image at a pixel frame: the last one most of all."""
        area = shelf.video.shape[3] * shelf.video.shape[4]
        which = (
            np.where(rng.random(len(chosen)) < 0.6, 0, 1 + number) if number == 0 else np.full(len(chosen), 1 + number)
        )
        images = shelf.images[chosen, which].float()
        at = shelf.at[chosen, which] / shelf.size.fps
        positions = batch.positions[:, :, :area].clone()
        positions[:, 0, :, 0] = at[:, None]
        positions[:, 0, :, 1] = at[:, None] + 1 / shelf.size.fps
        mask = torch.tensor([1 - _strength(rng) for _ in chosen]).view(-1, 1, 1).expand(-1, area, 1)
        mask = mask * (batch.video_noise > 0).view(-1, 1, 1)
        batch.video = torch.cat([batch.video, pack_video(images)], 1)
        batch.video_mask = torch.cat([batch.video_mask, mask.float()], 1)
        batch.positions = torch.cat([batch.positions, positions], 2)


def _strength(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.75 else float(rng.uniform(0.2, 1))


def levels(rng: np.random.Generator, count: int) -> Tensor:
    """Noise levels: mostly high ones, where what a clip shows is settled."""
    drawn = torch.from_numpy(rng.normal(1.3, 1.4, count)).float().sigmoid()
    even = torch.from_numpy(rng.uniform(0.005, 1, count)).float()
    drawn = torch.where(torch.from_numpy(rng.random(count) < 0.15), even, drawn)
    return torch.where(torch.from_numpy(rng.random(count) < 0.05), torch.ones(()), drawn)


def noised(clean: Tensor, mask: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens at their own noise levels, and their velocities. What is given has some grain."""
    noise = torch.randn_like(clean)
    at = mask * sigma.view(-1, 1, 1)
    given = clean + GRAIN * (1 - mask) * torch.randn_like(clean)
    return (1 - at) * given + at * noise, noise - clean


def error(velocity: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean square over what is to be generated."""
    weight = (mask > 0).float()
    return ((velocity - wanted).square() * weight).sum() / (weight.sum() * velocity.shape[-1]).clamp_min(1)


def run(minutes: float, steps: int = STEPS) -> Run:
    """Train them."""
    torch.manual_seed(2)
    painter = Painter(frozen.load("reader"))
    library = Library(painter.transformer)

    def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = library.draw(rng)
        sigma = levels(rng, len(batch.prompts))
        video, seen = noised(batch.video, batch.video_mask, sigma)
        audio, heard = noised(batch.audio, batch.audio_mask, sigma)
        # for so few tokens torch's flash attention takes a third of a step on a CPU, most of it in the backward
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            contexts = library.contexts(painter.connectors, batch.prompts)
            velocities = painter(batch, contexts, video, audio, sigma)
        for_video = error(velocities[0], seen, batch.video_mask)
        for_audio = error(velocities[1], heard, batch.audio_mask)
        return for_video + 0.5 * for_audio, {"video": float(for_video.detach()), "audio": float(for_audio.detach())}

    return Run("transformer", painter, loss, steps, rate=1e-3, fall=0.4, minutes=minutes)
