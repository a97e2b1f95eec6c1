"""The engine that runs the model in this process.

Importing this module is cheap: torch and the model arrive with ``load``.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ltx2.engine import CancelFlag, Cancelled, Clip, EngineStatus, OnProgress, Phase, Progress
from ltx2.errors import Canceled, NotReady
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

if TYPE_CHECKING:
    from ltx2.model.runner import Runner

log = logging.getLogger(__name__)

GB = 1e9
STALE_SECONDS = 24 * 3600
"""No generation takes this long."""


class LocalEngine:
    """Implements :class:`ltx2.engine.Engine`. Call it from one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._runner: Runner | None = None
        self._status = EngineStatus((), 0.0, round(psutil.virtual_memory().total / GB, 1))

    def load(self) -> None:
        self._load()

    def _load(self) -> "Runner":
        if self._runner is None:
            self._sweep()
            from ltx2.model.runner import load

            started = time.perf_counter()
            self._runner = load(self.settings)
            self._status = EngineStatus(
                loaded=(self._runner.name,),
                resident_gb=round(self._runner.resident_bytes / GB, 3),
                budget_gb=round(self._runner.budget_bytes / GB, 1),
            )
            log.info("loaded %s in %.1f s", self._runner.name, time.perf_counter() - started)
        return self._runner

    def _work_dir(self) -> Path:
        folder = self.settings.work_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotReady(
                f"the folder for clips cannot be made: {error.strerror}",
                hint="set LTX2_DATA_DIR to a folder that this user can write",
            ) from error
        return folder

    def _sweep(self) -> None:
        """Remove what processes that were killed have left; others may be writing to the same folder now."""
        for left in self._work_dir().iterdir():
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink(missing_ok=True)
                log.info("removed %s, left by a process that ended early", left.name)

    def status(self) -> EngineStatus:
        return self._status

    def close(self) -> None:
        self._runner = None

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        clock = _Clock(on_progress, cancelled)
        clock.report("loading")
        runner = self._load()
        target = self._work_dir() / f"{uuid.uuid4().hex}.mp4"
        made = runner.run(request, media, target, clock.report, cancelled)
        return Clip(
            path=target,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            fps=request.exact_fps,
            audio_sample_rate=made.audio_sample_rate,
            seed=request.seed or 0,
            steps=made.steps,
            stages=made.stages,
            model=runner.name,
            warnings=made.warnings,
            seconds=clock.finish(),
        )


class _Clock:
    """Passes progress on, adds up the wall seconds of each phase, and ends a cancelled generation between them."""

    def __init__(self, on_progress: OnProgress, cancelled: Cancelled) -> None:
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._seconds: dict[str, float] = {}
        self._phase: Phase | None = None
        self._since = time.perf_counter()

    def report(self, phase: Phase, step: int = 0, steps: int = 0) -> None:
        if self._cancelled():
            raise Canceled("the generation was cancelled")
        if phase != self._phase:
            self.finish()
            self._phase = phase
        self._on_progress(Progress(phase, step, steps))

    def finish(self) -> dict[str, float]:
        """The seconds of all phases so far."""
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now
        return dict(self._seconds)
