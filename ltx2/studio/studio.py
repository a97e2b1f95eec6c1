"""The one place every dialect brings its requests to."""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ltx2.engine import Clip, Engine, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, Internal, LTX2Error, QueueFull
from ltx2.payload import Sources
from ltx2.request import GenerationRequest
from ltx2.settings import Settings
from ltx2.studio.intake import take_in

log = logging.getLogger(__name__)

SEED_BITS = 32
"""Random seeds stay small enough to be read aloud, and exact in JavaScript."""


def _ignore(_progress: Progress) -> None:
    pass


class Studio:
    """Takes requests and runs them one at a time on a thread of their own.

    Args:
        settings: limits.
        engine: makes the clips; only ever called from that one thread, but for ``status``.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._accepted = 0
        self._running = 0

    def start(self) -> None:
        """Begin to load the model, without waiting for it."""
        self._thread.submit(self._load)

    def load(self) -> None:
        """Load the model and wait for it. A failure is logged, and told again to every request."""
        self._thread.submit(self._load).result()

    def close(self) -> None:
        """Wait for the generation in hand and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def status(self) -> EngineStatus:
        return self._engine.status()

    @property
    def queue_len(self) -> int:
        """Requests that wait for their turn."""
        return self._accepted - self._running

    async def run(
        self, request: GenerationRequest, sources: Sources, on_progress: OnProgress = _ignore
    ) -> tuple[GenerationRequest, Clip]:
        """Make the clip of a request. The caller owns the file.

        Cancelling the awaiting task cancels the generation: this returns when it has ended and its file,
        if there was one, is gone.

        Args:
            request: checked against no limits yet.
            sources: where the media it names come from.
            on_progress: called from another thread.

        Returns:
            The request with the seed that was used, and the clip.

        Raises:
            LTX2Error: what the caller should see.
        """
        if self.queue_len >= self.settings.queue_limit:
            raise QueueFull(f"{self.queue_len} requests are waiting already", hint="try again later")
        self._accepted += 1
        try:
            return await self._run(request, sources, on_progress)
        finally:
            self._accepted -= 1

    async def _run(
        self, request: GenerationRequest, sources: Sources, on_progress: OnProgress
    ) -> tuple[GenerationRequest, Clip]:
        media = await asyncio.to_thread(take_in, request, sources, self.settings)
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbits(SEED_BITS)})
        on_progress(Progress("queued"))
        stop = threading.Event()
        future = self._thread.submit(self._generate, request, media, on_progress, stop.is_set)
        turn = asyncio.wrap_future(future)
        try:
            return request, await asyncio.shield(turn)
        except asyncio.CancelledError:
            stop.set()
            future.cancel()
            # the model must be free before anyone is told so, however often we are told to hurry
            while not turn.done():
                try:
                    await asyncio.wait([turn])
                except asyncio.CancelledError:
                    continue
            if not turn.cancelled() and turn.exception() is None:
                turn.result().path.unlink(missing_ok=True)
            raise

    def _load(self) -> None:
        try:
            self._engine.load()
        except LTX2Error as error:
            log.error("the model cannot be used: %s", error)  # noqa: TRY400 - a wrong setting has no traceback
        except Exception:
            log.exception("the model cannot be used")

    def _generate(
        self,
        request: GenerationRequest,
        media: dict[str, bytes],
        on_progress: OnProgress,
        cancelled: Callable[[], bool],
    ) -> Clip:
        if cancelled():
            raise Canceled("the request was cancelled")
        self._running += 1
        try:
            clip = self._engine.generate(request, media, on_progress, cancelled)
        except LTX2Error as error:
            log.info("%s ended: %s", _outline(request), error.code)
            raise
        except Exception:
            log.exception("a generation failed")
            raise Internal("the generation failed; the server's log says why") from None
        else:
            log.info("%s, %d steps: %.2f s", _outline(request), clip.steps, sum(clip.seconds.values()))
            return clip
        finally:
            self._running -= 1


def _outline(request: GenerationRequest) -> str:
    """A request in a log line: nothing that anybody wrote, said or showed."""
    return f"{request.mode} {request.width}x{request.height}, {request.num_frames} frames, seed {request.seed}"
