"""The configuration inside an original checkpoint, as the arguments of diffusers' classes: VAEs and vocoder.

The rules are those of :mod:`ltx2.model.configs`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltx2.model.configs import Arguments
from ltx2.model.section import Section

CONVOLUTIONAL = "CausalVideoAutoencoder"
DIFFUSION = "CausalDiffusionVAE"
"""What a checkpoint calls a video VAE with either kind of decoder."""

STRIDES: Mapping[str, tuple[str, int, int]] = {
    "space": ("spatial", 1, 2),
    "time": ("temporal", 2, 1),
    "all": ("spatiotemporal", 2, 2),
}
"""What a step between levels does: diffusers' name for it, how it scales frames, how it scales pixels."""


@dataclass(frozen=True)
class Levels:
    """The blocks of one half of a video VAE, from the pixels to the latents."""

    layers: tuple[int, ...]
    """Residual blocks on each level."""
    steps: tuple[str, ...]
    """What lies between the levels: a key of ``STRIDES``."""
    multipliers: tuple[int, ...]
    """How each step multiplies the channels."""
    residual: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Levels and steps together."""
        return len(self.layers) + len(self.steps)

    def channels(self, base: int) -> tuple[int, ...]:
        """Channels above each step, on its latent side."""
        return tuple(base * math.prod(self.multipliers[: i + 1]) for i in range(len(self.multipliers)))

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(STRIDES[step][0] for step in self.steps)

    @property
    def ratios(self) -> tuple[int, int]:
        """Frames and pixels a latent frame and pixel stand for, patches apart."""
        return (
            math.prod(STRIDES[step][1] for step in self.steps),
            math.prod(STRIDES[step][2] for step in self.steps),
        )


def levels(own: Section, key: str, suffix: str = "") -> Levels:
    """Take apart a list of blocks: levels of residual blocks, with a step between every two.

    Args:
        own: the section with the list.
        key: the list's.
        suffix: what the names of the steps end in.

    Raises:
        NotReady: it is another kind of list.
    """
    blocks: Sequence[tuple[str, Mapping[str, Any]]] = own[key]
    steps = {f"compress_{step}{suffix}": step for step in STRIDES}
    for index, (name, options) in enumerate(blocks):
        known = {"multiplier", "residual"} if index % 2 else {"num_layers", "inject_noise"}
        is_known = name in steps if index % 2 else name == "res_x"
        if not is_known or options.keys() - known or options.get("inject_noise") or len(blocks) % 2 == 0:
            raise own.unsupported(key, [name, dict(options)])
    return Levels(
        layers=tuple(options["num_layers"] for _, options in blocks[::2]),
        steps=tuple(steps[name] for name, _ in blocks[1::2]),
        multipliers=tuple(options.get("multiplier", 1) for _, options in blocks[1::2]),
        residual=tuple(options.get("residual", False) for _, options in blocks[1::2]),
    )


def video_encoder(config: Section) -> Arguments:
    """The encoder's half of the arguments of ``AutoencoderKLLTX2Video``.

    Args:
        config: of a convolutional VAE, or of an encoder beside a diffusion decoder.

    Raises:
        NotReady: something is missing or not supported.
    """
    own = config.section("vae")
    if own.get("_class_name", CONVOLUTIONAL) == DIFFUSION:
        own, key, latent_channels = own.section("encoder"), "blocks", own["latent_channels"]
        own.only(out_channels=latent_channels)
    else:
        own.only(_class_name=CONVOLUTIONAL)
        key, latent_channels = "encoder_blocks", own["latent_channels"]
    # diffusers' encoder starts with as many channels as it ends in
    own.only(encoder_base_channels=latent_channels, dims=3, norm_layer="pixel_norm", latent_log_var="uniform")
    half = levels(own, key, "_res")
    frames, pixels = half.ratios
    steps = len(half.steps)
    return {
        "in_channels": own["in_channels"],
        "latent_channels": latent_channels,
        "block_out_channels": half.channels(latent_channels),
        "down_block_types": ("LTX2VideoDownBlock3D",) * steps,
        "layers_per_block": half.layers,
        "spatio_temporal_scaling": (True,) * steps,
        "downsample_type": half.types,
        "patch_size": own["patch_size"],
        "encoder_spatial_padding_mode": own.get("spatial_padding_mode", "zeros"),
        # diffusers would infer others from a decoder of fewer levels
        "spatial_compression_ratio": own["patch_size"] * pixels,
        "temporal_compression_ratio": frames,
    }


def video_decoder(config: Section) -> Arguments:
    """The convolutional decoder's half of the arguments of ``AutoencoderKLLTX2Video``.

    Raises:
        NotReady: something is missing or not supported.
    """
    own = config.section("vae")
    own.only(normalize_latent_channels=False, timestep_conditioning=False, use_quant_conv=False)
    half = levels(own, "decoder_blocks")
    steps = len(half.steps)
    return {
        "out_channels": own["out_channels"],
        "decoder_block_out_channels": half.channels(own["decoder_base_channels"]),
        "decoder_layers_per_block": half.layers,
        "decoder_spatio_temporal_scaling": (True,) * steps,
        "decoder_inject_noise": (False,) * len(half.layers),
        # the one list diffusers wants from the latent end, like the blocks it names
        "upsample_type": half.types[::-1],
        "upsample_residual": half.residual,
        "upsample_factor": half.multipliers,
        "scaling_factor": own.get("scaling_factor", 1.0),
        "decoder_causal": own.get("causal_decoder", False),
        "decoder_spatial_padding_mode": own.get("spatial_padding_mode", "reflect"),
    }


def diffusion_decoder(config: Section) -> Arguments:
    """Arguments of ``LTX2VideoDiffusionDecoderModel``.

    Raises:
        NotReady: something is missing or not supported.
    """
    vae = config.section("vae")
    own = vae.section("decoder")
    vae.only(_class_name=DIFFUSION)
    own.only(in_channels=vae["latent_channels"])
    strides = [stride for stride, _ in own["upsamples"]]
    return {
        "out_channels": own["out_channels"],
        "latent_channels": vae["latent_channels"],
        "patch_size": own["patch_size"],
        "decoder_head_dim": own["head_dim"],
        "decoder_stage_channels": own["stage_channels"],
        "decoder_stage_depths": own["stage_depths"],
        # the last stage has a kernel of its own
        "decoder_stage_kernels": own["stage_kernels"][: len(strides)],
        "decoder_stage5_kernel": own["stage5_kernel"],
        "decoder_upsample_strides": strides,
        "decoder_upsample_channel_reductions": [reduction for _, reduction in own["upsamples"]],
        "decoder_t_emb_dim": own["t_emb_dim"],
        "decoder_timestep_scale_multiplier": own["timestep_scale_multiplier"],
        "decoder_model_output_type": vae["model_output_type"],
        "decoder_num_inference_steps": own["default_num_inference_steps"],
        "spatial_compression_ratio": own["patch_size"] * math.prod(stride[1] for stride in strides),
        "temporal_compression_ratio": math.prod(stride[0] for stride in strides),
    }


def audio_vae(config: Section) -> Arguments:
    """Arguments of ``AutoencoderKLLTX2Audio``.

    Raises:
        NotReady: something is missing or not supported.
    """
    section = config.section("audio_vae")
    params = section.section("model").section("params")
    own = params.section("ddconfig")
    stft, mel = (section.section("preprocessing").section(key) for key in ("stft", "mel"))
    # sounds are made into log-mel spectrograms by ltx2.model.mel, which knows no other kind
    params.only(sampling_rate=16_000)
    stft.only(filter_length=1024, win_length=1024, hop_length=160)
    mel.only(n_mel_channels=64, mel_fmin=0, mel_fmax=8000)
    own.only(double_z=True, downsample_time=False, mel_bins=64)
    return {
        "base_channels": own["ch"],
        "output_channels": own["out_ch"],
        "ch_mult": own["ch_mult"],
        "num_res_blocks": own["num_res_blocks"],
        "attn_resolutions": own["attn_resolutions"] or None,
        "in_channels": own["in_channels"],
        "resolution": own["resolution"],
        "latent_channels": own["z_channels"],
        "norm_type": own["norm_type"],
        "causality_axis": own["causality_axis"],
        "mid_block_add_attention": own["mid_block_add_attention"],
        "is_causal": stft["causal"],
    }


def vocoder(config: Section) -> Arguments:
    """Arguments of ``LTX2Vocoder``, or of ``LTX2VocoderWithBWE`` where a bandwidth extension follows.

    Raises:
        NotReady: something is missing or not supported.
    """
    own = config.section("vocoder")
    if "bwe" not in own.values:
        return _vocoder(own) | {"output_sampling_rate": own["output_sampling_rate"]}
    extension = own.section("bwe")
    second = {f"bwe_{key}": value for key, value in _vocoder(extension).items()}
    return {
        **_vocoder(own.section("vocoder")),
        **second,
        "filter_length": extension["n_fft"],
        "hop_length": extension["hop_length"],
        "window_length": extension["win_size"],
        "num_mel_channels": extension["num_mels"],
        "input_sampling_rate": extension["input_sampling_rate"],
        "output_sampling_rate": extension["output_sampling_rate"],
    }


def _vocoder(own: Section) -> Arguments:
    """One stage."""
    own.only(stereo=True)
    kind, activation = own["resblock"], own.get("activation", "snake")
    if (kind, activation) not in {("1", "snake"), ("AMP1", "snakebeta")}:
        raise own.unsupported("resblock", f"{kind} with {activation}")
    final = "tanh" if own.get("use_tanh_at_final", True) else "clamp"
    return {
        # two channels of 64 mel bins
        "in_channels": 128,
        "out_channels": 2,
        "hidden_channels": own["upsample_initial_channel"],
        "upsample_kernel_sizes": own["upsample_kernel_sizes"],
        "upsample_factors": own["upsample_rates"],
        "resnet_kernel_sizes": own["resblock_kernel_sizes"],
        "resnet_dilations": own["resblock_dilation_sizes"],
        "act_fn": "snakebeta" if kind == "AMP1" else "leaky_relu",
        "antialias": kind == "AMP1",
        "final_act_fn": final if own.get("apply_final_activation", True) else None,
        "final_bias": own.get("use_bias_at_final", True),
    }
