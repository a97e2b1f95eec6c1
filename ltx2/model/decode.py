"""Tokens as pictures and sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ltx2.geometry import SPATIAL_RATIO, TEMPORAL_RATIO, Grid
from ltx2.media.audio import Waveform
from ltx2.model.components import Components, audio_statistics, dtype_of, video_statistics
from ltx2.model.conditioning import unpack_audio, unpack_video


def decode_video(components: Components, tokens: Tensor, grid: Grid, noise: torch.Generator) -> Tensor:
    """The asked pictures ``[1, 3, num_frames, height, width]``, -1 … 1, in the decoder's dtype on the model's device.

    Args:
        components: its diffusion decoder is used where it has one, else the VAE's own.
        tokens: ``[1, T, 128]``, normalised.
        grid: what the tokens lie on.
        noise: where the seed of the diffusion decoder's noise is drawn from.
    """
    mean, std = video_statistics(components.vae, tokens.device)
    latents = unpack_video(tokens, grid) * std + mean
    if components.diffusion_decoder is None:
        with components.using("vae"):
            vae = components.vae
            with tiling(vae, enabled=components.is_tiled(grid)):
                pictures: Tensor = vae.decode(latents.to(dtype_of(vae)), return_dict=False)[0]
    else:
        with components.using("diffusion_decoder"):
            pictures = _denoise_pictures(components.diffusion_decoder, latents, noise, components.is_tiled(grid))
    rows = slice(grid.top, grid.top + grid.height)
    columns = slice(grid.left, grid.left + grid.width)
    return pictures[:, :, : grid.num_frames, rows, columns]


def _denoise_pictures(decoder: Any, latents: Tensor, noise: torch.Generator, tiled: bool) -> Tensor:
    """Pictures of a diffusion decoder, whose windows of attention must not be larger than the clip.

    Its noise is as large as the clip, some hundred million numbers: it is drawn on the device, from a seed that is
    drawn as all other noise. The grain of the pictures is thus that of the device, and that of the tiles.
    """
    seed = int(torch.randint(2**62, (1,), generator=noise))
    grain = torch.Generator(latents.device).manual_seed(seed)
    least = smallest_latents(decoder.config)
    missing = [max(0, wanted - size) for wanted, size in zip(least, latents.shape[2:], strict=True)]
    padded = pad(latents, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")
    with tiling(decoder, enabled=tiled):
        pictures: Tensor = decoder.decode(padded.to(dtype_of(decoder)), generator=grain, return_dict=False)[0]
    frames, height, width = latents.shape[2:]
    return pictures[:, :, : (frames - 1) * TEMPORAL_RATIO + 1, : height * SPATIAL_RATIO, : width * SPATIAL_RATIO]


def smallest_latents(config: Any) -> tuple[int, int, int]:
    """The smallest latents (frames, rows, columns) that a diffusion decoder's windows of attention fit into."""
    scales = [(1, 1, 1)]
    for stride in config.decoder_upsample_strides:
        frames, rows, columns = (have * more for have, more in zip(scales[-1], stride, strict=True))
        scales.append((frames, rows, columns))
    kernels = [*config.decoder_stage_kernels[: len(scales) - 1], config.decoder_stage5_kernel]
    pairs = list(zip(kernels, scales, strict=True))
    return (
        # the first latent frame stands for one frame only, at whatever scale
        max(-(-(kernel[0] - 1) // scale[0]) + 1 for kernel, scale in pairs),
        max(-(-kernel[1] // scale[1]) for kernel, scale in pairs),
        max(-(-kernel[2] // scale[2]) for kernel, scale in pairs),
    )


@contextmanager
def tiling(decoder: Any, *, enabled: bool) -> Iterator[None]:
    """Decode in overlapping tiles: slower and not exact at their borders, in a fraction of the memory."""
    if not enabled:
        yield
        return
    decoder.enable_tiling()
    try:
        yield
    finally:
        decoder.disable_tiling()


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
    mean, std = audio_statistics(vae, tokens.device)
    latents = unpack_audio(tokens * std + mean, vae.config.latent_channels)
    with components.using("audio_vae"):
        mel = vae.decode(latents.to(dtype_of(vae)), return_dict=False)[0]
    with components.using("vocoder"):
        # bfloat16 is audible in the vocoder
        samples = vocoder(mel.to(dtype_of(vocoder)))[0].float()
    return Waveform(samples.cpu().numpy(), vocoder.config.output_sampling_rate)
