"""Images and sounds as normalised latents."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ltx2.geometry import TEMPORAL_RATIO, Grid, round_up
from ltx2.media.audio import Waveform, change_rate
from ltx2.media.images import h264_round_trip
from ltx2.model.components import Components, audio_statistics, dtype_of, video_statistics
from ltx2.model.conditioning import pack_audio
from ltx2.model.decode import tiling
from ltx2.model.mel import is_usual, log_mel, resample

FALLBACK_RATE = 48_000
"""What a sound at an unusual rate is brought to first."""


def preprocess_image(image: NDArray[np.uint8], width: int, height: int, crf: int) -> Tensor:
    """An image as the model was trained to see one: once through H.264, filling the picture.

    The smaller side is scaled to fit (bilinear, without antialias), the surplus cut around the centre.

    Args:
        image: ``[h, w, 3]`` RGB.
        width, height: the size of the grid, in pixels.
        crf: x264 quality of the round trip; 0 leaves it out.

    Returns:
        ``[3, 1, height, width]`` float32, -1 … 1.
    """
    source = torch.from_numpy(h264_round_trip(image, crf))
    scale = max(height / source.shape[0], width / source.shape[1])
    above, below, down = _neighbours(source.shape[0], scale, height)
    before, after, right = _neighbours(source.shape[1], scale, width)
    down, right = down[:, None, None], right[None, :, None]
    # each pixel between its four neighbours, taken from the bytes: a thin strip scaled whole would fill gigabytes
    upper = source[above[:, None], before] * (1 - right) + source[above[:, None], after] * right
    lower = source[below[:, None], before] * (1 - right) + source[below[:, None], after] * right
    filled = upper * (1 - down) + lower * down
    return filled.permute(2, 0, 1)[:, None] / 127.5 - 1


def _neighbours(length: int, scale: float, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where bilinear scaling finds the middle ``wanted`` pixels of a side of ``length``.

    The definition is that of ``torch.nn.functional.interpolate`` with ``align_corners=False``.

    Returns:
        For each pixel the index before it, the index after it, and how far it lies towards the latter.
    """
    scaled = math.ceil(length * scale)
    first = (scaled - wanted) // 2
    at = ((torch.arange(first, first + wanted) + 0.5) * (length / scaled) - 0.5).clamp(min=0)
    before = at.floor().long()
    return before, (before + 1).clamp(max=length - 1), at - before


def encode_image(components: Components, image: NDArray[np.uint8], grid: Grid) -> Tensor:
    """The latents ``[1, 128, 1, h, w]`` (float32, normalised) of an image filling the grid."""
    vae = components.vae
    pixels = preprocess_image(image, grid.grid_width, grid.grid_height, components.recipe.image_crf)
    with components.using("vae"):
        latents = vae.encode(pixels[None].to(components.device, dtype_of(vae))).latent_dist.mode().float()
    mean, std = video_statistics(vae, components.device)
    normalised: Tensor = (latents - mean) / std
    return normalised


def preprocess_frames(frames: NDArray[np.uint8], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Frames as the VAE takes them, ``[3, n, height, width]``, -1 … 1.

    In float32 frame by frame, on the device: bfloat16 has no more steps than bytes have in the brighter half, and
    would be rounded twice.

    Args:
        frames: ``[n, height, width, 3]`` RGB.
        device, dtype: of the result.
    """
    count, height, width, _ = frames.shape
    pixels = torch.empty(3, count, height, width, dtype=dtype, device=device)
    for wanted, frame in zip(pixels.unbind(1), frames, strict=True):
        wanted.copy_(torch.from_numpy(frame).to(device).float().div_(127.5).sub_(1).permute(2, 0, 1))
    return pixels


def encode_video(components: Components, frames: NDArray[np.uint8], grid: Grid, scale: int = 1) -> Tensor:
    """The latents of frames of a clip, by themselves: the first of them alone, then eight and eight.

    What the grid has beyond the picture, and eights that are not full, are filled with the outermost pixels and the
    last frame. As in the official code, frames of a video go through no H.264 again.

    Args:
        components: with the VAE.
        frames: ``[n, height, width, 3]`` RGB, of the size that is asked for.
        grid: that they are put into.
        scale: how many times smaller that is than the picture, in the first of two stages.

    Returns:
        ``[1, 128, F, h, w]`` float32, normalised.
    """
    vae = components.vae
    pixels = preprocess_frames(frames, components.device, dtype_of(vae))
    wide, high = scale * grid.grid_width - pixels.shape[3], scale * grid.grid_height - pixels.shape[2]
    late = round_up(len(frames) - 1, TEMPORAL_RATIO) + 1 - len(frames)
    edges = [wide // 2, wide - wide // 2, high // 2, high - high // 2, 0, late]
    pixels = pad(pixels[None], edges, mode="replicate")
    if scale > 1:
        shape = (pixels.shape[2], grid.grid_height, grid.grid_width)
        pixels = interpolate(pixels, size=shape, mode="area")
    with components.using("vae"), tiling(vae, enabled=components.is_tiled(grid)):
        latents = vae.encode(pixels).latent_dist.mode().float()
    mean, std = video_statistics(vae, components.device)
    normalised: Tensor = (latents - mean) / std
    return normalised


def encode_sound(components: Components, sound: Waveform, grid: Grid) -> Tensor:
    """The audio tokens ``[1, T, 128]`` (float32, normalised) of a sound as long as the grid."""
    vae = components.audio_vae
    if not is_usual(sound.sample_rate):
        sound = change_rate(sound, FALLBACK_RATE)
    samples = torch.from_numpy(sound.samples).to(components.device)
    stereo = samples.expand(2, -1) if samples.shape[0] == 1 else samples
    mel = log_mel(resample(stereo, sound.sample_rate))
    with components.using("audio_vae"):
        latents = vae.encode(mel[None].to(dtype_of(vae))).latent_dist.mode().float()
    # the mel frames cover a little more than the clip: what is beyond its last token is cut
    tokens = pack_audio(latents)[:, : grid.audio_latent_frames]
    mean, std = audio_statistics(vae, components.device)
    normalised: Tensor = (tokens - mean) / std
    return normalised


def dithered(sound: Waveform, db: float, seed: int) -> Waveform:
    """A sound with white noise over it, of its own in each channel: a model follows very clean speech better so.

    Args:
        sound: as it is; what goes into the file stays without.
        db: level of the noise, its root mean square in decibels below full scale.
        seed: of the noise alone, so that all other noise of a clip is as it would be.
    """
    noise = torch.randn(sound.samples.shape, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (db / 20)
    return Waveform(sound.samples + noise.numpy(), sound.sample_rate)
