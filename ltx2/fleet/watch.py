"""How one generation waits: until something has happened, or it was cancelled, or the server ends."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ltx2.engine import CancelFlag
from ltx2.errors import Canceled, EngineDown

T = TypeVar("T")


class Watch:
    """Of one generation, and for its thread; ``close`` is for any other."""

    def __init__(self, cancelled: CancelFlag) -> None:
        self._cancelled = cancelled
        self._is_closed = False
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        """Ends what is awaited now."""
        cancelled.when_set(self._wake)

    def close(self) -> None:
        """The server ends, and the generation goes on without it."""
        self._is_closed = True
        self._wake()

    def check(self) -> None:
        """Go on, unless there is a reason not to.

        Raises:
            Canceled: the caller has withdrawn it.
            EngineDown: the server ends.
        """
        if self._cancelled():
            raise Canceled("the generation was cancelled")
        if self._is_closed:
            raise closing()

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until there is a reason to stop. Raises as :meth:`check`."""
        self._woken.wait(seconds)
        self.check()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something in a loop of its own, and end it when there is a reason to stop. Raises as :meth:`check`."""
        try:
            return asyncio.run(self._attached(work))
        except asyncio.CancelledError:
            self.check()
            raise

    async def _attached(self, work: Coroutine[Any, Any, T]) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        self._attach(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            return await task
        finally:
            self._attach(None)

    def _attach(self, stop: Callable[[], object] | None) -> None:
        with self._lock:
            self._stop = stop
            if stop and self._woken.is_set():
                stop()

    def _wake(self) -> None:
        with self._lock:  # as long as it is held, the loop that is to be told is there
            self._woken.set()
            if self._stop:
                self._stop()


def closing() -> EngineDown:
    """Why nothing begins or goes on when the server ends."""
    return EngineDown("the server is being shut down", hint="send the request again")
