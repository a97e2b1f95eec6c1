"""LoRA files for models so small that they are made at once."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 4
LINEAR = "transformer_blocks.0.attn1.to_q"
ORIGINAL_NAMES = {
    "patchify_proj": "proj_in",
    "adaln_single.linear": "time_embed.linear",
    "av_ca_a2v_gate_adaln_single.linear": "av_cross_attn_video_a2v_gate.linear",
    LINEAR: LINEAR,
}
"""Some of the transformer's linears: Lightricks' name and diffusers'."""
ORIGINAL_CONNECTORS = {
    "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q": (
        "video_connector.transformer_blocks.0.attn1.to_q"
    ),
    "text_embedding_projection.audio_aggregate_embed": "audio_text_proj_in",
}
"""The same of the connectors that 2.3 has."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear_of(module: Any, name: str) -> nn.Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def tensors_for(module: Any, names: dict[str, str], prefix: str, seed: int = 0, rank: int = RANK) -> dict[str, Tensor]:
    """A LoRA file's tensors, for linears with names of its own; together they change an output by about its size."""
    tensors = {}
    for index, (name, path) in enumerate(names.items()):
        linear = linear_of(module, path)
        down, up = noise(rank, linear.in_features, seed=seed + 2 * index), noise(linear.out_features, rank, seed=seed)
        tensors[f"{prefix}{name}.lora_A.weight"] = down / linear.in_features**0.5
        tensors[f"{prefix}{name}.lora_B.weight"] = up / rank**0.5
    return tensors


def write_lora(
    path: Path,
    transformer: Any,
    *,
    layout: str = "original",
    seed: int = 0,
    rank: int = RANK,
    connectors: Any = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Write a LoRA file in Lightricks' layout or in diffusers'.

    Returns:
        What it does: A and B by diffusers' names of the transformer's linears.
    """
    names = ORIGINAL_NAMES if layout == "original" else {name: name for name in ORIGINAL_NAMES.values()}
    prefix = "diffusion_model." if layout == "original" else "transformer."
    tensors = tensors_for(transformer, names, prefix, seed, rank)
    does = {
        own: (tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"])
        for name, own in names.items()
    }
    if connectors is not None:
        tensors |= tensors_for(connectors, ORIGINAL_CONNECTORS, "", seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return does


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
