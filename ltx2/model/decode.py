"""Tokens as pictures and sound."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltx2.geometry import Grid
from ltx2.media.audio import Waveform
from ltx2.model.components import Components, dtype_of, video_statistics
from ltx2.model.conditioning import unpack_audio, unpack_video


def decode_video(components: Components, tokens: Tensor, grid: Grid) -> Tensor:
    """The asked pictures ``[1, 3, num_frames, height, width]``, -1 … 1, in the VAE's dtype on its device."""
    vae = components.vae
    mean, std = video_statistics(vae)
    latents = unpack_video(tokens, grid) * std + mean
    pictures: Tensor = vae.decode(latents.to(dtype_of(vae)), return_dict=False)[0]
    rows = slice(grid.top, grid.top + grid.height)
    columns = slice(grid.left, grid.left + grid.width)
    return pictures[:, :, : grid.num_frames, rows, columns]


def to_uint8_chunks(video: Tensor, frames_per_chunk: int = 8) -> Iterator[NDArray[np.uint8]]:
    """Pictures as bytes, a few frames at a time, so that no second copy of the clip is ever made.

    Rounded in float32 on the clip's device: in bfloat16 more than a quarter of the bytes would be off by one.

    Args:
        video: ``[1, 3, F, H, W]``, -1 … 1.

    Yields:
        ``[n, H, W, 3]`` RGB in host memory.
    """
    for first in range(0, video.shape[2], frames_per_chunk):
        frames = video[0, :, first : first + frames_per_chunk].unbind(1)
        chunk = torch.empty(len(frames), *video.shape[3:], 3, dtype=torch.uint8, device=video.device)
        # frame by frame, so that the float32 intermediates stay small enough for the caches
        for pixels, frame in zip(chunk, frames, strict=True):
            pixels.copy_(torch.mul(frame.float(), 127.5).add_(127.5).round_().clamp_(0, 255).permute(1, 2, 0))
        yield chunk.cpu().numpy()


def decode_sound(components: Components, tokens: Tensor) -> Waveform:
    """The sound of a clip, at the vocoder's rate: a little shorter than its pictures."""
    vae, vocoder = components.audio_vae, components.vocoder
    tokens = tokens * vae.latents_std.float() + vae.latents_mean.float()
    latents = unpack_audio(tokens, vae.config.latent_channels)
    mel = vae.decode(latents.to(dtype_of(vae)), return_dict=False)[0]
    # bfloat16 is audible in the vocoder
    samples = vocoder(mel.to(dtype_of(vocoder)))[0].float()
    return Waveform(samples.cpu().numpy(), vocoder.config.output_sampling_rate)
