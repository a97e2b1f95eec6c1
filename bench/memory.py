"""``python -m bench.memory``: what each full-size part needs beside its weights, traced without any memory.

The modules are built on torch's meta device, where tensors have a shape and no bytes, and run there as the
program runs them. What a GPU's kernels need inside themselves is not seen; the formulas of
:mod:`ltx2.model.memory` have a margin for it.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from ltx2.geometry import Grid
from ltx2.model.conditioning import audio_stream, video_stream
from ltx2.model.denoiser import Contexts, Denoiser
from ltx2.model.memory import ACTIVATIONS, typical_grid
from ltx2.model.parts import Module, Part
from ltx2.model.prompts import MAX_TOKENS
from ltx2.recipes import Generation

META = torch.device("meta")
READ_NUMBER = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - the operator has no other name
SHAPES = ((288, 512, 49), (768, 512, 121), (1280, 704, 121), (1920, 1088, 121))
GB = 1e9


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside, until nothing holds them any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is READ_NUMBER:
            return False  # asked once: is there no padding before the prompt?
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage(), 0)  # weights and inputs, unless they were made in here
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage(), value.untyped_storage().nbytes())
        # cuDNN's fast kernels want channels last: they work on copies of both sides
        copies = args[0].nbytes + result.nbytes if func is torch.ops.aten.convolution.default else 0
        self.peak = max(self.peak, self._live + copies)
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self._live += size
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._live -= size


class Fused(TorchFunctionMode):
    """What a GPU does in one kernel, where the meta device would lay out every intermediate."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            tensors = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return torch.empty_like(tensors["query"], memory_format=torch.contiguous_format)
        if func in (torch.nn.functional.rms_norm, torch.rms_norm):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes ever held at once by what ``work`` makes, its result included."""
    live = LiveBytes()
    with torch.no_grad(), live, Fused():
        work()
    return live.peak


def on_meta(build: Callable[[], Module], dtype: torch.dtype = torch.bfloat16) -> Module:
    """A module without memory, ready to be run."""
    with META:
        module = build()
    return torch.nn.Module.to(module.eval().requires_grad_(requires_grad=False), dtype)


@cache
def transformer(generation: Generation) -> Module:
    """The transformer: 48 blocks, 4096 and 2048 wide."""
    config: dict[str, Any] = {"rope_type": "split", "perturbed_attn": True}
    if generation != "2.0":
        gates = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod")
        config |= dict.fromkeys(gates, True) | {"use_prompt_embeddings": False}
    if generation == "2.5":
        config |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    return on_meta(lambda: LTX2VideoTransformer3DModel(**config))


@cache
def text_encoder() -> Module:
    """Gemma 3 12B."""
    text = {
        "vocab_size": 262_208,
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 1024,
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return on_meta(lambda: Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)))


@cache
def connectors(generation: Generation) -> Module:
    """The connectors with the text projection."""
    config: dict[str, Any] = {"rope_type": "split"}
    if generation != "2.0":
        config |= {
            "video_connector_num_attention_heads": 32,
            "video_connector_num_layers": 8,
            "video_gated_attn": True,
            "audio_connector_num_attention_heads": 32,
            "audio_connector_attention_head_dim": 64,
            "audio_connector_num_layers": 8,
            "audio_gated_attn": True,
            "per_modality_projections": True,
            "proj_bias": True,
        }
    return on_meta(lambda: LTX2TextConnectors(**config))


@cache
def vae(generation: Generation) -> Module:
    """The video VAE; 2.5's convolutional one is that of 2.3."""
    config: dict[str, Any] = {
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    if generation != "2.0":
        config |= {
            "block_out_channels": (256, 512, 1024, 1024),
            "layers_per_block": (4, 6, 4, 2, 2),
            "decoder_block_out_channels": (256, 512, 512, 1024),
            "decoder_layers_per_block": (4, 6, 4, 2, 2),
            "decoder_spatio_temporal_scaling": (True,) * 4,
            "decoder_inject_noise": (False,) * 5,
            "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            "upsample_residual": (False,) * 4,
            "upsample_factor": (2, 2, 1, 2),
            "decoder_spatial_padding_mode": "zeros",
        }
    return on_meta(lambda: AutoencoderKLLTX2Video(**config))


@cache
def vocoder(generation: Generation) -> Module:
    """The vocoder, in float32 as ever."""
    return on_meta(LTX2Vocoder if generation == "2.0" else LTX2VocoderWithBWE, torch.float32)


@cache
def audio_vae() -> Module:
    """The audio VAE, the same in every generation."""
    return on_meta(AutoencoderKLLTX2Audio)


@cache
def upsampler() -> Module:
    """The latent upsampler."""
    return on_meta(LTX2LatentUpsamplerModel)


def parts(generation: Generation) -> dict[Part, Module]:
    """Every part of a full-size LTX-2 but 2.5's diffusion decoder and duration head."""
    return {
        "text_encoder": text_encoder(),
        "connectors": connectors(generation),
        "transformer": transformer(generation),
        "vae": vae(generation),
        "audio_vae": audio_vae(),
        "vocoder": vocoder(generation),
        "upsampler": upsampler(),
    }


def encode_text() -> int:
    """The language model over a prompt, with the hidden states of every layer."""
    model = text_encoder().model.language_model
    tokens = torch.zeros(1, MAX_TOKENS, dtype=torch.long, device=META)

    def work() -> object:
        output = model(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True, use_cache=False
        )
        return torch.stack(output.hidden_states, dim=-1)

    return peak_of(work)


def connect(generation: Generation) -> int:
    """The connectors, over the hidden states that are there already."""
    config = connectors(generation).config
    layers = torch.empty(
        1, MAX_TOKENS, config.caption_channels, config.text_proj_in_factor, dtype=torch.bfloat16, device=META
    )
    mask = torch.ones(1, MAX_TOKENS, dtype=torch.long, device=META)
    return layers.nbytes + peak_of(lambda: connectors(generation)(layers, mask, padding_side="left"))


def denoise(model: Module, grid: Grid, *, masked: bool = True) -> int:
    """One pass of a transformer. Images and sounds make a timestep of every token (``masked``)."""
    config = model.config
    # 2.0 projects the text itself
    widths = (config.caption_channels,) * 2 if config.use_prompt_embeddings else _widths(config)
    contexts = Contexts(*(torch.empty(1, MAX_TOKENS, width, dtype=torch.bfloat16, device=META) for width in widths))

    def work() -> object:
        streams = (video_stream(model, grid, META), audio_stream(model, grid, META))
        video, audio = (replace(stream, masked=masked) for stream in streams)
        return Denoiser(model)(video, audio, 0.5, contexts)

    return peak_of(work)


def _widths(config: Any) -> tuple[int, int]:
    return config.cross_attention_dim, config.audio_cross_attention_dim


def latents_of(grid: Grid) -> Tensor:
    """The latents of a clip."""
    return torch.empty(
        1, 128, grid.latent_frames, grid.latent_height, grid.latent_width, dtype=torch.bfloat16, device=META
    )


def decode(model: Module, grid: Grid, *, tiled: bool) -> int:
    """The pictures of a VAE or of the diffusion decoder."""
    latents = latents_of(grid)
    model.use_tiling = tiled
    return peak_of(lambda: model.decode(latents, return_dict=False)[0])


class Windows:
    """Stands in for neighbourhood attention, which is traced as one kernel: what it gathers is bounded."""

    def __call__(self, attn: Any, hidden_states: Tensor, _block_mask: None = None) -> Tensor:
        query, _key, _value = attn.project_qkv(hidden_states)
        attended: Tensor = attn.to_out[0](torch.empty_like(query).flatten(-2))
        return attended


@cache
def diffusion_decoder() -> Module:
    """The diffusion decoder of 2.5."""
    decoder = on_meta(LTX2VideoDiffusionDecoderModel)
    decoder.set_attn_processor(Windows())
    return decoder


def sound(vae: Module, vocoder: Module, grid: Grid) -> int:
    """The audio VAE's spectrogram and the vocoder's samples."""
    latents = torch.empty(1, 8, grid.audio_latent_frames, 16, dtype=torch.bfloat16, device=META)
    return peak_of(lambda: vocoder(vae.decode(latents, return_dict=False)[0].float()))


def encode_image(model: Module, grid: Grid) -> int:
    """The latents of one image."""
    pixels = torch.empty(1, 3, 1, grid.grid_height, grid.grid_width, dtype=torch.bfloat16, device=META)
    model.use_tiling = False
    return peak_of(lambda: model.encode(pixels))


def enlarge(grid: Grid) -> int:
    """The latents of the second stage, from those of the first."""
    model, latents = upsampler(), latents_of(grid.halved)
    return peak_of(lambda: model(latents))


def rows(generation: Generation) -> Iterator[tuple[str, int, int]]:
    """What is traced: its name, the bytes traced and the bytes that are planned with."""
    planned = ACTIVATIONS[generation]
    yield "text encoder", encode_text(), planned.text
    yield "connectors", connect(generation), planned.connectors
    for shape in SHAPES:
        grid, name = typical_grid(*shape), "x".join(map(str, shape))
        model, voice = transformer(generation), vocoder(generation)
        least = denoise(model, grid, masked=False) / GB
        yield f"{name} transformer ({least:.2f} without images)", denoise(model, grid), planned.denoise(grid, "bf16")
        yield f"{name} sound", sound(audio_vae(), voice, grid), round(planned.second * grid.grid_seconds)
        yield f"{name} image", encode_image(vae(generation), grid), 0
        yield f"{name} upsampler", enlarge(grid), 0
        for tiled in (False, True):
            way = "in tiles" if tiled else "in one piece"
            yield f"{name} VAE {way}", decode(vae(generation), grid, tiled=tiled), planned.vae.peak(grid, tiled=tiled)
            if generation == "2.5":
                peak = planned.diffusion_decoder.peak(grid, tiled=tiled)
                yield f"{name} diffusion decoder {way}", decode(diffusion_decoder(), grid, tiled=tiled), peak


def main() -> None:
    """Print what was traced beside what is planned with."""
    for generation in get_args(Generation):
        print(f"LTX-{generation}: GB{'traced':>58}{'planned':>10}")
        for name, traced, planned in rows(generation):
            print(f"  {name:55}{traced / GB:10.2f}" + (f"{planned / GB:10.2f}" if planned else ""), flush=True)


if __name__ == "__main__":
    main()
