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

from ltx2.engine import Cancelled, Clip, EngineStatus, OnProgress, Phase, Progress
from ltx2.errors import NotReady
from ltx2.media.audio import decode_audio
from ltx2.media.images import decode_image
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

if TYPE_CHECKING:
    from ltx2.model.runner import Runner

log = logging.getLogger(__name__)

GB = 1e9


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
            self._outputs()
            from ltx2.model.runner import Runner

            started = time.perf_counter()
            self._runner = Runner(self.settings)
            self._status = EngineStatus(
                loaded=(self._runner.name,),
                resident_gb=round(self._runner.resident_bytes / GB, 3),
                budget_gb=round(self._runner.budget_bytes / GB, 1),
            )
            log.info("loaded %s in %.1f s", self._runner.name, time.perf_counter() - started)
        return self._runner

    def _outputs(self) -> Path:
        folder = self.settings.outputs_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotReady(
                f"the folder for results cannot be made: {error.strerror}",
                hint="set LTX2_DATA_DIR to a folder that this user can write",
            ) from error
        return folder

    def status(self) -> EngineStatus:
        return self._status

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: Cancelled,
    ) -> Clip:
        clock = _Clock(on_progress)
        clock.report("loading")
        settings = self.settings
        images = {
            keyframe.image: decode_image(
                media[keyframe.image], field=keyframe.image, max_megapixels=settings.max_image_megapixels
            )
            for keyframe in request.keyframes
        }
        track = request.driving_audio
        sound = (
            decode_audio(media[track.source], field=track.source, max_seconds=settings.max_audio_seconds)
            if track
            else None
        )
        runner = self._load()
        target = self._outputs() / f"{uuid.uuid4().hex}.mp4"
        made = runner.run(request, images, sound, target, clock.report, cancelled)
        return Clip(
            path=target,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            fps=request.exact_fps,
            audio_sample_rate=made.audio_sample_rate,
            seed=made.seed,
            steps=made.steps,
            model=runner.name,
            warnings=made.warnings,
            seconds=clock.finish(),
        )


class _Clock:
    """Passes progress on and adds up the wall seconds of each phase."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._seconds: dict[str, float] = {}
        self._phase: Phase | None = None
        self._since = time.perf_counter()

    def report(self, phase: Phase, step: int = 0, steps: int = 0) -> None:
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
