"""The LoRAs that an operator offers: files in one folder, named by requests."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ltx2.errors import InvalidRequest
from ltx2.request import LORA_NAME, GenerationRequest, LoraChoice
from ltx2.settings import Settings

log = logging.getLogger(__name__)

SUFFIX: Final = ".safetensors"
SHOWN: Final = 20
"""Names that a hint lists."""


def lora_files(folder: Path | None) -> Mapping[str, Path]:
    """The files of a folder by the names that requests call them, in alphabetical order, without their suffix.

    Links are followed: what the operator has put into the folder is meant. What no request could name is left out.
    """
    try:
        found = [] if folder is None else [path for path in folder.iterdir() if path.suffix == SUFFIX]
    except OSError as error:
        log.warning("LTX2_LORAS_DIR cannot be read: %s", error.strerror)
        return {}
    files = (path for path in sorted(found) if os.path.isfile(path))  # noqa: PTH113 (Path's raises where it may not look)
    return {path.stem: path for path in files if re.fullmatch(LORA_NAME, path.stem)}


def find_loras(choices: Sequence[LoraChoice], folder: Path | None) -> tuple[Path, ...]:
    """The file of each LoRA that a request names. A name is looked up among those there are, and never made a path of.

    Args:
        choices: with or without the suffix.
        folder: the operator's.

    Raises:
        InvalidRequest: there is none of that name, or another name of the request means the same file.
    """
    files = lora_files(folder) if choices else {}
    found: list[Path] = []
    for number, choice in enumerate(choices):
        path = files.get(choice.name) or files.get(choice.name.removesuffix(SUFFIX))
        field = f"loras[{number}].name"
        if path is None:
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            hint = f"there are {', '.join([*files][:SHOWN])}{more}" if files else "there are none here yet"
            raise InvalidRequest("there is no LoRA of this name here", field=field, hint=hint)
        if path in found:
            raise InvalidRequest("it is named twice", field=field)
        found.append(path)
    return tuple(found)


def check_loras(request: GenerationRequest, settings: Settings) -> None:
    """Refuse a name nobody has a file for, where the clip is made on this machine; others have folders of their own.

    Raises:
        InvalidRequest: naming the field.
    """
    if settings.engine == "local":
        find_loras(request.loras, settings.loras_dir)
