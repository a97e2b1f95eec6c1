"""Images and sounds as normalised latents."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltx2.geometry import Grid
from ltx2.media.audio import Waveform
from ltx2.media.images import h264_round_trip
from ltx2.model.components import Components, dtype_of
from ltx2.model.conditioning import pack_audio
from ltx2.model.mel import log_mel, resample


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
    pixels = torch.from_numpy(h264_round_trip(image, crf)).permute(2, 0, 1)[None].float()
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    size = (math.ceil(pixels.shape[2] * scale), math.ceil(pixels.shape[3] * scale))
    filled = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = filled[0, :, top : top + height, left : left + width]
    return cut[:, None] / 127.5 - 1


def encode_image(components: Components, image: NDArray[np.uint8], grid: Grid) -> Tensor:
    """The latents ``[1, 128, 1, h, w]`` (float32, normalised) of an image filling the grid."""
    vae = components.vae
    pixels = preprocess_image(image, grid.grid_width, grid.grid_height, components.recipe.image_crf)
    latents = vae.encode(pixels[None].to(components.device, dtype_of(vae))).latent_dist.mode().float()
    mean, std = vae.latents_mean.float(), vae.latents_std.float()
    normalised: Tensor = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    return normalised * float(vae.config.scaling_factor)


def encode_sound(components: Components, sound: Waveform, grid: Grid) -> Tensor:
    """The audio tokens ``[1, T, 128]`` (float32, normalised) of a sound as long as the grid."""
    vae = components.audio_vae
    samples = torch.from_numpy(sound.samples).to(components.device)
    stereo = samples.expand(2, -1) if samples.shape[0] == 1 else samples
    mel = log_mel(resample(stereo, sound.sample_rate))
    latents = vae.encode(mel[None].to(dtype_of(vae))).latent_dist.mode().float()
    # the mel frames cover a little more than the clip: what is beyond its last token is cut
    tokens = pack_audio(latents)[:, : grid.audio_latent_frames]
    mean, std = vae.latents_mean.float(), vae.latents_std.float()
    normalised: Tensor = (tokens - mean) / std
    return normalised
