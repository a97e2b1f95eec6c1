"""Where a clip comes from: what made it, on what, and out of what."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltx2 import __version__
from ltx2.errors import InvalidRequest
from ltx2.settings import Settings

Name = Annotated[str, Field(max_length=1000)]
Named = Annotated[dict[Name, Name], Field(max_length=128)]

LIBRARIES: Final = ("torch", "diffusers", "transformers", "av")
"""Whose versions show in a clip. PyAV's has FFmpeg and x264 in it."""
_UNORDERED = ("versions", "settings", "loras")
_SHOWING = ("piece_seconds", "video_decoder", "video_encoder", "video_preset")
"""Settings that show in clips."""


class Provenance(BaseModel):
    """What shows in a clip beside what was asked for.

    Read leniently: it comes from workers and files of other versions, too.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    model: Name = Field(description="what made it, as its operator calls it")
    generation: Name | None = Field(None, description="of LTX-2: 2.0, 2.3, 2.5; null: it is a test card")
    kind: Name | None = Field(None, description="dev or distilled")
    versions: Named = Field({}, description="of this program and of the libraries that show in a clip")
    device: Name | None = Field(None, description="cpu or cuda")
    precision: Name | None = Field(None, description="of the weights")
    settings: Named = Field({}, description="of the server, those that show in a clip")
    seed: int
    inputs: Named = Field({}, description="SHA-256 of each image, sound and video, by its field")
    loras: Named = Field({}, description="SHA-256 of the file of each LoRA, by its name")

    def applied_to(self, settings: Settings) -> Settings:
        """The settings of a machine with those that show in the clip; what it does not know is left out.

        Raises:
            InvalidRequest: one has a value that it cannot have.
        """
        noted = {name: value for name, value in self.settings.items() if name in _SHOWING}
        if noted.get("video_encoder") != "libx264":  # the others are not everywhere
            noted.pop("video_encoder", None)
        try:
            return Settings.model_validate(settings.model_dump() | noted)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise InvalidRequest(f"the clip was made with another {name} than there is here") from None

    def differences(self, here: "Provenance") -> Iterator[str]:
        """Why a clip that is made here may be another one, a sentence each."""
        for field in ("model", "generation", "kind", "device", "precision"):
            yield from _differs(field, getattr(self, field), getattr(here, field))
        for field in _UNORDERED:
            noted, found = getattr(self, field), getattr(here, field)
            for name in sorted(noted.keys() | found.keys()):
                yield from _differs(f"{field} {name}", noted.get(name), found.get(name))


def _differs(what: str, noted: str | None, found: str | None) -> Iterator[str]:
    if noted != found:
        yield f"The clip was made with {what} {noted or 'unknown'}, and here it is {found or 'unknown'}."


@cache
def versions(*libraries: str) -> Mapping[str, str]:
    """The versions of this program and of some libraries, which are installed."""
    return {"ltx2": __version__} | {name: metadata.version(name) for name in libraries}


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, computed again only when the file has changed."""
    stat = path.stat()
    return _file_digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _file_digest(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
