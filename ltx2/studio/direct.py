"""Requests that live as long as their callers: for the RunPod worker and the command line."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from ltx2.engine import CancelFlag, Clip, Engine, EngineStatus, OnProgress, Progress, has_lost_gpu
from ltx2.errors import Canceled, GpuLost, Internal, LTX2Error, QueueFull
from ltx2.payload import Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.intake import take_in

log = logging.getLogger(__name__)

T = TypeVar("T")

SEED_BITS = 32
"""Random seeds stay small enough to be read aloud, and exact in JavaScript."""


def _ignore(_progress: Progress) -> None:
    pass


class Direct:
    """Takes requests and runs them one at a time on a thread of their own. Nothing of them is written down.

    Args:
        settings: limits.
        engine: makes the clips; only ever called from that one thread, but for ``status``.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        # decoding what was sent must not wait for the model, nor take all cores from it
        self._intake = ThreadPoolExecutor(max_workers=2, thread_name_prefix="intake")
        self._accepted = 0
        self._running = 0

    def start(self) -> None:
        """Begin to load the model, without waiting for it."""
        self._thread.submit(self._load)

    def load(self) -> Exception | None:
        """Load the model and wait for it. A failure is logged and returned, and told again to every request."""
        return self._thread.submit(self._load).result()

    def close(self) -> None:
        """Wait for the generation in hand and end the thread."""
        self._intake.shutdown(wait=True, cancel_futures=True)
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def status(self) -> EngineStatus:
        return self._engine.status()

    @property
    def queue_len(self) -> int:
        """Requests that were accepted and are not being generated yet."""
        return self._accepted - self._running

    @asynccontextmanager
    async def run(
        self, request: GenerationRequest, sources: Sources, on_progress: OnProgress = _ignore
    ) -> AsyncIterator[tuple[GenerationRequest, Clip]]:
        """Make the clip of a request. Its file is there within the context, and gone after it unless moved.

        Cancelling the awaiting task cancels the generation, and takes effect when the model is free again.

        Args:
            request: checked against no limits yet.
            sources: where the media it names come from.
            on_progress: called from this thread and from the engine's.

        Yields:
            The request with the seed that was used, and the clip.

        Raises:
            LTX2Error: what the caller should see.
        """
        if self._accepted > self.settings.queue_limit:
            raise QueueFull(f"{self.queue_len} requests are waiting already", hint="try again later")
        self._accepted += 1
        try:
            request, clip = await self._make(request, sources, on_progress)
        finally:
            self._accepted -= 1
        try:
            yield request, clip
        finally:
            clip.path.unlink(missing_ok=True)

    async def _make(
        self, request: GenerationRequest, sources: Sources, on_progress: OnProgress
    ) -> tuple[GenerationRequest, Clip]:
        stop = CancelFlag()
        request, media = await take_in(request, sources, self.settings, self._intake)
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbits(SEED_BITS)})
        on_progress(Progress("queued"))
        made = self._thread.submit(self._generate, request, media, on_progress, stop)
        try:
            return request, await _ended(made, stop)
        except asyncio.CancelledError:
            if not made.cancelled() and made.exception() is None:
                made.result().path.unlink(missing_ok=True)  # it was finished when the cancel came
            raise

    def _load(self) -> Exception | None:
        try:
            self._engine.load()
        except LTX2Error as error:
            log.error("the model cannot be used: %s", error)  # noqa: TRY400 - a wrong setting has no traceback
            return error
        except Exception as error:
            log.exception("the model cannot be used")
            return error
        return None

    def _generate(
        self,
        request: GenerationRequest,
        media: dict[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        if cancelled():
            raise Canceled("the request was cancelled")
        self._running += 1
        try:
            clip = self._engine.generate(request, media, on_progress, cancelled)
        except LTX2Error as error:
            log.info("%s ended: %s", _outline(request), error.code)
            raise
        except Exception as error:
            log.exception("a generation failed")
            failed = GpuLost if has_lost_gpu(error) else Internal
            raise failed("the generation failed; the log says why") from None
        else:
            made = request.model_copy(update={"num_frames": clip.num_frames, "seed": clip.seed})
            log.info("%s, %d steps: %.2f s", _outline(made), clip.steps, clip.total_seconds)
            return clip
        finally:
            self._running -= 1


async def _ended(work: Future[T], stop: CancelFlag) -> T:
    """Await work in another thread. However often the awaiting task is cancelled, the work has ended after this."""
    waiting = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        stop.set()
        work.cancel()
        while not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()  # nobody else will ask for it
        raise


def _outline(request: GenerationRequest) -> str:
    """A request in a log line: nothing that anybody wrote, said or showed."""
    frames = "any number of" if request.num_frames is None else request.num_frames
    return f"{request.mode} {request.width}x{request.height}, {frames} frames, seed {request.seed}"
