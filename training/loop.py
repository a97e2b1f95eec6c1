"""One way to train, for every part: resumable to the step, kept by write-and-rename, curves as lines of JSON."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.muon import optimizers

RUNS = Path(__file__).parent / "runs"
"""Not in the repository: states to go on from, and curves."""
SAVE_SECONDS = 120.0
LOG_SECONDS = 10.0
HALF_LIFE = 0.999
"""Of the averaged weights, a step."""

Loss = Callable[[int, np.random.Generator], tuple[Tensor, Mapping[str, float]]]
"""A step's number and its own generator → loss, and figures for the curve."""


@dataclass
class Run:
    """The training of one part.

    Args:
        name: of the part; its state is ``runs/{name}.pt``, its curve ``runs/{name}.jsonl``.
        module: what is trained. All of its parameters that require gradients are.
        loss: of a step.
        steps: in all, over every session.
        rate: of learning, at its highest; it warms up for 200 steps and falls over the last ``fall``.
        fall: fraction of ``steps``.
        seed: of everything that is drawn; a step draws the same whether the run was interrupted or not.
        minutes: after which this session ends, wherever it is.
    """

    name: str
    module: nn.Module
    loss: Loss
    steps: int
    rate: float
    fall: float = 0.3
    seed: int = 2
    minutes: float = float("inf")
    average: dict[str, Tensor] = field(init=False)
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.optimizers = optimizers(self.module, self.rate)
        self.average = {name: value.detach().clone() for name, value in self._weights()}
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.average, self.step = state["average"], state["step"]

    @property
    def path(self) -> Path:
        """Where the state is kept."""
        return RUNS / f"{self.name}.pt"

    def train(self) -> bool:
        """Go on until the steps are done, the minutes are over or the process is to end; whether they are done."""
        RUNS.mkdir(exist_ok=True)
        ends = saves = logs = time.monotonic()
        ends += 60 * self.minutes
        asked_to_stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: asked_to_stop.append(number))
        figures: dict[str, list[float]] = {}
        while self.step < self.steps and not asked_to_stop and (now := time.monotonic()) < ends:
            for key, figure in self._advance().items():
                figures.setdefault(key, []).append(figure)
            if now - logs > LOG_SECONDS:
                self._log(figures)
                figures, logs = {}, now
            if now - saves > SAVE_SECONDS:
                self.save()
                saves = now
        self.save()
        return self.step >= self.steps

    def _advance(self) -> dict[str, float]:
        """One step, and what is to be told of it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * self._pace()
        rng = np.random.default_rng((self.seed, self.step))
        torch.manual_seed(int(rng.integers(2**31)))
        loss, figures = self.loss(self.step, rng)
        self.module.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(f"{self.name}: the gradient of step {self.step} is {norm}.")
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(HALF_LIFE, self.step / (self.step + 10))
        for name, value in self._weights():
            self.average[name].lerp_(value.detach(), 1 - keep)
        return {"loss": float(loss.detach()), "norm": norm, **figures}

    def save(self) -> None:
        """Keep the state: complete, or as it was before."""
        state = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self.module.named_parameters() if value.requires_grad)

    def _pace(self) -> float:
        warm = min(1.0, (self.step + 1) / 200)
        left = (self.steps - self.step) / (self.fall * self.steps)
        return warm * min(1.0, max(left, 0.02))

    def _log(self, sums: Mapping[str, list[float]]) -> None:
        line: dict[str, Any] = {"step": self.step, "pace": round(self._pace(), 4)}
        line |= {key: float(f"{np.mean(values):.5g}") for key, values in sums.items()}
        text = json.dumps(line)
        print(self.name, text, flush=True)
        with self.path.with_suffix(".jsonl").open("a") as curve:
            curve.write(text + "\n")


def averaged(name: str) -> dict[str, Tensor]:
    """The averaged weights of a run so far."""
    state = torch.load(RUNS / f"{name}.pt", map_location="cpu", weights_only=True)
    return {**state["module"], **state["average"]}
