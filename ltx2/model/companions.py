"""What goes with a checkpoint: what opens up a second stage, and the text encoder where it has none."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ltx2.catalogue import GEMMA_REPOSITORY
from ltx2.errors import NotReady
from ltx2.model import hub
from ltx2.model.layout import GEMMA_3_CLASS, UPSAMPLER, is_whole, read_json
from ltx2.model.location import Location, fitting, weights_below
from ltx2.model.weights import open_weights
from ltx2.settings import Settings

log = logging.getLogger(__name__)

RUNPOD_CACHE = Path("huggingface-cache/hub")
"""RunPod's cached models, below the models folder."""
HUB, HUB_CACHE = "the hub", "the local hub cache"
"""Places where what goes with a model may be fetched from the hub as well."""
UPSCALERS = "*spatial-upscaler*x2*.safetensors"
LORAS = "*distilled-lora*.safetensors"
GEMMA_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors")


def with_companions(settings: Settings, found: Location) -> Location:
    """Add what opens up a second stage, and the text encoder where the files have none.

    Raises:
        NotReady: one that a setting names is not there, or there is no text encoder.
    """
    entry, beside = found.entry, found.folder / UPSAMPLER
    upsampler = _named(settings.upsampler, "LTX2_UPSAMPLER") or (beside if _is_there(beside) else None)
    upsampler = upsampler or _newest(found, UPSCALERS)
    if upsampler is None and entry and entry.upsampler:
        wanted = entry.upsampler
        upsampler = _optional(settings, found, wanted.repository, wanted.path, wanted.patterns)
    lora = _named(settings.distilled_lora, "LTX2_DISTILLED_LORA")
    if lora is None and found.trained != "distilled":
        lora = _newest(found, LORAS)
        if lora is None and entry and entry.lora:
            lora = _optional(settings, found, entry.lora.repository, entry.lora.path, entry.lora.patterns)
    text_encoder, files = _named(settings.text_encoder, "LTX2_TEXT_ENCODER"), found.files
    if text_encoder is None and found.layout == "original":
        text_encoder = _text_encoder(settings, found)
    elif text_encoder is not None and text_encoder.is_file():
        files = tuple(file for file in files if file == files[0] or not _has_gemma(file))
    for name, path in (("upsampler", upsampler), ("distilled LoRA", lora), ("separate text encoder", text_encoder)):
        log.info("%s: %s", name, path or "none")
    return replace(found, files=files, upsampler=upsampler, lora=lora, text_encoder=text_encoder)


def _named(path: Path | None, variable: str) -> Path | None:
    if path is not None and not path.exists():
        log.error("%s is %s, which is not there", variable, path)
        raise NotReady(f"{variable} names {path.name}, which is not there", hint="correct it or unset it")
    return path


def _newest(found: Location, pattern: str) -> Path | None:
    """The last version of the files that match and are of the checkpoint's generation, in its folder or below."""
    is_lora = "lora" in pattern
    matching = [file for file in weights_below(found.folder) if file.match(pattern)]
    matching = [file for file in matching if ("lora" in file.name.casefold()) == is_lora]
    return max(fitting(matching, found.generation), key=_version, default=None)


def _version(file: Path) -> tuple[list[int], str]:
    """Numbers are compared as such, and a name that has one more is the newer."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def _optional(settings: Settings, found: Location, repository: str, path: str, patterns: Sequence[str]) -> Path | None:
    """Something of another repository that a second stage needs; without it there is none."""
    try:
        return _elsewhere(settings, found, repository, path, patterns)
    except NotReady as error:
        log.warning("there will be no second stage: %s", error)
        return None


def _elsewhere(settings: Settings, found: Location, repository: str, path: str, patterns: Sequence[str]) -> Path | None:
    """Something of another repository: where models are kept, or else fetched if the model itself was."""
    last = repository.rpartition("/")[2]
    places = [settings.models_dir / repository, settings.models_dir / last]
    places += filter(None, (hub.snapshot_in(settings.models_dir / RUNPOD_CACHE, repository),))
    places += filter(None, (hub.snapshot_in(hub.local_cache(), repository),))
    for place in places:
        if _is_there(place / path):
            return place / path
    if hub.is_offline() or found.found_in not in (HUB, HUB_CACHE):
        return None
    log.info("fetching %s of %s", path or "all", repository)
    fetched = hub.fetch(repository, patterns) / path
    return fetched if _is_there(fetched) else None


def _text_encoder(settings: Settings, found: Location) -> Path | None:
    """The folder with a Gemma 3 that original files of LTX-2.0 and 2.3 need; those of 2.5 have theirs in a file."""
    if any(map(_has_gemma, found.files)):
        return None
    if found.generation == "2.5":
        raise NotReady(
            f"{found.title} has no text encoder with it: LTX-2.5's is a file of its own",
            hint="put the .safetensors file of Lightricks/LTX-2.5's folder text_encoders beside it, named after its "
            "Gemma 4, or set LTX2_TEXT_ENCODER to that file",
        )
    for config in sorted(found.folder.glob("*/config.json")):
        if _is_gemma_3(config.parent):
            return config.parent
    folder = _elsewhere(settings, found, GEMMA_REPOSITORY, "", GEMMA_FILES)
    if folder is None:
        raise NotReady(
            f"{found.title} has no text encoder, and there is no Gemma 3 on this machine",
            hint=f"set LTX2_TEXT_ENCODER to its folder, or download {GEMMA_REPOSITORY} with hf download",
        )
    return folder


def _has_gemma(path: Path) -> bool:
    return any(key.startswith("model.layers.") for key in open_weights(path).tensors)


def _is_gemma_3(folder: Path) -> bool:
    """Whether a folder has a whole Gemma 3, and its tokenizer inside or beside it as in the layout of diffusers."""
    try:
        classes = read_json(folder / "config.json", folder.name).get("architectures")
        tokenizers = (place / "tokenizer_config.json" for place in (folder, folder.parent / "tokenizer"))
        return classes == [GEMMA_3_CLASS] and any(file.is_file() for file in tokenizers) and is_whole(folder)
    except NotReady as error:
        log.warning("%s is passed over: %s", folder, error)
        return False


def _is_there(path: Path) -> bool:
    """Whether a companion is there with all its files: a file, or one part in diffusers' or transformers' layout."""
    return path.is_file() or is_whole(path)
