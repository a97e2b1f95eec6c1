"""The figures that placement is planned with: counted from the official checkpoints, traced over full-size modules."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from bench.memory import (
    META,
    LiveBytes,
    Windows,
    audio_vae,
    connect,
    decode,
    denoise,
    diffusion_decoder,
    encode_image,
    encode_text,
    enlarge,
    parts,
    peak_of,
    sound,
    text_encoder,
    transformer,
    vae,
    vocoder,
)
from ltx2.footprint import DEQUANTISED
from ltx2.model.fp8 import is_block_linear
from ltx2.model.memory import (
    ACTIVATIONS,
    BLOCKS,
    FP8_SHARE,
    MINIATURE,
    OUTSIDE_SHARE,
    PARAMETERS,
    streamed_bytes,
    typical_grid,
    weight_bytes,
)
from ltx2.model.parts import Module
from ltx2.model.residency import STREAMED_BLOCKS
from ltx2.model.tiny import build_tiny
from ltx2.recipes import Generation

GENERATIONS: tuple[Generation, ...] = get_args(Generation)
SMALL = typical_grid(288, 512, 49)
KEYS = {"connectors": ("connectors", "text_projection"), "upsampler": ("spatial_upscaler_x2",)}
"""Of the parts that are called otherwise in the official checkpoints, or are of several of theirs."""


def count(module: Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def stored(entry: tuple[str, tuple[str, list[int]]]) -> int:
    """How many numbers a line of ``keys-*.json`` stands for: ``{a..b}`` is a range."""
    key, (_, shape) = entry
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", key)
    return math.prod(shape) * math.prod(int(last) - int(first) + 1 for first, last in ranges)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_counts_are_those_of_the_official_checkpoints(
    generation: Generation, checkpoints: Callable[[str], Path]
) -> None:
    official = json.loads(checkpoints(f"keys-{generation}.json").read_text(encoding="utf-8"))["components"]
    for part, parameters in PARAMETERS[generation].items():
        if part == "text_encoder" or (part == "upsampler" and generation == "2.5"):
            continue  # not in the file
        if part == "diffusion_decoder":
            keys = official["video_vae_diffusion"]["keys"].items()
            assert sum(stored(entry) for entry in keys if not entry[0].startswith("encoder.")) == parameters
            continue
        vae_name = "video_vae_conv" if generation == "2.5" else "video_vae"
        names = (vae_name,) if part == "vae" else KEYS.get(part, (part,))
        # 2.0's upsampler has a kernel of 25 numbers that is no weight
        assert sum(official[name]["parameters"] for name in names) == pytest.approx(parameters, abs=25), part


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_is_traced_is_full_size(generation: Generation) -> None:
    modules = parts(generation)
    if generation == "2.5":
        modules["diffusion_decoder"] = diffusion_decoder()
    for part, module in modules.items():
        # some numbers of the files are buffers in diffusers' classes
        assert count(module) == pytest.approx(PARAMETERS[generation][part], rel=0.005), part
    assert set(PARAMETERS[generation]) - set(modules) <= {"duration_head"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_shares_are_those_of_the_modules(generation: Generation) -> None:
    model = transformer(generation)
    edges = ("transformer_blocks.0.", f"transformer_blocks.{BLOCKS - 1}.")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    float8 = sum(
        module.weight.numel()
        for name, module in linears.items()
        if is_block_linear(name) and not name.startswith(edges)
    )
    assert FP8_SHARE["transformer"] <= float8 / count(model) < FP8_SHARE["transformer"] + 0.01
    outside = 1 - count(model.get_submodule(STREAMED_BLOCKS["transformer"])) / count(model)
    assert OUTSIDE_SHARE["transformer"] - 0.01 < outside <= OUTSIDE_SHARE["transformer"]

    layers = text_encoder().get_submodule(STREAMED_BLOCKS["text_encoder"])
    float8 = sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear))
    assert FP8_SHARE["text_encoder"] <= float8 / count(text_encoder()) < FP8_SHARE["text_encoder"] + 0.01
    outside = 1 - count(layers) / count(text_encoder())
    assert OUTSIDE_SHARE["text_encoder"] - 0.01 < outside <= OUTSIDE_SHARE["text_encoder"]
    assert len(layers) == len(model.transformer_blocks) == BLOCKS

    widest = max(module.weight.numel() for name, module in linears.items() if is_block_linear(name))
    assert 2 * widest == DEQUANTISED


def test_weights_in_every_precision() -> None:
    assert weight_bytes("vae", 100, "bf16", 2) == weight_bytes("vae", 100, "fp8", 2) == 200
    assert weight_bytes("vae", 100, "fp32", 4) == 400
    assert weight_bytes("vocoder", 100, "bf16", 2) == 400
    # 934 of 1000 weights in one byte, 66 in two
    assert weight_bytes("transformer", 1000, "fp8", 2) == weight_bytes("transformer", 1000, "fp8-storage", 2) == 1066
    # 2.3 % are outside the blocks, and two of 48 blocks inside
    assert streamed_bytes("transformer", 48_000, 2) == 2 * (1104 + 2000)


def no_less_and_not_much_more(planned: int, traced: int) -> bool:
    return traced <= planned <= 1.3 * traced


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_the_peaks_are_no_less_than_a_fresh_trace(generation: Generation) -> None:
    planned = ACTIVATIONS[generation]
    assert no_less_and_not_much_more(planned.connectors, connect(generation))
    assert no_less_and_not_much_more(planned.denoise(SMALL, "bf16"), denoise(transformer(generation), SMALL))
    traced = sound(audio_vae(), vocoder(generation), SMALL)
    assert no_less_and_not_much_more(round(planned.second * SMALL.grid_seconds), traced)
    for tiled in (False, True):
        traced = decode(vae(generation), SMALL, tiled=tiled)
        assert no_less_and_not_much_more(planned.vae.peak(SMALL, tiled=tiled), traced)
    # not counted, because they are less than what is counted in their phases
    assert encode_image(vae(generation), SMALL) < planned.connectors
    assert enlarge(SMALL) < planned.denoise(SMALL, "bf16")


def test_the_peaks_of_the_text_encoder_and_the_diffusion_decoder() -> None:
    planned = ACTIVATIONS["2.5"]
    assert no_less_and_not_much_more(planned.text, encode_text())
    for tiled in (False, True):
        decoder = planned.diffusion_decoder
        traced = decode(diffusion_decoder(), SMALL, tiled=tiled)
        assert no_less_and_not_much_more(decoder.peak(SMALL, tiled=tiled) - decoder.fixed, traced)


def test_the_peak_in_tiles_grows_with_the_clip() -> None:
    large = typical_grid(1280, 704, 49)
    planned = ACTIVATIONS["2.3"].vae
    assert no_less_and_not_much_more(planned.peak(large, tiled=True), decode(vae("2.3"), large, tiled=True))
    assert planned.peak(large, tiled=True) < planned.peak(large, tiled=False) / 2


@pytest.mark.parametrize("name", ["tiny", "tiny-2.5"])
def test_the_embedded_models_need_no_more_than_is_planned(name: str) -> None:
    tiny = build_tiny(name, torch.device("cpu"), torch.bfloat16)
    for module in tiny.parts.values():
        nn.Module.to(module, META)
    assert denoise(tiny.transformer, SMALL) <= MINIATURE.denoise(SMALL, "bf16")
    assert decode(tiny.vae, SMALL, tiled=False) <= MINIATURE.vae.peak(SMALL, tiled=False)
    assert sound(tiny.audio_vae, tiny.vocoder, SMALL) <= MINIATURE.second * SMALL.grid_seconds
    if tiny.diffusion_decoder is not None:
        tiny.diffusion_decoder.set_attn_processor(Windows())
        decoder = MINIATURE.diffusion_decoder
        assert decode(tiny.diffusion_decoder, SMALL, tiled=False) <= decoder.peak(SMALL, tiled=False) - decoder.fixed


def test_the_tracer_counts_what_is_alive() -> None:
    def work() -> None:
        a = torch.empty(1000, dtype=torch.uint8, device=META)
        b = a[10:].view(-1)  # the same bytes
        del a
        c = torch.empty(500, dtype=torch.uint8, device=META)
        del b, c
        torch.empty(1400, dtype=torch.uint8, device=META)

    assert peak_of(work) == 1500
    weight = torch.empty(10_000, device=META)
    assert peak_of(lambda: weight.add_(1)) == 0
    assert LiveBytes().peak == 0
