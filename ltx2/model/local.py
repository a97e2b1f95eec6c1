"""The engine that runs the model in this process.

Importing this module is cheap: torch and the model arrive with ``load``.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil

from ltx2.engine import CancelFlag, Clip, Clock, EngineStatus, OnProgress
from ltx2.request import GenerationRequest
from ltx2.retry import without_flaws
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
            from ltx2.media.encoders import check_encoder
            from ltx2.model.runner import load

            check_encoder(self.settings.video_encoder)
            started = time.perf_counter()
            self._runner = load(self.settings)
            self._status = EngineStatus(
                loaded=(self._runner.name,),
                resident_gb=round(self._runner.resident_bytes / GB, 3),
                budget_gb=round(self._runner.budget_bytes / GB, 1),
                model=self._runner.components.facts,
            )
            log.info("loaded %s in %.1f s", self._runner.name, time.perf_counter() - started)
        return self._runner

    def _sweep(self) -> None:
        """Remove what processes that were killed have left; others may be writing to the same folder now."""
        for left in self.settings.make_work_dir().iterdir():
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
        clock = Clock(on_progress, cancelled)
        return without_flaws(request, lambda request: self._make(request, media, clock, cancelled))

    def _make(
        self, request: GenerationRequest, media: Mapping[str, bytes], clock: Clock, cancelled: CancelFlag
    ) -> Clip:
        clock.report("loading")
        runner = self._load()
        target = self.settings.make_work_dir() / f"{uuid.uuid4().hex}.{request.output.format}"
        made = runner.run(request, media, target, clock.report, cancelled)
        return Clip(
            path=target,
            width=request.width,
            height=request.height,
            num_frames=made.num_frames,
            fps=request.exact_fps,
            audio_sample_rate=made.audio_sample_rate,
            seed=request.seed or 0,
            steps=made.steps,
            stages=made.stages,
            model=runner.name,
            prompt=None if made.prompt == request.prompt else made.prompt,
            warnings=made.warnings,
            provenance=made.provenance,
            quality=made.quality,
            seconds=clock.finish(),
        )
