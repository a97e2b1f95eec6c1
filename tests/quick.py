"""For tests of everything around the model: an engine that is quick, writes real files and does as it is told."""

import asyncio
import functools
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ltx2.engine import CancelFlag, Clip, EngineStatus, ModelFacts, OnProgress, Progress
from ltx2.errors import Canceled, EngineDown, NotReady, WorkerCrashed
from ltx2.media.video import write_video
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.studio import Studio

LONG = 8
"""Denoising steps of prompts that begin with "steps"; others have one."""
LONGEST = 30.0
"""Seconds that one test in a loop may take."""


class QuickEngine:
    """Writes a grey clip of the asked size; takes its time as the prompt says, and fails as it says.

    Prompts: "wait" until ``step`` is set (and hear no cancel while ``deaf`` is), "elsewhere" (the same, before its turn
    has come on another machine), "bug", "not ready", "crash",
    "crash once", "vanish" (a clip whose file is gone), "gone" (once ``step`` is set the engine is down; hears no
    cancel before). With "steps " before it, the same in the middle of eight steps, and every phase is told.
    """

    def __init__(self, settings: Settings, seats: int = 1) -> None:
        self.settings = settings
        self.seats = seats
        self.fault: str | None = None
        """Set: it is down, and comes back once this is None again."""
        self.facts: ModelFacts | None = None
        """What is told of the model."""
        self.unlucky: str | None = None
        """A prompt that alone finds it down."""
        self.loaded = threading.Event()
        self.unnoticed = False
        """Its status does not say that it is down."""
        self._counting = threading.Lock()
        self.running = 0
        self.most_running = 0
        self.begun: list[str] = []
        self.made: list[str] = []
        self.media: list[Mapping[str, bytes]] = []
        self.step = threading.Event()
        self.deaf = threading.Event()
        self._closed = threading.Event()

    def load(self) -> None:
        self.loaded.set()

    def status(self) -> EngineStatus:
        fault = None if self.unnoticed else self.fault
        known = {"fault": fault, "recovers": True, "seats": self.seats, "model": self.facts}
        return EngineStatus(("quick",), 0.0, 1.0, **known)

    def close(self) -> None:
        self._closed.set()

    def generate(
        self, request: GenerationRequest, media: Mapping[str, bytes], on_progress: OnProgress, cancelled: CancelFlag
    ) -> Clip:
        with self._counting:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.begun.append(request.prompt)
            self.media.append(media)
        try:
            if self.fault is not None or request.prompt == self.unlucky:
                raise EngineDown(self.fault or "not for this one")
            self._denoise(request.prompt, on_progress, cancelled)
            self.settings.work_dir.mkdir(parents=True, exist_ok=True)
            path = self.settings.work_dir / f"{uuid.uuid4().hex}.mp4"
            grey = np.full((request.num_frames, request.height, request.width, 3), 128, np.uint8)
            size = {"width": request.width, "height": request.height, "num_frames": request.num_frames}
            write_video(path, [grey], fps=request.exact_fps, audio=None, crf=30, preset="ultrafast", **size)
            self.made.append(request.prompt)
            if request.prompt == "vanish":
                path.unlink()
            facts = {"audio_sample_rate": None, "seed": request.seed or 0, "steps": 1, "stages": 1, "model": "quick"}
            return Clip(path=path, fps=request.exact_fps, warnings=(), seconds={"muxing": 0.1}, **size, **facts)
        finally:
            with self._counting:
                self.running -= 1

    def _denoise(self, prompt: str, on_progress: OnProgress, cancelled: CancelFlag) -> None:
        command = prompt.removeprefix("steps ")
        if prompt == command != "steps":
            on_progress(Progress("queued") if command == "elsewhere" else Progress("denoising", 0, 1))
            self._obey(prompt, command, cancelled)
            return
        on_progress(Progress("loading"))
        on_progress(Progress("encoding"))
        for step in range(LONG + 1):
            on_progress(Progress("denoising", step, LONG))
            time.sleep(0.001)
            if cancelled() and not self.deaf.is_set():
                raise Canceled("cancelled")
            if step == LONG // 2:
                self._obey(prompt, command, cancelled)
        on_progress(Progress("decoding"))
        on_progress(Progress("muxing"))

    def _obey(self, prompt: str, command: str, cancelled: CancelFlag) -> None:
        if command == "bug":
            raise ZeroDivisionError("a secret path: /etc")
        if command == "not ready":
            raise NotReady("there is no model")
        if command == "crash" or (command == "crash once" and self.begun.count(prompt) == 1):
            raise WorkerCrashed("the process that holds the model ended")
        if command == "gone":
            self.step.wait()
            raise EngineDown("gone")
        while command in ("wait", "elsewhere") and not self.step.wait(0.002):
            if cancelled() and not self.deaf.is_set():
                raise Canceled("cancelled")
            if self._closed.is_set():
                raise WorkerCrashed("the server was shut down")
        if cancelled():
            raise Canceled("cancelled")


@asynccontextmanager
async def running_studio(folder: Path, *, seats: int = 1, **settings: Any) -> AsyncIterator[tuple[Studio, QuickEngine]]:
    """A studio that takes requests. What waits in its engine is let go at the end."""
    limits = Settings(data_dir=folder, **settings)
    engine = QuickEngine(limits, seats)
    studio = Studio(limits, engine)
    await studio.start()
    try:
        yield studio, engine
        assert not [task for task in studio._tasks if task.done()], "a task of the studio's own has died"
    finally:
        engine.step.set()
        await studio.close()


async def until(happened: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that happens soon, or fail."""
    deadline = time.monotonic() + 10
    while True:
        answer = happened()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.002)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that needs an event loop. What fails in it without anybody to tell fails the test."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        unheard: list[dict[str, Any]] = []

        async def heard() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
            async with asyncio.timeout(LONGEST):
                await test(*arguments, **fixtures)

        asyncio.run(heard())
        assert unheard == []

    return run
