"""The files of a checkpoint in the layout diffusers saves: which there must be, which there are. No torch."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ltx2.errors import NotReady
from ltx2.model.parts import REQUIRED, Part
from ltx2.recipes import Generation

TOKENIZER = "tokenizer"
PROCESSOR = "processor"
"""A tokenizer with a chat template and an image processor: what a writer of prompts is asked with."""
PROMPT_ENHANCER = "prompt_enhancer"
"""LTX-2.5's writer of prompts; the text encoders of the others write themselves."""
UPSAMPLER = "latent_upsampler"
EXTRAS: tuple[Part, ...] = ("diffusion_decoder", "duration_head")
"""The parts a checkpoint may have."""
OPTIONAL = (UPSAMPLER, *EXTRAS)
"""The folders that open up what they are for."""
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
"""What the two libraries call the weights of a part."""
GEMMA_3_CLASS = "Gemma3ForConditionalGeneration"
"""What the text encoder of LTX-2.0 and 2.3 is, in transformers' words."""
GEMMA_4_CLASS = "Gemma4UnifiedForConditionalGeneration"
"""What LTX-2.5's is."""
ENHANCER_CLASS = "Gemma4ForConditionalGeneration"
"""What LTX-2.5's writer of prompts is."""
PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})
AGAIN = "download or copy the model again"


def title(folder: Path) -> str:
    """What to call a model in a message: the folder's name, or the repository's if it is a hub snapshot."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.resolve().name


def read_json(file: Path, whose: str) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        NotReady: there is none, or it is not JSON.
    """
    if not file.is_file():
        raise NotReady(f"{whose} has no {file.name}", hint=AGAIN)
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise NotReady(f"{file.name} of {whose} cannot be read", hint=AGAIN) from error
    if not isinstance(content, dict):
        raise NotReady(f"{file.name} of {whose} is not a JSON object", hint=AGAIN)
    return content


def weight_names(part: Path, whose: str) -> list[str]:
    """The names of the files one part's weights are in, whether they are there or not.

    Published folders hold left-overs: Lightricks/LTX-2 has its text encoder a second time under diffusers' name,
    the transformers of LTX-2.5-Diffusers in two sets of shards, LTX-2.3-Diffusers' connectors in one file and in
    shards. So a part has the name its own library gives it, and what that library would read is believed: with
    diffusers an index before a single file, with transformers a single file before an index.

    Raises:
        NotReady: the index cannot be read.
    """
    is_transformers = (part / "config.json").is_file() and "architectures" in read_json(part / "config.json", whose)
    stem = TRANSFORMERS_STEM if is_transformers else DIFFUSERS_STEM
    single = f"{stem}.safetensors"
    index = part / f"{single}.index.json"
    if not index.is_file() or (is_transformers and (part / single).is_file()):
        return [single]
    shards = read_json(index, whose).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise NotReady(f"{index.name} of {whose} names no shards", hint=AGAIN)
    return sorted(names)


def weight_files(part: Path, whose: str) -> list[Path]:
    """The files one part's weights are in.

    Raises:
        NotReady: one of them is missing, or there are none but pickles.
    """
    names = weight_names(part, whose)
    missing = missing_weights(part, whose)
    if not missing:
        return [part / name for name in names]
    if len(names) > 1:
        raise NotReady(f"{whose} is incomplete: {missing[0]} is missing", hint=f"it has {len(names)} files; {AGAIN}")
    raise NotReady(f"{whose} has no weights: {missing[0]} is missing", hint=AGAIN)


def missing_weights(part: Path, whose: str) -> list[str]:
    """The names of the files of one part's weights that are not there.

    Raises:
        NotReady: there are none but pickles.
    """
    names = weight_names(part, whose)
    missing = [name for name in names if not (part / name).is_file()]
    if missing and len(names) == 1:
        refuse_pickles(part, whose)
    return missing


def refuse_pickles(folder: Path, whose: str) -> None:
    """Say why a folder that has pickles, and not what was looked for, is of no use."""
    if pickles := sorted(file.name for file in folder.glob("*") if file.suffix.lower() in PICKLES):
        raise NotReady(
            f"{whose} has its weights in {pickles[0]}; pickles are not loaded, since they can run any code",
            hint="take a version of the model whose weights are in .safetensors files",
        )


def is_whole(part: Path) -> bool:
    """Whether a part's folder has its configuration and all its weights.

    Raises:
        NotReady: an index or a configuration that says what belongs to it cannot be read.
    """
    return (part / "config.json").is_file() and not missing_weights(part, f"the folder {part.name!r}")


def missing_files(folder: Path, transformer: str = "transformer", *, skip: Collection[str] = ()) -> list[str]:
    """What a diffusers folder lacks to be complete, by name within it; empty if it is whole.

    Args:
        folder: with a ``model_index.json``.
        transformer: the transformer's folder.
        skip: parts that need not be there.

    Raises:
        NotReady: an index or a configuration that says what belongs to it cannot be read, or there are only pickles.
    """
    missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    for name in REQUIRED:
        if name in skip:
            continue
        part = folder / (transformer if name == "transformer" else name)
        if not (part / "config.json").is_file():
            missing.append(f"{part.name}/config.json")
        missing += [f"{part.name}/{file}" for file in missing_weights(part, _whose(folder, name))]
    if not (folder / TOKENIZER / "tokenizer_config.json").is_file():
        missing.append(f"{TOKENIZER}/tokenizer_config.json")
    return missing


def begun_files(folder: Path) -> list[str]:
    """What is still missing of optional parts that a download has begun: their configurations come first."""
    begun = [name for name in OPTIONAL if (folder / name / "config.json").is_file()]
    return [f"{name}/{file}" for name in begun for file in missing_weights(folder / name, _whose(folder, name))]


def _whose(folder: Path, part: str) -> str:
    return f"the {part} of the model {title(folder)!r}"


def generation_of_config(config: Mapping[str, Any]) -> Generation:
    """Which LTX-2 a transformer's configuration belongs to. What it does not say has diffusers' defaults."""
    if config.get("use_keyframes_abs_pos_embedding", False):
        return "2.5"
    return "2.0" if config.get("use_prompt_embeddings", True) else "2.3"
