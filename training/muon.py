"""Muon: steps of momentum made orthogonal, for matrices and kernels; all other weights have AdamW.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the step's size follows Liu et al. 2025
(arXiv 2502.16982), so that both kinds of weights share one learning rate. On a CPU it halves the steps that are needed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
LARGEST = 256
"""Rows or columns, whichever are fewer: with more, a step costs more than it saves."""
NOT_MATRICES = ("embed", "table", "register", "question", "lm_head")
"""In names of weights that look like matrices, and are rows of something."""


class Muon(torch.optim.Optimizer):
    """Muon for some weights, of two dimensions or more; all but the first are taken as one."""

    def __init__(self, weights: Iterable[Tensor], rate: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(weights, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonal(ahead) * (0.2 * max(ahead.shape) ** 0.5)
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all alike, by Newton and Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    now = (matrix.T if tall else matrix).bfloat16()
    now = now / (now.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = now @ now.T
        now = a * now + (b * square + c * square @ square) @ now
    found: Tensor = (now.T if tall else now).float()
    return found


def optimizers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for what is a matrix, AdamW for the rest."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            is_matrix = weight.ndim >= 2 and 1 < min(weight.flatten(1).shape) <= LARGEST
            (matrices if is_matrix and not any(part in name for part in NOT_MATRICES) else rest).append(weight)
    found: list[torch.optim.Optimizer] = [Muon(matrices, rate)] if matrices else []
    if rest:
        found.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))
    return found
