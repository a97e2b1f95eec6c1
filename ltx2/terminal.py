"""Progress for people at a terminal."""

import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from ltx2.engine import PHASES, Progress


class TerminalProgress:
    """A progress bar over one generation: the phase by name, and the steps while denoising.

    Silent where standard error is not a terminal. Use it as a context, and call it with each progress.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._bar = tqdm(
            total=len(PHASES) - 1,
            bar_format="{desc:<18}|{bar}| {elapsed}",
            leave=False,
            file=sys.stderr,
            disable=None,  # None: off where there is no terminal
        )
        return self

    def __call__(self, progress: Progress) -> None:
        part = progress.step / progress.steps if progress.steps else 0.0
        self._bar.n = PHASES.index(progress.stretch) + part
        self._bar.set_description_str(str(progress))  # this also draws the bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
