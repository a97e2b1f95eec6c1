"""Models on disk for tests to load: tiny ones, in each layout that users have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ltx2.model.components import Components

Find = Callable[[str], Path]
LIBRARIES = {"text_encoder": "transformers", "connectors": "ltx2", "vocoder": "ltx2", "duration_head": "ltx2"}
FOLDERS = {"upsampler": "latent_upsampler"}
UNNAMED = {"upsampler", "diffusion_decoder"}
"""Parts that the model_index.json of published folders does not name."""


def save(components: Components, folder: Path, shard: str = "10GB") -> Path:
    """Save a model in the layout of diffusers."""
    tokenizer = ["transformers", type(components.tokenizer).__name__]
    index: dict[str, Any] = {"_class_name": "LTX2Pipeline", "tokenizer": tokenizer, "prompt_enhancer": [None, None]}
    for part, module in components.parts.items():
        module.save_pretrained(folder / FOLDERS.get(part, part), max_shard_size=shard)
        if part not in UNNAMED:
            index[part] = [LIBRARIES.get(part, "diffusers"), type(module).__name__]
    components.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_gemma_3(folder: Path) -> Path:
    """Save a Gemma 3 of the size the golden 2.0 and 2.3 checkpoints were made for: 3 layers of 32."""
    from transformers import Gemma3ForConditionalGeneration

    from ltx2.model.tiny import build_tiny

    tiny = build_tiny("tiny", torch.device("cpu"), torch.float32)
    config = tiny.text_encoder.config
    config.text_config.num_hidden_layers = 3
    config.text_config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def lay_out(folder: Path, files: dict[str, Path]) -> Path:
    """A folder with files by these names, as links."""
    folder.mkdir()
    for name, file in files.items():
        (folder / name).symlink_to(file.resolve())
    return folder


def edit(file: Path, **values: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
