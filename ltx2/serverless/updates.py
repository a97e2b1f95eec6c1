"""Progress as RunPod's status shows it."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ltx2.engine import Progress

SECONDS_BETWEEN: Final = 1.5
SECONDS_TO_FLUSH: Final = 30.0
"""RunPod's client tries a failed update again for some seconds, and waits for an answer up to ten minutes. An update
that comes after the result may make a finished job look unfinished, so it is waited for; but a caller who waits for
the clip should get it, even if somebody has lost an update."""
LAST_PHASES: Final = ("decoding", "muxing")
"""No update is sent so near to the result: it would be old before it is seen."""

Send = Callable[[dict[str, Any], dict[str, Any]], None]


class Updates:
    """Tells RunPod where one job is: called with each progress, from any thread.

    At most one update is on its way, so that none overtakes another: RunPod's client sends each by a thread of its own.

    Args:
        job: as RunPod gave it.
        send: begins to send an update; without, by RunPod's client.
    """

    def __init__(self, job: dict[str, Any], send: Send | None = None) -> None:
        if send is None:
            # importing it reads the environment, which has to be checked first
            from runpod.serverless import progress_update

            send = progress_update
        self._job = job
        self._send = send
        self.seconds_between = SECONDS_BETWEEN
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stretch in LAST_PHASES or now - self._last < self.seconds_between or _on_their_way():
            return
        self._last = now
        self._send(self._job, {"phase": progress.phase, "step": progress.step, "steps": progress.steps})

    @staticmethod
    def finish() -> None:
        """Wait until RunPod's client has sent what it was given, but not for ever."""
        deadline = time.monotonic() + SECONDS_TO_FLUSH
        for thread in _on_their_way():
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


def _on_their_way() -> list[threading.Thread]:
    """The threads of RunPod's client that send an update, known by their name.

    To be removed once runpod can be asked to wait, or sends updates in order.
    """
    return [thread for thread in threading.enumerate() if thread.name.endswith("(_thread_target)")]
