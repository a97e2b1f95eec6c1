"""The configuration inside an original checkpoint, as the arguments of diffusers' classes: all but the codecs.

Values are carried over, never inferred from a size; where the official code has a default, it is the same here.
A value that would make the official code compute what diffusers' classes do not is refused.
"""

from typing import Any

from ltx2.model.section import Section

Arguments = dict[str, Any]

UNUSED = frozenset(
    {
        "connector_learnable_registers_std",
        "cross_attention_norm",
        "dropout",
        "norm_num_groups",
        "num_embeds_ada_norm",
        "num_vector_embeds",
        "scheduler",
        "upcast_attention",
        "use_linear_projection",
    }
)
"""Values that have no part in what a trained model computes."""


def transformer(config: Section) -> Arguments:
    """Arguments of ``LTX2VideoTransformer3DModel``.

    Raises:
        NotReady: something is missing or not supported.
    """
    own = config.section("transformer")
    own.only(
        _class_name="AVTransformer3DModel",
        activation_fn="gelu-approximate",
        attention_bias=True,
        attention_type="default",
        av_cross_ada_norm=True,
        causal_temporal_positioning=True,
        double_self_attention=False,
        norm_elementwise_affine=False,
        only_cross_attention=False,
        positional_embedding_type="rope",
        qk_norm="rms_norm",
        share_ff=False,
        standardization_norm="rms_norm",
        timestep_scale_multiplier=1000,
        use_audio_video_cross_attention=True,
        use_middle_indices_grid=True,
    )
    frames, height, width = own["positional_embedding_max_pos"]
    (audio_frames,) = own["audio_positional_embedding_max_pos"]
    gated = own.get("apply_gated_attention", False)
    modulated = own.get("cross_attention_adaln", False)
    return {
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"],
        "num_attention_heads": own["num_attention_heads"],
        "attention_head_dim": own["attention_head_dim"],
        "cross_attention_dim": own["cross_attention_dim"],
        "pos_embed_max_pos": frames,
        "base_height": height,
        "base_width": width,
        "gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_in_channels": own.get("audio_in_channels", own["audio_out_channels"]),
        "audio_out_channels": own["audio_out_channels"],
        "audio_num_attention_heads": own["audio_num_attention_heads"],
        "audio_attention_head_dim": own["audio_attention_head_dim"],
        "audio_cross_attention_dim": own["audio_cross_attention_dim"],
        "audio_pos_embed_max_pos": audio_frames,
        "audio_gated_attn": gated,
        "audio_cross_attn_mod": modulated,
        "num_layers": own["num_layers"],
        "norm_eps": own["norm_eps"],
        "caption_channels": own["caption_channels"],
        "cross_attn_timestep_scale_multiplier": own["av_ca_timestep_scale_multiplier"],
        "use_prompt_embeddings": not _projects_before_connectors(own),
        "ff_bias": own.get("ff_bias", True),
        "use_keyframes_abs_pos_embedding": own.get("use_keyframes_abs_pos_embedding", False),
        # without it, spatio-temporal guidance would silently do nothing
        "perturbed_attn": True,
        **_rope(own),
    }


def connectors(config: Section, projection_width: int) -> Arguments:
    """Arguments of ``LTX2TextConnectors``.

    Args:
        config: of the file with the transformer.
        projection_width: features the text projection takes: all hidden states of the text encoder, side by side.

    Raises:
        NotReady: something is missing or not supported.
    """
    own = config.section("transformer")
    own.only(use_embeddings_connector=True, connector_norm_output=True)
    per_stream = _projects_before_connectors(own)
    if per_stream:
        own.only(text_encoder_norm_type="per_token_rms")
    heads, head_dim = own["connector_num_attention_heads"], own["connector_attention_head_dim"]
    audio_heads = own.get("audio_connector_num_attention_heads", heads)
    audio_head_dim = own.get("audio_connector_attention_head_dim", head_dim)
    layers, registers = own["connector_num_layers"], own["connector_num_learnable_registers"]
    gated = own.get("connector_apply_gated_attention", False)
    (positions,) = own["connector_positional_embedding_max_pos"]
    return {
        "caption_channels": own["caption_channels"],
        "text_proj_in_factor": hidden_states(config, projection_width),
        "video_connector_num_attention_heads": heads,
        "video_connector_attention_head_dim": head_dim,
        "video_connector_num_layers": layers,
        "video_connector_num_learnable_registers": registers,
        "video_gated_attn": gated,
        "audio_connector_num_attention_heads": audio_heads,
        "audio_connector_attention_head_dim": audio_head_dim,
        "audio_connector_num_layers": own.get("audio_connector_num_layers", layers),
        "audio_connector_num_learnable_registers": registers,
        "audio_gated_attn": gated,
        "connector_rope_base_seq_len": positions,
        "per_modality_projections": per_stream,
        "video_hidden_dim": heads * head_dim,
        "audio_hidden_dim": audio_heads * audio_head_dim,
        "proj_bias": per_stream,
        **_rope(own),
    }


def hidden_states(config: Section, projection_width: int) -> int:
    """How many hidden states of the text encoder a text projection takes: its layers and the embeddings below them.

    Raises:
        NotReady: the width is no multiple of the text encoder's.
    """
    own = config.section("transformer")
    width: int = own["caption_channels"]
    if projection_width % width:
        raise own.unsupported("caption_channels", width)
    return projection_width // width


def _rope(own: Section) -> Arguments:
    # diffusers knows an interleaved one as well; no LTX-2 has it, so nothing here could be checked with it
    own.only(rope_type="split")
    return {
        "rope_type": own["rope_type"],
        "rope_theta": own["positional_embedding_theta"],
        "rope_double_precision": own.get("frequencies_precision", "float32") == "float64",
    }


def _projects_before_connectors(own: Section) -> bool:
    """From 2.3 on, each stream has a text projection of its own, and the transformer has none."""
    before: bool = own.get("caption_proj_before_connector", False)
    if before:
        own.only(
            caption_projection_first_linear=False, caption_projection_second_linear=False, caption_proj_input_norm=False
        )
    return before


def upsampler(config: Section) -> Arguments:
    """Arguments of ``LTX2LatentUpsamplerModel``.

    Raises:
        NotReady: it is no spatial upscaler, or something is missing or not supported.
    """
    config.only(
        _class_name="LatentUpsampler", dims=3, spatial_upsample=True, temporal_upsample=False, spatial_scale=2.0
    )
    return {
        "in_channels": config["in_channels"],
        "mid_channels": config["mid_channels"],
        "num_blocks_per_stage": config["num_blocks_per_stage"],
        "rational_spatial_scale": config.get("spatial_scale", 2.0),
        "use_rational_resampler": config.get("rational_resampler", False),
    }


def duration_head(config: Section) -> Arguments:
    """Arguments of ``LTX2DurationHead``.

    Raises:
        NotReady: something is missing.
    """
    streams, own = config.section("transformer"), config.section("duration_head")
    return {
        "video_cross_attention_dim": streams["cross_attention_dim"],
        "audio_cross_attention_dim": streams["audio_cross_attention_dim"],
        "pooler_hidden_dim": own["pooler_hidden_dim"],
        "num_queries": own["num_queries"],
        "num_pooler_heads": own["num_pooler_heads"],
        "mlp_hidden_dim": own["mlp_hidden"],
    }
