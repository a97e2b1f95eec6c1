"""What is known before the first step: the grid, images and sounds, as tokens, masks and coordinates.

A *stream* is one modality's row of tokens. A conditioning is an object with one method that takes a
stream and gives it back with what it knows. A mask of 0 keeps a token as given, 1 generates it.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx2.geometry import TEMPORAL_RATIO, Grid


@dataclass(frozen=True)
class Stream:
    """The state of one modality. All tensors are float32, on the model's device."""

    tokens: Tensor
    """``[1, T, 128]``: what is being denoised; before :func:`add_noise` a first stage's result, or zeros."""
    clean: Tensor
    """``[1, T, 128]``: encoded images or sound, where the mask is below 1."""
    mask: Tensor
    """``[1, T, 1]``: 1 = generate, 0 = keep."""
    positions: Tensor
    """Start and end of each token: ``[1, 3, T, 2]`` for video, in seconds, pixel rows and pixel columns;
    ``[1, 1, T, 2]`` for audio, in seconds."""
    masked: bool = False
    """Whether any mask differs from 1. Known here so that no step has to ask the device."""
    noise: float = 1.0
    """The share of the schedule's noise that the stream as a whole has; 0 when it is frozen."""
    keyframes_mask: Tensor | None = None
    """``[1, T, 1]``: 1 on tokens of the clip that show a single pixel frame. Video only."""

    def sigma(self, sigma: float) -> Tensor:
        """The noise level of the stream as a whole, ``[1]``."""
        return torch.full((1,), sigma * self.noise, device=self.tokens.device)

    def timesteps(self, sigma: float) -> Tensor:
        """The noise level of each token, ``[1, T]``, or ``[1, 1]`` when all are alike."""
        if not self.masked:
            return torch.full((1, 1), sigma, device=self.tokens.device)
        return self.mask[..., 0] * sigma

    def keep(self, tokens: Tensor) -> Tensor:
        """Put what is given back among predicted tokens, as far as the mask says."""
        return tokens * self.mask + self.clean * (1 - self.mask) if self.masked else tokens


class Conditioning(Protocol):
    """Something given about a stream."""

    def apply(self, stream: Stream) -> Stream: ...


def video_stream(transformer: Any, grid: Grid, device: torch.device) -> Stream:
    """The video tokens of a grid, nothing given yet. Order: frames, rows, columns."""
    clean = torch.zeros(1, grid.video_tokens, transformer.config.in_channels, device=device)
    positions = transformer.rope.prepare_video_coords(
        1, grid.latent_frames, grid.latent_height, grid.latent_width, device, fps=float(grid.fps)
    )
    # the first latent frame encodes a single pixel frame, every later one eight
    marks = torch.zeros(1, grid.video_tokens, 1, device=device)
    marks[:, : grid.latent_height * grid.latent_width] = 1
    return Stream(clean, clean, torch.ones_like(clean[..., :1]), positions, keyframes_mask=marks)


def audio_stream(transformer: Any, grid: Grid, device: torch.device) -> Stream:
    """The audio tokens beside a grid, nothing given yet."""
    clean = torch.zeros(1, grid.audio_latent_frames, transformer.config.audio_in_channels, device=device)
    positions = transformer.audio_rope.prepare_audio_coords(1, grid.audio_latent_frames, device)
    return Stream(clean, clean, torch.ones_like(clean[..., :1]), positions)


@dataclass(frozen=True)
class InitialLatents:
    """A first stage's result, to be refined from the noise level the schedule starts at."""

    tokens: Tensor
    """``[1, T, 128]``, normalised."""

    def apply(self, stream: Stream) -> Stream:
        rest = stream.tokens[:, self.tokens.shape[1] :]
        return replace(stream, tokens=torch.cat([self.tokens, rest], dim=1))


@dataclass(frozen=True)
class ImageConditioning:
    """An image at one pixel frame of the clip.

    On frame 0 its tokens take the place of the first latent frame. On any other frame they are appended
    behind the clip's, with that frame's time: the transformer sees them, the decoder does not.
    """

    latents: Tensor
    """``[1, 128, 1, h, w]``, normalised, encoded at the size of the grid."""
    frame: int
    strength: float
    """1 keeps the image as it is, 0 ignores it."""
    fps: float

    def apply(self, stream: Stream) -> Stream:
        tokens = pack_video(self.latents)
        count = tokens.shape[1]
        mask = torch.full_like(tokens[..., :1], 1 - self.strength)
        if self.frame == 0:
            return replace(
                stream,
                clean=torch.cat([tokens, stream.clean[:, count:]], dim=1),
                mask=torch.cat([mask, stream.mask[:, count:]], dim=1),
                masked=True,
            )
        # rows and columns are those of any latent frame of the clip; the time is that of the pixel frame
        positions = stream.positions[:, :, :count].clone()
        positions[:, 0, :, 0] = self.frame / self.fps
        positions[:, 0, :, 1] = (self.frame + 1) / self.fps
        marks = stream.keyframes_mask
        return replace(
            stream,
            tokens=torch.cat([stream.tokens, torch.zeros_like(tokens)], dim=1),
            clean=torch.cat([stream.clean, tokens], dim=1),
            mask=torch.cat([stream.mask, mask], dim=1),
            positions=torch.cat([stream.positions, positions], dim=2),
            # an appended keyframe is not a frame of the clip, so it is not marked
            keyframes_mask=None if marks is None else torch.cat([marks, torch.zeros_like(mask)], dim=1),
            masked=True,
        )


@dataclass(frozen=True)
class SoundConditioning:
    """A sound the clip follows: frozen at strength 1, else noised by what is missing to 1.

    The official code knows the frozen case only; between 0 and 1 the definition is this project's and
    agrees with it at both ends.
    """

    tokens: Tensor
    """``[1, T, 128]``, normalised."""
    strength: float

    def apply(self, stream: Stream) -> Stream:
        return replace(
            stream,
            clean=self.tokens,
            mask=torch.full_like(stream.mask, 1 - self.strength),
            masked=True,
            noise=1 - self.strength,
        )


@dataclass(frozen=True)
class KnownPictures:
    """Pictures that are there already, as the model sees them: some of them stay, the others are made anew.

    Where they begin later than the stream, their first latent frame, which shows one picture alone, is appended like
    a keyframe's, since in its place the stream has one of eight.
    """

    latents: Tensor
    """``[1, 128, F, h, w]``, normalised, of pictures encoded by themselves."""
    offset: int
    """The stream's pixel frame that their first one is: 0 or a multiple of 8."""
    kept: tuple[bool, ...]
    """For each latent frame of the stream, whether it stays as it is in ``latents``."""
    fps: float

    def apply(self, stream: Stream) -> Stream:
        area = self.latents.shape[3] * self.latents.shape[4]
        first = self.offset // TEMPORAL_RATIO
        clean, mask = stream.clean.clone(), stream.mask.clone()
        tokens = pack_video(self.latents)
        for frame, is_kept in enumerate(self.kept):
            if is_kept:
                here, there = frame * area, (frame - first) * area
                clean[:, here : here + area] = tokens[:, there : there + area]
                mask[:, here : here + area] = 0
        known = replace(stream, clean=clean, mask=mask, masked=True, noise=0.0 if all(self.kept) else stream.noise)
        if not self.offset:
            return known
        return ImageConditioning(self.latents[:, :, :1], self.offset, 1.0, self.fps).apply(known)


@dataclass(frozen=True)
class KnownSound:
    """Sound that is there already: some of its tokens stay, the others are made anew."""

    tokens: Tensor
    """``[1, T, 128]``, normalised, of a sound encoded by itself."""
    first: int
    """The stream's token that their first one is. That one is not used where it is not the stream's first: it stands
    for a quarter of the others' time."""
    kept: tuple[bool, ...]
    """For each token of the stream, whether it stays as it is in ``tokens``."""

    def apply(self, stream: Stream) -> Stream:
        clean, mask = stream.clean.clone(), stream.mask.clone()
        for token, is_kept in enumerate(self.kept):
            if is_kept:
                clean[:, token], mask[:, token] = self.tokens[:, token - self.first], 0
        return replace(stream, clean=clean, mask=mask, masked=True, noise=0.0 if all(self.kept) else stream.noise)


def draw_noise(generator: torch.Generator, video: Stream, audio: Stream) -> tuple[Tensor, Tensor]:
    """Standard normal noise for both streams, ``[1, T, 128]``: video first, then audio.

    Drawn on the CPU in float32, so that a seed means the same on every device.
    """
    noise = [torch.randn(stream.clean.shape, generator=generator) for stream in (video, audio)]
    return noise[0].to(video.clean.device), noise[1].to(audio.clean.device)


def add_noise(stream: Stream, noise: Tensor, sigma: float) -> Stream:
    """Where denoising starts: at noise level ``sigma``, with what is given put in as far as the mask says."""
    return replace(stream, tokens=stream.keep(noise * sigma + stream.tokens * (1 - sigma)))


def pack_video(latents: Tensor) -> Tensor:
    """``[1, C, F, H, W]`` latents to ``[1, F·H·W, C]`` tokens."""
    return latents.flatten(2).transpose(1, 2)


def unpack_video(tokens: Tensor, grid: Grid) -> Tensor:
    """``[1, T, C]`` tokens to ``[1, C, F, H, W]`` latents; appended keyframes are dropped."""
    clip = tokens[:, : grid.video_tokens].transpose(1, 2)
    return clip.reshape(*clip.shape[:2], grid.latent_frames, grid.latent_height, grid.latent_width)


def pack_audio(latents: Tensor) -> Tensor:
    """``[1, C, T, M]`` latents to ``[1, T, C·M]`` tokens."""
    return latents.transpose(1, 2).flatten(2)


def unpack_audio(tokens: Tensor, channels: int) -> Tensor:
    """``[1, T, C·M]`` tokens to ``[1, C, T, M]`` latents."""
    return tokens.reshape(*tokens.shape[:2], channels, -1).transpose(1, 2)
