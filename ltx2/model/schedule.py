"""The noise levels of a generation.

Computed in float32 step by step as the official code does: a sigma that is off by one unit in the last
place moves the timestep embedding enough to show in the fifth digit of the result.
"""

import math

import torch

from ltx2.recipes import DEV_SHIFT, DEV_TERMINAL, DISTILLED_SIGMAS, Kind

Sigmas = tuple[float, ...]
"""Falling noise levels, one more than there are steps; the last is 0."""


def sigmas_for(kind: Kind, steps: int) -> Sigmas:
    """The schedule of a checkpoint of this kind for this many steps, from 1 down to 0."""
    return distilled_sigmas(steps) if kind == "distilled" else dev_sigmas(steps)


def dev_sigmas(steps: int) -> Sigmas:
    """The shifted schedule of the dev checkpoints, stretched so that the last step starts at 0.1."""
    if steps == 1:
        return (1.0, 0.0)  # one noise level leaves nothing to stretch
    shift = math.exp(DEV_SHIFT)
    linear = torch.linspace(1.0, 0.0, steps + 1)[:-1]
    removed = 1 - shift / (shift + (1 / linear - 1))
    stretched = 1 - removed / (removed[-1] / (1 - DEV_TERMINAL))
    return (*stretched.tolist(), 0.0)


def distilled_sigmas(steps: int) -> Sigmas:
    """The distilled schedule, interpolated linearly over the step index when ``steps`` is not 8."""
    last = len(DISTILLED_SIGMAS) - 1
    if steps == last:
        return DISTILLED_SIGMAS
    sigmas = []
    for step in range(steps + 1):
        left, rest = divmod(step * last, steps)
        low, high = DISTILLED_SIGMAS[left], DISTILLED_SIGMAS[min(left + 1, last)]
        sigmas.append(low + (high - low) * (rest / steps))
    return tuple(sigmas)
