"""LoRAs: small branches beside a model's linears, which change what it makes and can be taken off again.

A branch adds ``scale * B(A(x))`` to what a linear gives. The weights are never touched: taking it off is exact,
nothing is rounded into bf16, and it works beside float8 weights too.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ltx2.errors import NotReady
from ltx2.model.fp8 import Fp8Linear
from ltx2.model.keymaps import CONNECTORS, rename, rename_transformer
from ltx2.model.parts import Module
from ltx2.model.weights import WeightsFile, open_weights, refuse

_KEY: Final = re.compile(
    r"(?P<owner>transformer|connectors)\.(?P<module>.+)"
    r"\.(?P<role>lora_A|lora_B|lora_down|lora_up|alpha)(\.default)?(\.weight)?"
)
_ROLES: Final = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B", "alpha": "alpha"}
_OF_CONNECTORS: Final = re.compile(r"diffusion_model\.(video|audio)_embeddings_connector\.|text_embedding_projection\.")
_Found = dict[str, dict[str, Tensor]]
"""By module, then by role."""


class Pair(NamedTuple):
    """The branch beside one linear."""

    a: Tensor
    """``[rank, in]``"""
    b: Tensor
    """``[out, rank]``"""
    scale: float = 1.0
    """The file's own: alpha / rank; 1 where it names no alpha."""


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA that fits a model."""

    name: str
    """Its file's."""
    pairs: Mapping[str, Pair]
    """By the names of the transformer's linears."""
    connectors: "Lora | None" = None
    """What it does to the connectors, by the names of theirs."""

    @classmethod
    def from_pairs(cls, name: str, pairs: Mapping[str, tuple[Tensor, Tensor, float]]) -> Self:
        """A LoRA of tensors at hand: A ``[rank, in]``, B ``[out, rank]`` and a scale for each linear."""
        return cls(name, {module: Pair(*pair) for module, pair in pairs.items()})

    def kept(self, dtype: torch.dtype, *, pinned: bool) -> Self:
        """The same in host memory of its own, mapped from its file no more.

        Args:
            dtype: of its tensors.
            pinned: in pages from where it comes to a GPU without anybody waiting for it.
        """
        if pinned:
            return self.changed(lambda tensor: tensor.to("cpu", dtype).pin_memory())
        return self.changed(lambda tensor: tensor.to("cpu", dtype, copy=True))

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with other tensors in the place of its own."""
        pairs = {name: Pair(change(a), change(b), scale) for name, (a, b, scale) in self.pairs.items()}
        return type(self)(self.name, pairs, self.connectors and self.connectors.changed(change))

    @property
    def tensors(self) -> Iterator[Tensor]:
        for a, b, _ in self.pairs.values():
            yield from (a, b)
        if self.connectors is not None:
            yield from self.connectors.tensors

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """Tells apart what does different things, whatever its file is called. Computed from all of its numbers."""
        digest = hashlib.sha256()
        for name, (a, b, scale) in sorted(self.pairs.items()):
            digest.update(f"{name} {a.dtype} {[*a.shape]} {[*b.shape]} {scale!r}\n".encode())
            for tensor in (a, b):
                digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same on another device; tensors that are there already are shared."""
        return self.changed(lambda tensor: tensor.to(device, dtype))


def load_lora(path: Path, transformer: Module, connectors: Module | None = None) -> Lora:
    """Read a LoRA in Lightricks' layout or in diffusers', and see that it fits.

    Args:
        path: a safetensors file.
        transformer: what it is for.
        connectors: what else it may be for. Without them a LoRA that changes them is refused.

    Returns:
        The LoRA in host memory, stored as in the file.

    Raises:
        NotReady: the file is damaged or no LoRA, or belongs to another LTX-2; the message says which, and why.
    """
    file = open_weights(path)
    owners = {"transformer": transformer, "connectors": connectors}
    found: dict[str, _Found] = {owner: {} for owner in owners}
    unknown: list[str] = []
    with file.opened() as read:
        for key in file.tensors:
            match = _KEY.fullmatch(_rename(key))
            if match is None:
                unknown.append(key)
                continue
            roles, role = found[match["owner"]].setdefault(match["module"], {}), _ROLES[match["role"]]
            if role in roles:
                raise NotReady(f"{file.name} is damaged: it changes {match['module']} twice")
            roles[role] = read(key)
    refuse(file.name, "is not a LoRA this server understands; it has", unknown)
    if not any(found.values()):
        raise NotReady(f"{file.name} is empty")
    pairs = {owner: _fit(file, owner, found[owner], owners[owner]) for owner in owners if found[owner]}
    of_connectors = Lora(file.name, pairs["connectors"]) if "connectors" in pairs else None
    return Lora(file.name, pairs.get("transformer", {}), of_connectors)


def _rename(key: str) -> str:
    """A key with diffusers' name of its module, behind ``transformer.`` or ``connectors.``; others as they are."""
    if _OF_CONNECTORS.match(key):
        return "connectors." + rename(re.sub(r"^(?=diffusion_model\.)", "model.", key), CONNECTORS.rules)
    if key.startswith("diffusion_model."):
        return "transformer." + rename_transformer(key.removeprefix("diffusion_model."))
    return key


def _fit(file: WeightsFile, owner: str, found: _Found, module: Module | None) -> dict[str, Pair]:
    """The branches of one module, if they are all there and go with its linears."""
    if module is None:
        raise NotReady(f"{file.name} changes the {owner}, which is not possible here")
    linears = {path: child for path, child in module.named_modules() if isinstance(child, nn.Linear | Fp8Linear)}
    absent = [path for path in found if path not in linears]
    refuse(file.name, f"belongs to another LTX-2: the {owner} of this one has no", absent)
    refuse(
        file.name, "is damaged: it lacks half of", [path for path, roles in found.items() if not {*"AB"} <= {*roles}]
    )
    other = [
        f"{path} takes {linears[path].in_features} and gives {linears[path].out_features} numbers, "
        f"not {list(roles['A'].shape)} and {list(roles['B'].shape)}"
        for path, roles in found.items()
        if not _is_beside(linears[path], roles["A"], roles["B"])
    ]
    refuse(file.name, "belongs to another LTX-2 of other sizes", other)
    alpha = _declared_alpha(file, owner)
    return {path: _pair(file, path, roles, alpha) for path, roles in found.items()}


def _is_beside(module: nn.Linear | Fp8Linear, a: Tensor, b: Tensor) -> bool:
    rank = a.shape[0] if a.ndim else 0
    return rank > 0 and a.shape == (rank, module.in_features) and b.shape == (module.out_features, rank)


def _pair(file: WeightsFile, path: str, roles: dict[str, Tensor], alpha: float | None) -> Pair:
    a, b = roles["A"], roles["B"]
    if "alpha" in roles:
        alpha = roles["alpha"].item() if roles["alpha"].numel() == 1 else math.nan
    scale = 1.0 if alpha is None else alpha / a.shape[0]
    if not (math.isfinite(scale) and a.is_floating_point() and b.is_floating_point()):
        raise NotReady(f"{file.name} is damaged: what it says of {path} are no numbers to compute with")
    return Pair(a, b, scale)


def _declared_alpha(file: WeightsFile, owner: str) -> float | None:
    """The alpha of all branches, from the settings diffusers writes into the header."""
    settings = file.json("lora_adapter_metadata")
    odd = [name for name in ("use_dora", "use_rslora", "alpha_pattern") if settings.get(f"{owner}.{name}")]
    refuse(file.name, "was made in a way this server does not understand", odd)
    alpha = settings.get(f"{owner}.lora_alpha")
    try:
        return float(alpha) if isinstance(alpha, int | float) else None
    except OverflowError:
        return math.inf


@contextmanager
def applied(module: Module, loras: Sequence[tuple[Lora, float]]) -> Iterator[None]:
    """Have a module wear LoRAs for a while, each with a scale; at scale 0 it is left out.

    A LoRA's tensors are fetched to the device when a linear is first called, and held there until the end. One that
    is worn often should be moved there once, by :meth:`Lora.to`.
    """
    with ExitStack() as worn:
        for lora, scale in loras:
            for name, pair in lora.pairs.items() if scale else ():
                handle = module.get_submodule(name).register_forward_hook(_branch(pair, scale * pair.scale))
                worn.callback(handle.remove)
        yield


def _branch(pair: Pair, scale: float) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    a, b, _ = pair

    def add(_module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        nonlocal a, b
        x: Tensor = args[0]
        a, b = (tensor.to(out.device, out.dtype, non_blocking=True) for tensor in (a, b))
        low = linear(x.to(out.dtype), a)
        # into the linear's fresh output: no second one of its size, and one rounding
        out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t(), alpha=scale)
        return out

    return add
