"""A place a model lies in, and which of the files there are an LTX-2's."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltx2.catalogue import CatalogueEntry, generation_of_name
from ltx2.errors import NotReady
from ltx2.model.groups import generation_of_file, is_of_ltx
from ltx2.model.keymaps import CORE
from ltx2.model.layout import title
from ltx2.model.weights import WeightsFile, open_weights
from ltx2.recipes import Generation, Kind

log = logging.getLogger(__name__)

BESIDE = ("lora", "upscaler")
"""In the name of a file that goes with a checkpoint and is none."""


@dataclass(frozen=True)
class Location:
    """Where a model lies, complete."""

    layout: Literal["diffusers", "original"]
    folder: Path
    """With layout ``diffusers`` the one with model_index.json, else the one the files are in."""
    files: tuple[Path, ...] = ()
    """With layout ``original``: the checkpoint's files, the main one first, without companions."""
    upsampler: Path | None = None
    """A folder in the diffusers layout, or an original file."""
    lora: Path | None = None
    text_encoder: Path | None = None
    """A folder or file to be taken instead of the checkpoint's own, or where it has none."""
    entry: CatalogueEntry | None = None
    found_in: str = ""
    transformer: str = "transformer"
    """With layout ``diffusers``: the transformer's folder."""
    trained: Kind | None = None
    """Dev or distilled, as LTX2_RECIPE, the catalogue or a name says it."""
    generation: Generation | None = None
    """As its header or its name says it."""

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return self.files[0].name if self.files else title(self.folder)


def generation_of(file: WeightsFile) -> Generation | None:
    """What a file's header says, or else its name.

    Raises:
        NotReady: it is of a version this server does not know.
    """
    return generation_of_file(file) or generation_of_name(file.name)


def is_main(file: WeightsFile) -> bool:
    """Whether a file has a transformer."""
    return any(key.startswith(CORE) for key in file.tensors)


def weights_below(folder: Path) -> list[Path]:
    """The safetensors files in a folder and its subfolders, but for parts of a model in another layout."""
    parts = [part for part in folder.glob("*/") if part.is_dir() and not (part / "config.json").is_file()]
    return sorted(file for place in (folder, *sorted(parts)) for file in place.glob("*.safetensors"))


def parts_below(folder: Path, generation: Generation | None = None) -> Iterator[WeightsFile]:
    """Files that hold a checkpoint or a part of one: other models may lie in the same folders, whole or broken.

    Raises:
        NotReady: a file that is an LTX-2's by its name cannot be read.
    """
    for path in weights_below(folder):
        if is_companion(path.name):
            continue
        try:
            file = open_weights(path)
            of = generation_of(file)
            if is_of_ltx(file) and (generation is None or of in (None, generation)):
                yield file
                continue
        except NotReady as error:
            of = generation_of_name(path.name)
            if of is not None and generation in (None, of):
                raise
            log.warning("%s cannot be read: %s", path, error)
        log.info("%s is passed over: it is no file of %s", path, f"LTX-{generation}" if generation else "an LTX-2")


def is_companion(name: str) -> bool:
    """Whether a file goes with a checkpoint and is none."""
    return any(word in name.casefold() for word in BESIDE)


def fitting(paths: Iterable[Path], generation: Generation | None) -> Iterator[Path]:
    """Those of some files that can be read and do not say that they are of another generation."""
    for path in paths:
        try:
            of = generation_of(open_weights(path))
        except NotReady as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        if generation is None or of in (None, generation):
            yield path
        else:
            log.info("%s is passed over: it is of LTX-%s", path, of)
