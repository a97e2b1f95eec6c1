"""LoRAs in training: branches beside a transformer's linears, and the file they become."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear


class Branches(nn.Module):
    """A trained branch beside each of some linears, which stay as they are.

    Args:
        transformer: what they belong to. It is not a part of this module.
        rank: of each branch.
        within: only linears whose names contain one of these; all of them without.
    """

    def __init__(self, transformer: Any, rank: int, within: Sequence[str] = ("",)) -> None:
        super().__init__()
        self._linears = {
            name: module
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear) and any(part in name for part in within)
        }
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, module in self._linears.items():
            size = min(rank, module.in_features, module.out_features)
            key = name.replace(".", "/")
            self.down[key] = nn.Parameter(torch.randn(size, module.in_features) / module.in_features**0.5)
            self.up[key] = nn.Parameter(torch.zeros(module.out_features, size))

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The transformer with its branches, for a while."""
        handles = [
            module.register_forward_hook(self._beside(name.replace(".", "/"))) for name, module in self._linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _beside(self, key: str) -> Any:
        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + linear(linear(args[0], self.down[key]), self.up[key])

        return add


def write(weights: dict[str, Tensor], path: Path) -> None:
    """A file in diffusers' layout, float16.

    Args:
        weights: of :class:`Branches`.
        path: of the file.
    """
    roles = {"down": "lora_A", "up": "lora_B"}
    tensors = {}
    for name, value in weights.items():
        role, key = name.split(".", 1)
        tensors[f"transformer.{key.replace('/', '.')}.{roles[role]}.weight"] = value.half().contiguous()
    save_file(tensors, path)
