"""The trained parts as a checkpoint in diffusers' layout, float16: what comes with the package.

``python -m training.ship [FOLDER]`` writes what has been trained by now, into ``training/parts`` unless told otherwise.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Gemma3ImageProcessorPil

from training import branches, distilled, frozen, glow, text, transformer, upsampler, vocoder
from training.loop import RUNS, averaged

CLASSES = {
    "connectors": ("diffusers", "LTX2TextConnectors"),
    "transformer": ("diffusers", "LTX2VideoTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLLTX2Video"),
    "audio_vae": ("diffusers", "AutoencoderKLLTX2Audio"),
    "vocoder": ("ltx2", "LTX2Vocoder"),
    "latent_upsampler": ("ltx2", "LTX2LatentUpsamplerModel"),
    "text_encoder": ("transformers", "Gemma3ForConditionalGeneration"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
}


def main() -> None:
    """Write everything that has a run."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else frozen.PARTS
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in _modules():
        _save(module, folder / name)
    words = frozen.load("tokenizer")
    words.chat_template = text.CHAT_TEMPLATE
    words.save_pretrained(folder / "tokenizer")
    Gemma3ImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "tokenizer")
    for name, run in (("distilled", distilled), ("glow", glow)):
        if (RUNS / f"{name}.pt").exists():
            branches.write(run.file_weights(), folder / f"{name}_lora.safetensors")
    there = {part: kind for part, kind in CLASSES.items() if (folder / part).is_dir()}
    index = {"_class_name": "LTX2Pipeline", **there}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def _modules() -> list[tuple[str, Any]]:
    """Each part with its averaged weights."""
    found: list[tuple[str, Any]] = []
    reader = frozen.load("reader")
    found += [("text_encoder", reader.text_encoder), ("connectors", reader.connectors)]
    for name in ("vae", "audio_vae"):
        vae: Any = frozen.load(name)
        if (RUNS / f"{name}_decoder.pt").exists():
            vae.load_state_dict({**vae.state_dict(), **averaged(f"{name}_decoder")})
        found.append((name, vae))
    for name, part, module in (
        ("vocoder", "vocoder", vocoder.build()),
        ("upsampler", "latent_upsampler", upsampler.build()),
    ):
        if (RUNS / f"{name}.pt").exists():
            module.load_state_dict(averaged(name))
            found.append((part, module))
    if (RUNS / "transformer.pt").exists():
        painter = transformer.Painter(reader)
        painter.load_state_dict(averaged("transformer"))
        # further than where the reader left them
        found += [("connectors", painter.connectors), ("transformer", painter.transformer)]
    return found


def _save(module: nn.Module, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    saved: Any = nn.Module.to(module, torch.float16)
    saved.save_pretrained(folder)
    for file in folder.glob("config.json"):
        told = json.loads(file.read_text())
        told.pop("_name_or_path", None)
        file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    # one file with nothing of this machine in it
    for file in folder.glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
