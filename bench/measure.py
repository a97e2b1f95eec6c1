"""What a piece of work costs, and a line of the table that compares two."""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

Input = TypeVar("Input")


@dataclass(frozen=True)
class Row:
    """One line of the table: less is better."""

    name: str
    stock: float
    ours: float
    unit: str
    guard: float | None = None
    """How many times less ours must be; None: shown only."""

    @property
    def ratio(self) -> float:
        return self.stock / self.ours if self.ours else float("inf")

    @property
    def meets_guard(self) -> bool:
        return self.guard is None or self.ratio >= self.guard


@dataclass(frozen=True)
class Cost:
    """What one piece of work took."""

    cpu_seconds: float
    """User and system, all threads."""
    wall_seconds: float
    peak_mb: float
    """Most memory held at any time above what was held when the work began."""


def cost(prepare: Callable[[], Input], work: Callable[[Input], object], runs: int = 2) -> Cost:
    """The least that ``work(prepare())`` took, the work alone, in a fresh process each time. Linux only.

    The least, because whatever else the machine does can only add. Both are functions of a module, whose
    imports are not counted.
    """
    costs = []
    for _ in range(runs):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            costs.append(process.submit(_measure, prepare, work).result())
    return Cost(
        cpu_seconds=min(cost.cpu_seconds for cost in costs),
        wall_seconds=min(cost.wall_seconds for cost in costs),
        peak_mb=min(cost.peak_mb for cost in costs),
    )


def _measure(prepare: Callable[[], Input], work: Callable[[Input], object]) -> Cost:
    given = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # the peak memory starts anew from what is held now
    held, cpu, wall = _memory_mb("VmRSS"), _cpu_seconds(), time.perf_counter()
    work(given)
    return Cost(
        cpu_seconds=_cpu_seconds() - cpu,
        wall_seconds=time.perf_counter() - wall,
        peak_mb=_memory_mb("VmHWM") - held,
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory_mb(name: str) -> float:
    """VmRSS: memory held now. VmHWM: the most this process ever held (``ru_maxrss`` would count its parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(name)
