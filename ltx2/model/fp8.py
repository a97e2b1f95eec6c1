"""Linears in float8: weights of one byte and, on Hopper and newer, matrix products at twice the speed.

The format is e4m3: three bits of mantissa, values up to 448. A tensor is stored as float8 values and one float32
scale, ``tensor = values * scale``.

A layer works in one of two ways. As *storage* its weight is turned back into the compute dtype for every call: half
the memory, the arithmetic of bf16. With *compute* the activation is quantised too and the product is one of float8
values: that is what is faster. Its sums are float32 on a CPU; on Hopper partial sums have fewer bits.
"""

import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from ltx2.model.parts import Module

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0
"""The largest e4m3 value."""
TINIEST: Final = torch.finfo(torch.float32).tiny
MULTIPLE: Final = 16
"""What both dimensions of a weight must be multiples of for the GPU's float8 product."""
FIRST_CAPABLE: Final = (8, 9)
"""The compute capability from which on a GPU multiplies float8: Ada, Hopper and newer."""
EDGES_FROM: Final = 9
"""From this depth on a transformer can spare its first and last block from quantising."""

_BLOCK_LINEAR: Final = re.compile(
    r"transformer_blocks\.\d+\.(\w*attn\d?\.to_(q|k|v|out\.0)|(audio_)?ff\.net\.(0\.proj|2))"
)
_TEXT_LAYER: Final = re.compile(r"(^|\.)layers\.\d+\.")
_GATES: Final = "to_gate_logits"


def scale_for(x: Tensor) -> Tensor:
    """The scale that makes the largest magnitude of a tensor the largest float8 value: float32, without dimensions.

    Never 0, so that a tensor of zeros can be divided by it.
    """
    largest: Tensor = torch.linalg.vector_norm(x, float("inf"))
    return (largest.float() / LARGEST).clamp_min(TINIEST)


def in_range(x: Tensor, scale: Tensor) -> Tensor:
    """``x / scale`` clamped to ±448: what may be cast to float8.

    The cast itself gives NaN for anything larger, depending on the device: one such activation and the whole clip
    is black.
    """
    return x.div(scale).clamp_(-LARGEST, LARGEST)


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """The float8 values of a tensor for a given scale; what is out of range becomes the largest value."""
    return in_range(x, scale).to(FP8)


class Fp8Linear(nn.Module):
    """A linear with a float8 weight.

    Moving it to another dtype changes its bias and what it computes in, never the stored weight or its scales.
    """

    weight: Tensor
    """``[out, in]`` float8"""
    weight_scale: Tensor
    """float32, without dimensions"""
    bias: Tensor | None
    input_scale: Tensor | None
    """The scale activations were calibrated to; float32, without dimensions. None: that of each activation."""
    compute: bool = False
    """Multiply in float8, where the dimensions allow it."""

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype, input_scale: Tensor | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("input_scale", input_scale)
        # what a matrix product is multiplied by on its way must be known to the host, without asking the device
        self._factor = float(weight_scale)

    @classmethod
    def from_weights(
        cls,
        weight: Tensor,
        weight_scale: Tensor | None,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        input_scale: Tensor | None = None,
    ) -> Self:
        """A layer of what a file holds.

        Args:
            weight: ``[out, in]`` float8.
            weight_scale: one number; None: the values are the weights.
            bias: ``[out]``, of any dtype.
            dtype: of what comes in and goes out.
            input_scale: one number, where the file has it.

        Raises:
            ValueError: the weight is not a matrix of float8, or a scale is not one number.
        """
        if weight.dtype != FP8 or weight.ndim != 2:
            raise ValueError(f"not a float8 matrix: {weight.dtype} {list(weight.shape)}")
        scale = torch.ones((), device=weight.device) if weight_scale is None else _scalar(weight_scale)
        return cls(weight, scale, bias, dtype, None if input_scale is None else _scalar(input_scale))

    @classmethod
    def quantised(cls, linear: nn.Linear) -> Self:
        """A layer close to an ordinary one."""
        weight = linear.weight.detach()
        scale = scale_for(weight)
        return cls(quantise(weight.float(), scale), scale, linear.bias, linear.weight.dtype, None)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` → ``[..., out]``, in the layer's dtype."""
        rows = x.to(self.dtype).reshape(-1, self.in_features)
        multiply = self._product if self.compute and self.can_compute and rows.numel() else self._dequantised
        return multiply(rows).view(*x.shape[:-1], self.out_features)

    @property
    def can_compute(self) -> bool:
        """Whether the GPU's float8 product takes a weight of this size."""
        return self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0

    def _dequantised(self, rows: Tensor) -> Tensor:
        # every float8 value is a bf16 value; multiplying the sums by the scale, not the weights, leaves them exact
        weight = self.weight.to(self.dtype).t()
        if self.bias is None:
            return torch.addmm(rows.new_empty(self.out_features), rows, weight, beta=0, alpha=self._factor)
        return torch.addmm(self.bias, rows, weight, alpha=self._factor)

    def _product(self, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        scale = scale_for(rows) if self.input_scale is None else self.input_scale
        # CUDA adds no float32 bias
        adds_bias = self.dtype in (torch.bfloat16, torch.float16)
        out: Tensor = torch._scaled_mm(  # noqa: SLF001 - the public name is newer than the oldest torch we support
            quantise(rows, scale),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=self.bias if adds_bias else None,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )
        return out if adds_bias or self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        stored = {id(tensor) for tensor in (self.weight, self.weight_scale, self.input_scale)}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in stored and moved.dtype != tensor.dtype else moved

        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._factor = float(self.weight_scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, dtype={self.dtype}"


def _scalar(number: Tensor) -> Tensor:
    if number.numel() != 1:
        raise ValueError(f"a scale of {list(number.shape)} where one number was expected")
    return number.detach().float().reshape(())


def is_block_linear(name: str) -> bool:
    """Whether a module of the transformer is one of those that bear float8.

    They are the projections of the attentions and the feed-forward layers of the blocks: nearly all weights. Gates,
    norms, embedders, adaptive norms and what leads into and out of the model are few and sensitive.
    """
    return _BLOCK_LINEAR.fullmatch(name) is not None


def quantise_blocks(transformer: Module, *, keep_edges: bool = True) -> int:
    """Store the linears of a transformer's blocks in float8, in place and one after the other.

    Args:
        transformer: what is float8 already stays as it is.
        keep_edges: leave the first and the last block alone where there are more than eight: errors made there
            weigh most.

    Returns:
        How many layers were quantised.
    """
    depth = len(transformer.transformer_blocks)
    edges = (0, depth - 1) if keep_edges and depth >= EDGES_FROM else ()
    kept = tuple(f"transformer_blocks.{index}." for index in edges)
    return _replace(transformer, lambda name: is_block_linear(name) and not name.startswith(kept))


def store_linears(module: Module, skip: Collection[str] = ("vision", "audio")) -> int:
    """Store the linears of a text encoder's layers in float8, in place and one after the other.

    Its embeddings and its head are not in the layers and stay as they are.

    Args:
        module: a language model, alone or with towers for other media.
        skip: words in the names of those towers.

    Returns:
        How many layers were quantised.
    """
    return _replace(
        module, lambda name: _TEXT_LAYER.search(name) is not None and not any(word in name for word in skip)
    )


def _replace(module: nn.Module, chosen: Callable[[str], bool]) -> int:
    # names, not modules: so that each original can go before the next one is quantised
    names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear) and chosen(name)]
    for name in names:
        linear: Any = module.get_submodule(name)
        module.set_submodule(name, Fp8Linear.quantised(linear).train(linear.training))
    return len(names)


def set_compute(module: Module, enabled: bool) -> None:
    """Have all float8 layers of a module multiply in float8, or not.

    The attentions' gates, which some files store in float8, never do: they are small, and scale whole heads.
    """
    for name, child in module.named_modules():
        if isinstance(child, Fp8Linear):
            child.compute = enabled and not name.endswith(_GATES)


def has_fp8_matmul(device: torch.device) -> bool:
    """Whether a device multiplies float8 matrices. That a CPU can does not mean that it is fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_CAPABLE
    return device.type == "cpu" and _cpu_multiplies()


@cache
def _cpu_multiplies() -> bool:
    layer = Fp8Linear.quantised(nn.Linear(MULTIPLE, MULTIPLE, dtype=torch.bfloat16))
    layer.compute = True
    try:
        layer(torch.ones(1, MULTIPLE, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True
