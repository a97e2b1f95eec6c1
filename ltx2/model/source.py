"""What a checkpoint is to the rest of the program: parts that can be loaded one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ltx2.model.parts import Module, Part
from ltx2.recipes import Generation


class Parts(Protocol):
    """Some parts of a checkpoint on this machine's disk, in whatever layout."""

    def parts(self) -> frozenset[Part]:
        """The parts there are."""

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


@dataclass(frozen=True)
class Enhancer:
    """What writes prompts out."""

    tokenizer: Any
    """With a chat template."""
    image_processor: Any | None = None
    """Of transformers: prepares images; without it the writer sees none."""
    load: Callable[[torch.dtype], Module] | None = None
    """Reads the model that writes into host memory; None where that is the text encoder."""
    parameters: int = 0
    """How many weights that model has."""


class Source(Parts, Protocol):
    """One checkpoint."""

    generation: Generation
    num_layers: int
    """Depth of the transformer."""
    stored_fp8: bool
    """Whether the linears of the transformer's blocks are stored in float8."""

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, padding on the left."""

    def enhancer(self) -> Enhancer:
        """What writes prompts out. Its model is not read yet.

        Raises:
            NotReady: something that it needs is missing or damaged; the message says what, the hint what to do.
        """


class Joined:
    """A checkpoint, and a source of parts that it does not have or that are to be taken instead of its own."""

    def __init__(self, checkpoint: Source, other: Parts) -> None:
        self._checkpoint, self._other = checkpoint, other
        self.generation = checkpoint.generation
        self.num_layers = checkpoint.num_layers
        self.stored_fp8 = checkpoint.stored_fp8

    def parts(self) -> frozenset[Part]:
        """The parts of both."""
        return self._checkpoint.parts() | self._other.parts()

    def parameters(self, part: Part) -> int:
        """How many weights a part has, known without reading them."""
        return self._of(part).parameters(part)

    def load(self, part: Part, dtype: torch.dtype, *, keep_fp8: bool = False) -> Module:
        """Read a part into host memory. See :meth:`Source.load`."""
        return self._of(part).load(part, dtype, keep_fp8=keep_fp8)

    def tokenizer(self) -> Any:
        """The checkpoint's."""
        return self._checkpoint.tokenizer()

    def enhancer(self) -> Enhancer:
        """The checkpoint's."""
        return self._checkpoint.enhancer()

    def _of(self, part: Part) -> Parts:
        return self._other if part in self._other.parts() else self._checkpoint
