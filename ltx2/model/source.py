"""What a checkpoint is to the rest of the program: parts that can be loaded one after the other."""

from typing import Any, Protocol

import torch

from ltx2.model.parts import Module, Part
from ltx2.recipes import Generation


class Source(Protocol):
    """One checkpoint on this machine's disk, in whatever layout."""

    generation: Generation
    num_layers: int
    """Depth of the transformer."""
    stored_fp8: bool
    """Whether the linears of the transformer's blocks are stored in float8."""

    def parts(self) -> frozenset[Part]:
        """The parts it has."""

    def parameters(self, part: Part) -> int:
        """How many weights a part has, known without reading them."""

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:
        """Read a part into host memory, in eval mode and without gradients.

        Args:
            part: one of ``parts()``.
            dtype: of all its floating-point weights, those the checkpoint keeps in float32 included.
            keep_fp8: leave float8 linears as they are stored, as :class:`ltx2.model.fp8.Fp8Linear`,
                instead of dequantising them.

        Raises:
            NotReady: the part is missing, damaged, or not what it should be; the message says which file.
        """

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, padding on the left."""
