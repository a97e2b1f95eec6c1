"""Files of weights, read so that nothing in them is run or guessed; modules filled with exactly what is in them."""

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ltx2.errors import NotReady
from ltx2.model.layout import PICKLES, weight_files
from ltx2.model.parts import Module

log = logging.getLogger(__name__)

PICKLE_MAGIC: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""The zip archives torch writes now, and the bare pickles it wrote before."""
LFS_MAGIC: Final = b"version https://git-lfs"
MAX_HEADER: Final = 100_000_000
"""Bytes; the safetensors library's own limit."""
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float32,
    "F8_E5M2": torch.float32,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What safetensors' words mean once it is read; float8 stands for the numbers it is a short form of."""
UNKNOWN: Final = "has weights this server does not understand"
MISSING: Final = "lacks weights"
MISSHAPEN: Final = "has weights of other shapes than its configuration says"
SHOWN: Final = 3
"""Names a message quotes."""

Read = Callable[[str], Tensor]


class Stored(NamedTuple):
    """A tensor as a file's header describes it."""

    dtype: str
    """In safetensors' words: ``BF16``, ``F32``, ``F8_E4M3``, …"""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def on_meta(self) -> Tensor:
        """A tensor of this shape that has no memory."""
        return torch.empty(self.shape, dtype=DTYPES.get(self.dtype, torch.uint8), device="meta")


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file: its header in memory, its tensors on disk."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """What messages call it; folders are for the log."""
        return self.path.name

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """A function giving tensors by name, mapped from the file: their pages are read when they are used."""
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file.get_tensor
        except (OSError, SafetensorError) as error:
            log.exception("%s could not be read", self.path)
            raise NotReady(f"{self.name} could not be read: {type(error).__name__}") from error

    def json(self, key: str) -> dict[str, Any]:
        """A metadata entry holding a JSON object; an empty one when the file has no such entry."""
        try:
            value = json.loads(self.metadata.get(key, "{}"))
        except (RecursionError, ValueError) as error:
            raise NotReady(f"{self.name} is damaged: its {key!r} metadata is not JSON") from error
        if not isinstance(value, dict):
            raise NotReady(f"{self.name} is damaged: its {key!r} metadata is not an object")
        return value


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a safetensors file.

    Raises:
        NotReady: there is no such file; it is a pickle, a git-lfs pointer, something else altogether, or it has not
            as many bytes as its header promises.
    """
    log.debug("reading the header of %s", path)
    if path.suffix.lower() in PICKLES:
        raise _pickle(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_MAGIC))
            length = int.from_bytes(start[:8], "little")
            if start[8:9] != b"{" or length > MAX_HEADER:
                raise _refusal(path, start)
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        log.exception("%s cannot be opened", path)
        raise NotReady(f"there is no file {path.name}, or it may not be read") from error
    if len(header) < length:
        raise _cut_short(path, size, 8 + length)
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: Stored(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        if not _is_text(metadata) or not all(map(_is_size, itertools.chain(*(s.shape for s in tensors.values())))):
            raise _refusal(path, start)
        promised = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _refusal(path, start) from error
    if size != promised:
        raise _cut_short(path, size, promised)
    return WeightsFile(path, tensors, metadata)


def open_part(folder: Path, whose: str) -> list[WeightsFile]:
    """Read the headers of the files one part's weights are in.

    Raises:
        NotReady: one of them is missing, damaged or a pickle.
    """
    try:
        return [open_weights(file) for file in weight_files(folder, whose)]
    except NotReady as error:
        if error.message.startswith(whose):
            raise
        raise NotReady(f"{whose} cannot be read: {error.message}", hint=error.hint) from error


def _is_text(metadata: object) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _pickle(path: Path) -> NotReady:
    return NotReady(
        f"{path.name} is a pickle, which could run code; convert it to safetensors",
        hint="the safetensors library's documentation says how",
    )


def _refusal(path: Path, start: bytes) -> NotReady:
    if start.startswith(LFS_MAGIC):
        return NotReady(f"{path.name} is a git-lfs pointer, not the file itself", hint="fetch it with git lfs pull")
    if start.startswith(PICKLE_MAGIC):
        return _pickle(path)
    return NotReady(f"{path.name} is not a safetensors file")


def _cut_short(path: Path, size: int, promised: int) -> NotReady:
    return NotReady(
        f"{path.name} is damaged: it has {size} bytes where its header promises {promised}",
        hint="download it again",
    )


def fill(
    module: Module,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    *,
    source: str,
    tied: Collection[str] = (),
    done: Collection[str] = (),
) -> None:
    """Give a module built on the meta device its weights, one after the other, and refuse anything amiss.

    A weight already stored in ``dtype`` stays mapped from its file, any other is cast on its own, so that host
    memory never holds the module twice. Buffers the module would save are filled like parameters; the others keep
    what the constructor gave them.

    Args:
        module: its parameters are on the meta device.
        weights: the module's own names, with tensors of the module's shapes.
        dtype: of every floating-point weight.
        source: the file's name, for messages.
        tied: names that may be missing because the module shares them.
        done: submodules that have their weights already.

    Raises:
        NotReady: there are weights the module does not have, or of another shape or kind, or some are missing.
    """
    for name, tensor, wanted in _matched(module, weights, source, tied, done):
        _assign(module, name, tensor.to(dtype) if wanted.is_floating_point() else tensor)


def check(module: Module, weights: Iterable[tuple[str, Tensor]], *, source: str, tied: Collection[str] = ()) -> None:
    """Refuse beforehand what :func:`fill` would, given the headers' tensors without memory."""
    for _ in _matched(module, weights, source, tied):
        pass


def _matched(
    module: Module,
    weights: Iterable[tuple[str, Tensor]],
    source: str,
    tied: Collection[str],
    done: Collection[str] = (),
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each weight beside the module's own tensor of that name; at the end what was amiss is refused."""
    missing = {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.startswith(tuple(f"{prefix}." for prefix in done))
    }
    unknown, misshapen = [], []
    for name, tensor in weights:
        if (wanted := missing.pop(name, None)) is None:
            unknown.append(name)
        elif tensor.shape != wanted.shape:
            misshapen.append(f"{name} {list(tensor.shape)} instead of {list(wanted.shape)}")
        elif tensor.is_floating_point() != wanted.is_floating_point():
            misshapen.append(f"{name} stored as {str(tensor.dtype).removeprefix('torch.')}")
        else:
            yield name, tensor, wanted
    refuse(source, UNKNOWN, unknown)
    refuse(source, MISSING, sorted(missing.keys() - set(tied)))
    refuse(source, MISSHAPEN, misshapen)


@contextmanager
def understood(whose: str) -> Iterator[None]:
    """Whatever its configuration or its files trip over, when they are read or a module is built: refuse it."""
    try:
        yield
    except NotReady:
        raise
    except Exception as error:
        log.exception("%s could not be loaded", whose)
        raise NotReady(
            f"{whose} could not be loaded: {type(error).__name__}", hint="the server's log says more"
        ) from error


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def refuse(source: str, complaint: str, names: list[str]) -> None:
    """Raise NotReady naming the first few, if there are any."""
    if names:
        log.error("%s %s: %s", source, complaint, ", ".join(names))
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise NotReady(f"{source} {complaint}: {', '.join(names[:SHOWN])}{rest}")


def source_of(whose: str, files: Sequence[WeightsFile]) -> str:
    """A part by the name of its file, or of the first of several."""
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{whose} ({files[0].name}{others})"


def log_read(whose: str, files: Sequence[WeightsFile], started: float) -> None:
    """What reading a part took."""
    size = sum(file.path.stat().st_size for file in files)
    log.info("read %s: %.1f GB in %.1f s", whose, size / 1e9, time.perf_counter() - started)
