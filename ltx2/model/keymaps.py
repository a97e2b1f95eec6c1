"""Names of weights: from Lightricks' own layout to diffusers' and transformers'.

Everything is data: rules that rename, tensors that hold several, factors that are multiplied into others, and what
nothing uses. A key no rule speaks of keeps its name; whether the module knows that name is for
:func:`ltx2.model.weights.fill` to say.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from ltx2.model.weights import Read

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and what to put in their place, applied in this order."""


def rename(key: str, rules: Rules) -> str:
    """A key with every rule applied to it in turn."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


@dataclass(frozen=True)
class KeyMap:
    """How one part's weights are stored."""

    rules: Rules = ()
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Tensors that are several, one below the other: what to put in place of the pattern for each."""
    factors: Rules = ()
    """From a weight to the factor of its rows, where the checkpoint has one: trained apart, used as one."""
    unused: str = r"(?!)"
    """A pattern of keys nothing uses."""

    def convert(self, keys: Collection[str], read: Read) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as the module wants them, read one at a time.

        Args:
            keys: all keys of the part, in original names.
            read: gives a tensor by its original name.
        """
        factor_of = {key: factor for key in keys if (factor := rename(key, self.factors)) != key and factor in keys}
        multiplied = set(factor_of.values())
        for key in keys:
            if key in multiplied or re.search(self.unused, key):
                continue
            tensor = read(key)
            if key in factor_of:
                # in the dtype they are stored in: the official loader rounds the product to it
                tensor = tensor * read(factor_of[key]).view(-1, *[1] * (tensor.ndim - 1))
            yield from self._unfused(key, tensor)

    def _unfused(self, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        for pattern, replacements in self.fused:
            if re.search(pattern, key):
                names = (rename(re.sub(pattern, replacement, key), self.rules) for replacement in replacements)
                yield from zip(names, tensor.chunk(len(replacements)), strict=True)
                return
        yield rename(key, self.rules), tensor


STATISTICS: Rules = (
    (r"\bper_channel_statistics\.mean-of-means$", "latents_mean"),
    (r"\bper_channel_statistics\.std-of-means$", "latents_std"),
)
NORMS: Rules = ((r"\b([qk])_norm\.", r"norm_\1."),)

_TRANSFORMER: Rules = (
    (r"\bav_ca_video_scale_shift_adaln_single\b", "av_cross_attn_video_scale_shift"),
    (r"\bav_ca_audio_scale_shift_adaln_single\b", "av_cross_attn_audio_scale_shift"),
    (r"\bav_ca_a2v_gate_adaln_single\b", "av_cross_attn_video_a2v_gate"),
    (r"\bav_ca_v2a_gate_adaln_single\b", "av_cross_attn_audio_v2a_gate"),
    (r"prompt_adaln_single\b", "prompt_adaln"),
    (r"adaln_single\b", "time_embed"),
    (r"patchify_proj\b", "proj_in"),
    (r"\bscale_shift_table_a2v_ca_(video|audio)$", r"\1_a2v_cross_attn_scale_shift_table"),
    *NORMS,
)
CORE = "model.diffusion_model."
"""How the part of a checkpoint begins that was trained as one: the transformer, and the connectors inside it."""
_CORE = "^" + re.escape(CORE)

TRANSFORMER = KeyMap(((_CORE, ""), *_TRANSFORMER))

CONNECTORS = KeyMap(
    (
        (_CORE + r"(video|audio)_embeddings_connector\.", r"\1_connector."),
        (r"\.transformer_1d_blocks\.", ".transformer_blocks."),
        (r"^text_embedding_projection\.aggregate_embed\.", "text_proj_in."),
        (r"^text_embedding_projection\.(video|audio)_aggregate_embed\.", r"\1_text_proj_in."),
        *NORMS,
    )
)

AUDIO_VAE = KeyMap(((r"^audio_vae\.", ""), *STATISTICS))

VOCODER = KeyMap(
    (
        # once only: from 2.3 on, the first stage inside is called vocoder as well
        (r"^vocoder\.", ""),
        (r"\bconv_pre\.", "conv_in."),
        (r"\bconv_post\.", "conv_out."),
        (r"\bact_post\.", "act_out."),
        (r"\bups\.", "upsamplers."),
        (r"\bresblocks\.", "resnets."),
        (r"\.lowpass\.filter$", ".filter"),
    )
)

UPSAMPLER = KeyMap()

DIFFUSION_DECODER = KeyMap(
    (
        (r"\bt_embedder\.mlp\.0\.", "t_embedder.timestep_embedder.linear_1."),
        (r"\bt_embedder\.mlp\.2\.", "t_embedder.timestep_embedder.linear_2."),
        (r"\battn\.proj\.", "attn.to_out.0."),
        *NORMS,
        *STATISTICS,
    ),
    fused=((r"\bqkv\.", ("to_q.", "to_k.", "to_v.")),),
    factors=(
        (r"\battn\.proj\.(weight|bias)$", "gate_msa"),
        (r"\bmlp\.w_down\.(weight|bias)$", "gate_mlp"),
        (r"\bcontext_proj\.(weight|bias)$", "gate_ctx"),
    ),
    # a preview the decoder was trained with
    unused=r"^decoder\.coarse_",
)

DURATION_HEAD = KeyMap(
    ((r"^duration_head\.", ""), (r"\bcross_attn\.out_proj\.", "to_out.")),
    fused=((r"\bcross_attn\.in_proj_(weight|bias)$", (r"to_q.\1", r"to_k.\1", r"to_v.\1")),),
)

TEXT_ENCODER = KeyMap(
    (
        (r"^model\.(layers|embed_tokens|norm)\.", r"model.language_model.\1."),
        (r"^vision_model\.", "model.embed_vision."),
        (r"^multi_modal_projector\.", "model.embed_vision.multimodal_embedder."),
        (r"^audio_projector\.", "model.embed_audio."),
    )
)


def video_vae(encoder_levels: int, decoder_levels: int) -> KeyMap:
    """The map of a convolutional video VAE, whose levels and the steps between them are numbered in one row.

    Args:
        encoder_levels, decoder_levels: how many levels each half has. The decoder's are stored from its latent end,
            where its middle block is.
    """
    # ascending, so that no rule sees what an earlier one wrote: a block's new number is never above its old one
    encoder = [(f"down_blocks.{i // 2}" + ".downsamplers.0" * (i % 2)) for i in range(2 * encoder_levels - 2)]
    decoder = [(f"up_blocks.{(i - 1) // 2}" + ".upsamplers.0" * (i % 2)) for i in range(1, 2 * decoder_levels - 1)]
    return KeyMap(
        (
            (r"^vae\.", ""),
            *((rf"^encoder\.down_blocks\.{i}\.", f"encoder.{name}.") for i, name in enumerate([*encoder, "mid_block"])),
            *((rf"^decoder\.up_blocks\.{i}\.", f"decoder.{name}.") for i, name in enumerate(["mid_block", *decoder])),
            (r"\.res_blocks\.", ".resnets."),
            *STATISTICS,
        ),
        unused=r"\bper_channel_statistics\.(channel|mean-of-stds|mean-of-stds_over_std-of-means)$",
    )


def rename_transformer(key: str) -> str:
    """diffusers' name of a transformer weight, from the original one without its ``model.diffusion_model.``.

    LoRA files use the same names, with ``lora_A`` and ``lora_B`` behind the module's.
    """
    return rename(key, _TRANSFORMER)
