"""An engine for tests of everything around the model: quick, with real files, and it does as it is told."""

import threading
from collections.abc import Mapping

import numpy as np

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, NotReady
from ltx2.media.video import write_mp4
from ltx2.request import GenerationRequest
from ltx2.settings import Settings


class QuickEngine:
    """Writes a grey clip of the asked size; takes its time as the prompt says, and fails as it says."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running = 0
        self.most_running = 0
        self.made: list[str] = []
        self.step = threading.Event()

    def load(self) -> None:
        pass

    def status(self) -> EngineStatus:
        return EngineStatus(("quick",), 0.0, 1.0)

    def close(self) -> None:
        self.step.set()

    def generate(
        self, request: GenerationRequest, _media: Mapping[str, bytes], on_progress: OnProgress, cancelled: CancelFlag
    ) -> Clip:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            on_progress(Progress("denoising", 0, 1))
            if request.prompt == "bug":
                raise ZeroDivisionError("a secret path: /etc")
            if request.prompt == "not ready":
                raise NotReady("there is no model")
            while request.prompt == "wait" and not self.step.wait(0.002):
                if cancelled():
                    raise Canceled("cancelled")
            self.settings.work_dir.mkdir(parents=True, exist_ok=True)
            path = self.settings.work_dir / f"{len(self.made)}-{request.seed}.mp4"
            grey = np.full((request.num_frames, request.height, request.width, 3), 128, np.uint8)
            size = {"width": request.width, "height": request.height, "num_frames": request.num_frames}
            write_mp4(path, [grey], fps=request.exact_fps, audio=None, crf=30, preset="ultrafast", **size)
            self.made.append(request.prompt)
            if request.prompt == "vanish":
                path.unlink()
            facts = {"audio_sample_rate": None, "seed": request.seed or 0, "steps": 1, "stages": 1, "model": "quick"}
            return Clip(path=path, fps=request.exact_fps, warnings=(), seconds={"muxing": 0.1}, **size, **facts)
        finally:
            self.running -= 1
