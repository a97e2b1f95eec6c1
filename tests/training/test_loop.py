"""Training that is interrupted goes on as if it had not been."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import loop
from training.loop import Run, averaged
from training.muon import orthogonal

Start = Callable[[int], Run]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "RUNS", tmp_path)

    def begin(steps: int, name: str = "line") -> Run:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

        def loss(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            given = torch.from_numpy(rng.normal(size=(16, 4))).float()
            error = (module(given)[:, 0] - given.sum(1)).square().mean()
            return error, {"error": float(error.detach())}

        return Run(name, module, loss, steps, rate=0.01, fall=0.5)

    yield begin
    signal.signal(signal.SIGTERM, handler)


def test_a_run_that_was_ended_goes_on_to_the_very_same_weights(start: Start) -> None:
    whole = start(12, "whole")
    assert whole.train()
    ended = start(12)
    losses = ended.loss

    def interrupted(step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(step, rng)

    ended.loss = interrupted
    assert not ended.train()
    rest = start(12)
    assert rest.step == 5
    assert rest.train()
    for name, value in rest.module.state_dict().items():
        assert torch.equal(value, whole.module.state_dict()[name])
    assert all(torch.equal(value, whole.average[name]) for name, value in rest.average.items())


def test_a_finished_run_does_nothing_and_one_without_time_is_not_done(start: Start) -> None:
    assert start(3).train()
    again = start(3)
    before = {name: value.clone() for name, value in again.module.state_dict().items()}
    assert again.train()
    assert all(torch.equal(value, before[name]) for name, value in again.module.state_dict().items())
    late = start(10, "late")
    late.minutes = 0.0
    assert not late.train()


def test_it_learns_and_the_average_is_kept(start: Start) -> None:
    run = start(300)
    first = float(run.loss(0, np.random.default_rng(0))[0].detach())
    run.train()
    last = float(run.loss(0, np.random.default_rng(0))[0].detach())
    assert last < 0.1 * first
    kept = averaged("line")
    assert kept.keys() == run.module.state_dict().keys()
    assert not torch.equal(kept["0.weight"], run.module.state_dict()["0.weight"])


def test_a_gradient_that_is_none_ends_it_with_the_step(start: Start) -> None:
    run = start(5)
    module = run.module
    run.loss = lambda _step, _rng: (next(module.parameters()).sum() * float("nan"), {})
    with pytest.raises(FloatingPointError, match="line: the gradient of step 0 is nan"):
        run.train()


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_muons_step_has_singular_values_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.5
