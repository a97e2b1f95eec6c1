"""From the first of two stages to the second: latents of twice the width and height."""

from torch import Tensor

from ltx2.model.components import Components, dtype_of, video_statistics


def upsample(components: Components, latents: Tensor) -> Tensor:
    """Enlarge latents by the checkpoint's latent upsampler.

    Args:
        components: with an upsampler.
        latents: ``[1, 128, F, h, w]`` float32, normalised.

    Returns:
        ``[1, 128, F, 2h, 2w]`` float32, normalised.
    """
    mean, std = video_statistics(components.vae, latents.device)
    with components.using("upsampler"):
        enlarged = components.upsampler((latents * std + mean).to(dtype_of(components.upsampler)))
    normalised: Tensor = (enlarged.float() - mean) / std
    return normalised
