"""The embedded models: LTX-2 in miniature, with random weights, built on the spot.

Every class and every ratio is that of the real model (32 pixels and 8 frames per latent cell, 128 latent
channels, 25 audio latents a second, 24 or 48 kHz sound), so that all code paths and all sizes are true.
Only the widths are small. The pictures and sounds mean nothing.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ltx2.model.components import Components
from ltx2.model.lora import Lora
from ltx2.model.neighborhood import NeighborhoodProcessor
from ltx2.model.parts import Module, Part
from ltx2.model.source import Enhancer
from ltx2.recipes import Generation, Kind, Recipe, fit_recipe, recipe_for

TINY_MODELS: dict[str, tuple[Generation, Kind]] = {
    "tiny": ("2.0", "distilled"),
    "tiny-dev": ("2.0", "dev"),
    "tiny-2.3": ("2.3", "distilled"),
    "tiny-2.5": ("2.5", "distilled"),
}

WEIGHT_SEED = 2
TEXT_DIM = 32
TEXT_LAYERS = 2
TEXT_TOKENS = 1024
"""Prompt tokens, padding included, as in the real model."""
LAYERS = 3
LORA_RANK = 4
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<image>", "<boi>", "<eoi>")
IMAGE_TOKENS = {"image_token_id": 4, "boi_token_id": 5, "eoi_token_id": 6}
PATCH_SIZE = 4
"""Pixels of a side, of the enhancer's patches."""
WRITTEN_TOKENS = 48
"""What they write of a prompt at most: it means nothing."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}\n"
    "{% for part in message.content %}"
    "{{ part if message.content is string else '<SHOWN>' if part.type == 'image' else part.text }}"
    "{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}model\n{% endif %}"
)
"""``<SHOWN>`` is the token an image is put in place of."""


def build_tiny(name: str, device: torch.device, dtype: torch.dtype) -> Components:
    """One of ``TINY_MODELS``, whole on a device."""
    source = TinySource(name)
    modules = {
        part: source.load(part, torch.float32 if part == "vocoder" else dtype).to(device) for part in source.parts()
    }
    return Components(
        name=name,
        recipe=source.recipe,
        tokenizer=source.tokenizer(),
        open_enhancer=source.enhancer,
        device=device,
        refine_lora=tiny_lora(modules["transformer"]) if source.kind == "dev" else None,
        is_random=True,
        **modules,
    )


class TinySource:
    """Implements :class:`ltx2.model.source.Source`: one of ``TINY_MODELS``, the same weights on every machine."""

    num_layers = LAYERS
    stored_fp8 = False

    def __init__(self, name: str) -> None:
        self.generation, self.kind = TINY_MODELS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(WEIGHT_SEED)
            self._modules: dict[Part, Module] = {
                "text_encoder": _text_encoder(self.generation),
                "connectors": _connectors(self.generation),
                "transformer": _transformer(self.generation),
                "vae": _vae(),
                "audio_vae": AutoencoderKLLTX2Audio(ch_mult=(1, 1, 1), num_res_blocks=1),
                "vocoder": _vocoder(self.generation),
                "upsampler": LTX2LatentUpsamplerModel(mid_channels=64, num_blocks_per_stage=1),
            }
            if self.generation == "2.5":
                self._modules |= {"diffusion_decoder": _diffusion_decoder(), "duration_head": _duration_head()}

    @property
    def recipe(self) -> Recipe:
        return fit_recipe(recipe_for(self.generation, self.kind), LAYERS)

    def parts(self) -> frozenset[Part]:
        """Every part that its generation has."""
        return frozenset(self._modules)

    def parameters(self, part: Part) -> int:
        """How many weights a part has."""
        return sum(weight.numel() for weight in self._modules[part].parameters())

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:  # noqa: ARG002 (stored_fp8)
        """Give a part away."""
        module = self._modules[part].eval().requires_grad_(requires_grad=False)
        # diffusers' own to() warns of parts to be kept in float32, of which these models have none
        return nn.Module.to(module, dtype=dtype)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE without merges: one token a byte, after Gemma's special tokens."""
        return _tokenizer(self.generation)

    def enhancer(self) -> Enhancer:
        """Of 2.5 a model of its own, which is built when it is asked for."""
        if self.generation != "2.5":
            return Enhancer(self.tokenizer(), Gemma3ImageProcessorPil(size={"height": 28, "width": 28}))
        images = Gemma4ImageProcessorPil(patch_size=PATCH_SIZE, max_soft_tokens=70)
        return Enhancer(self.tokenizer(), images, load=_enhancer)


def tiny_lora(transformer: Module) -> Lora:
    """What the dev miniature wears in its second stage: small and random, on the first linear of each block."""
    generator = torch.Generator().manual_seed(WEIGHT_SEED)

    def pair(linear: Module) -> tuple[Tensor, Tensor, float]:
        down = torch.randn(LORA_RANK, linear.in_features, generator=generator)
        up = torch.randn(linear.out_features, LORA_RANK, generator=generator)
        return down / linear.in_features**0.5, up / LORA_RANK**0.5, 1.0

    names = [f"transformer_blocks.{block}.attn1.to_q" for block in range(LAYERS)]
    return Lora.from_pairs("tiny-distilled-lora", {name: pair(transformer.get_submodule(name)) for name in names})


def _tokenizer(generation: Generation) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=dict(zip(("image_token", "boi_token", "eoi_token"), SPECIAL_TOKENS[4:], strict=True)),
        padding_side="left",
        model_max_length=TEXT_TOKENS,
        chat_template=CHAT_TEMPLATE.replace("<SHOWN>", "<image>" if generation == "2.5" else "<boi>"),
    )


_TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIAL_TOKENS) + 256,
    "hidden_size": TEXT_DIM,
    "intermediate_size": 64,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    # more than prompts have, for what a writer of prompts is told
    "max_position_embeddings": 32 * TEXT_TOKENS,
}


_NO_TOKENS = dict.fromkeys(("audio_token_id", "boa_token_id", "eoa_token_index", "video_token_id"), 3)


def _text_encoder(generation: Generation) -> Module:
    if generation == "2.5":
        vision = {"mm_embed_dim": 16, "mm_posemb_size": 4, "patch_size": 4, "pooling_kernel_size": 1}
        return Gemma4UnifiedForConditionalGeneration(
            Gemma4UnifiedConfig(
                text_config=_TEXT | {"per_layer_config": {}},
                vision_config=vision,
                audio_config={"audio_embed_dim": 16},
                **_NO_TOKENS,
                **IMAGE_TOKENS,
            )
        )
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    encoder: Any = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=_TEXT | {"query_pre_attn_scalar": 16},
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=4,
            boi_token_index=5,
            eoi_token_index=6,
        )
    )
    encoder.generation_config.max_new_tokens = WRITTEN_TOKENS
    # transformers leaves it zero, and all images would look alike
    projection: Tensor = encoder.model.multi_modal_projector.mm_input_projection_weight.data
    projection.normal_(std=projection.shape[0] ** -0.5, generator=torch.Generator().manual_seed(WEIGHT_SEED))
    return encoder


def _enhancer(dtype: torch.dtype) -> Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHT_SEED)
        enhancer: Any = Gemma4ForConditionalGeneration(
            Gemma4Config(
                text_config=_TEXT
                | {"vocab_size_per_layer_input": _TEXT["vocab_size"], "hidden_size_per_layer_input": 8}
                | {"per_layer_config": {}},
                vision_config={
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "patch_size": PATCH_SIZE,
                    "position_embedding_size": 1024,
                },
                audio_config=None,
                **_NO_TOKENS,
                **IMAGE_TOKENS,
            )
        )
    enhancer.generation_config.max_new_tokens = WRITTEN_TOKENS
    return nn.Module.to(enhancer.eval().requires_grad_(requires_grad=False), dtype=dtype)


def _connectors(generation: Generation) -> Module:
    heads: dict[str, Any] = {
        "video_connector_num_attention_heads": 2,
        "audio_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 16,
        "audio_connector_attention_head_dim": 16,
        "video_connector_num_layers": 1,
        "audio_connector_num_layers": 1,
    }
    if generation != "2.0":
        heads |= {
            "video_connector_attention_head_dim": 32,
            "per_modality_projections": True,
            "video_hidden_dim": 64,
            "audio_hidden_dim": 32,
            "proj_bias": True,
            "video_gated_attn": True,
            "audio_gated_attn": True,
        }
    return LTX2TextConnectors(
        caption_channels=TEXT_DIM, text_proj_in_factor=TEXT_LAYERS + 1, rope_type="split", **heads
    )


def _transformer(generation: Generation) -> Module:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "cross_attention_dim": 64,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 16,
        "audio_cross_attention_dim": 32,
        "num_layers": LAYERS,
        "caption_channels": TEXT_DIM,
        "rope_type": "split",
        "perturbed_attn": True,
    }
    if generation != "2.0":
        gates = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod")
        config |= dict.fromkeys(gates, True) | {"use_prompt_embeddings": False}
    if generation == "2.5":
        config |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    return LTX2VideoTransformer3DModel(**config)


def _vae() -> Module:
    return AutoencoderKLLTX2Video(
        block_out_channels=(16, 16, 32, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        # diffusers would infer other ratios from a decoder of three blocks
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def _diffusion_decoder() -> Module:
    decoder = LTX2VideoDiffusionDecoderModel(
        decoder_head_dim=16,
        decoder_stage_channels=(256, 128, 64, 64, 32),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_stage5_kernel=(3, 3, 3),
        decoder_t_emb_dim=48,
    )
    decoder.set_attn_processor(NeighborhoodProcessor())
    return decoder


def _duration_head() -> Module:
    return LTX2DurationHead(
        video_cross_attention_dim=64, audio_cross_attention_dim=32, pooler_hidden_dim=32, mlp_hidden_dim=32
    )


def _vocoder(generation: Generation) -> Module:
    if generation == "2.0":
        return LTX2Vocoder(hidden_channels=32)
    # the first stage of 2.3 and 2.5 clamps, whatever published configurations say
    return LTX2VocoderWithBWE(hidden_channels=64, bwe_hidden_channels=32, final_act_fn="clamp")
