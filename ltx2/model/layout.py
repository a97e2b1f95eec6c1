"""The files of a checkpoint in the layout diffusers saves: which there must be, which there are. No torch."""

import json
from pathlib import Path
from typing import Any

from ltx2.errors import NotReady

TOKENIZER = "tokenizer"
UPSAMPLER = "latent_upsampler"
PARTS = ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder")
"""The folders no generation works without, the tokenizer apart."""
OPTIONAL = (UPSAMPLER, "diffusion_decoder", "duration_head")
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
"""What the two libraries call the weights of a part."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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
    missing = [name for name in names if not (part / name).is_file()]
    if not missing:
        return [part / name for name in names]
    if len(names) > 1:
        raise NotReady(f"{whose} is incomplete: {missing[0]} is missing", hint=f"it has {len(names)} files; {AGAIN}")
    pickles = sorted(file.name for file in part.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise NotReady(
            f"{whose} has its weights in {pickles[0]}; pickles are not loaded, since they can run any code",
            hint="take a version of the model whose weights are in .safetensors files",
        )
    raise NotReady(f"{whose} has no weights: {missing[0]} is missing", hint=AGAIN)


def missing_files(folder: Path, transformer: str = "transformer") -> list[str]:
    """What a diffusers folder lacks to be complete, by name within it; empty if it is whole.

    Raises:
        NotReady: an index or a configuration that says what belongs to it cannot be read.
    """
    missing = [] if (folder / "model_index.json").is_file() else ["model_index.json"]
    for name in PARTS:
        part = folder / (transformer if name == "transformer" else name)
        if not (part / "config.json").is_file():
            missing.append(f"{part.name}/config.json")
        names = weight_names(part, f"the {name} of the model {title(folder)!r}")
        missing += [f"{part.name}/{file}" for file in names if not (part / file).is_file()]
    if not (folder / TOKENIZER / "tokenizer_config.json").is_file():
        missing.append(f"{TOKENIZER}/tokenizer_config.json")
    return missing
