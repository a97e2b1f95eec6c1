"""diffusers' transformer, called the way the official LTX-2 code calls its own.

diffusers' modules compute what the official ones do; the conditioning they are given differs in two
places, and both are set right here from outside, without touching the weights or the forward:

* The gates of the audio-video cross attention take the *other* modality's scalar sigma, while scale and
  shift take each token's own timestep. diffusers feeds both from one source.
* Spatio-temporal guidance perturbs the self-attention of one stream or of both. diffusers always
  perturbs both.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ltx2.model.conditioning import Stream

TIMESTEP_SCALE = 1000


@dataclass(frozen=True)
class Contexts:
    """One prompt as each stream sees it, after the connectors."""

    video: Tensor
    """``[1, text tokens, video text width]``"""
    audio: Tensor
    """``[1, text tokens, audio text width]``"""

    @property
    def nbytes(self) -> int:
        return self.video.nbytes + self.audio.nbytes


@dataclass(frozen=True)
class Perturbation:
    """Which self-attentions a pass switches off: of which streams, in which blocks."""

    blocks: tuple[int, ...]
    video: bool
    audio: bool


class Denoiser:
    """Predicts clean tokens for both streams.

    Args:
        transformer: an ``LTX2VideoTransformer3DModel`` built with ``perturbed_attn=True``; without it
            spatio-temporal guidance would silently do nothing.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        config = transformer.config
        if not config.perturbed_attn:
            raise ValueError("the transformer must be built with perturbed_attn=True")
        self._gate_scale = config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier
        self._marks_keyframes = config.use_keyframes_abs_pos_embedding

    def __call__(
        self,
        video: Stream,
        audio: Stream,
        sigma: float,
        contexts: Contexts,
        *,
        perturbation: Perturbation | None = None,
        isolated: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One pass of the transformer.

        Args:
            video, audio: both streams at noise level ``sigma``; tokens ``[1, T, 128]`` float32.
            sigma: the noise level, 0 … 1.
            contexts: the prompt of this pass.
            perturbation: the self-attentions to switch off.
            isolated: make sound and picture deaf to each other.

        Returns:
            The predicted clean tokens of both streams, float32, shaped as their tokens.
        """
        transformer = self.transformer
        dtype = contexts.video.dtype
        video_sigma, audio_sigma = video.sigma(sigma), audio.sigma(sigma)
        with ExitStack() as hooks:
            hooks.enter_context(gate_timestep(transformer.av_cross_attn_video_a2v_gate, audio_sigma * self._gate_scale))
            hooks.enter_context(gate_timestep(transformer.av_cross_attn_audio_v2a_gate, video_sigma * self._gate_scale))
            if perturbation is not None:
                hooks.enter_context(_keep_unperturbed(transformer, perturbation))
            velocity = transformer(
                hidden_states=video.tokens.to(dtype),
                audio_hidden_states=audio.tokens.to(dtype),
                encoder_hidden_states=contexts.video,
                audio_encoder_hidden_states=contexts.audio,
                timestep=video.timesteps(sigma) * TIMESTEP_SCALE,
                audio_timestep=audio.timesteps(sigma) * TIMESTEP_SCALE,
                sigma=video_sigma * TIMESTEP_SCALE,
                audio_sigma=audio_sigma * TIMESTEP_SCALE,
                video_coords=video.positions,
                audio_coords=audio.positions,
                isolate_modalities=isolated,
                # without a mask the whole sample is perturbed, and no block has to ask the device whether it is
                spatio_temporal_guidance_blocks=list(perturbation.blocks) if perturbation else None,
                use_cross_timestep=False,
                video_keyframes_mask=video.keyframes_mask if self._marks_keyframes else None,
                return_dict=False,
            )
        return (
            video.tokens - velocity[0].float() * video.mask * sigma,
            audio.tokens - velocity[1].float() * audio.mask * sigma,
        )


@contextmanager
def gate_timestep(gate: nn.Module, sigma: Tensor) -> Iterator[None]:
    """Make a gate see this sigma, ``[1]`` or one for each sample, instead of the timesteps it is given."""

    def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (sigma * TIMESTEP_SCALE, *args[1:])

    handle = gate.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _keep_unperturbed(transformer: Any, perturbation: Perturbation) -> Iterator[None]:
    """Shield the self-attention of the stream that is not to be perturbed."""

    def shield(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"perturbation_mask": None, "all_perturbed": False}

    handles = []
    for index in perturbation.blocks:
        block = transformer.transformer_blocks[index]
        shielded = ([] if perturbation.video else [block.attn1]) + ([] if perturbation.audio else [block.audio_attn1])
        handles += [module.register_forward_pre_hook(shield, with_kwargs=True) for module in shielded]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
