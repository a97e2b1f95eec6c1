"""One actor as the server's side sees it, and what it says of one generation."""

import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx2.engine import Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, Failure, GpuLost, LastFailure, LTX2Error, WorkerCrashed
from ltx2.fleet.messages import Generate
from ltx2.media.partial import written_beside

SECONDS_TO_CLEAR = 2.0
"""How long an actor may take to remove its files before it is killed."""
CHUNKS_AHEAD = 16
"""How much an actor tells before somebody has heard it, so that a clip is never in the object store as a whole."""
HINT = "send the request again; the server's log may say more"


@dataclass(eq=False)
class Replica:
    """One actor."""

    number: int
    handle: Any
    status: EngineStatus | None = None
    """None until its model is loaded."""
    is_started: bool = False
    is_busy: bool = False
    used_at: float = 0.0

    def __str__(self) -> str:
        return f"actor {self.number}"

    def cancel(self, number: int) -> None:
        self.handle.cancel.remote(number)

    def kill(self) -> None:
        """End it at once. Again changes nothing."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.handle)

    def receive(self, order: Generate, target: Path, on_progress: OnProgress, is_over: Callable[[], bool]) -> Clip:
        """Have a clip made, and write it to ``target``.

        Args:
            order: of those that one actor gets, the numbers grow.
            is_over: whether nobody waits for it any more.

        Raises:
            LTX2Error: as :class:`ltx2.engine.Engine` has it. GpuLost: and the actor is of no more use.
            ray.exceptions.RayError: the actor was lost.
        """
        import ray

        generate = self.handle.generate.options(_generator_backpressure_num_objects=CHUNKS_AHEAD)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(target) as beside, beside.open("wb") as file:
            for reference in generate.remote(order.number, order.request, order.media):
                said: Progress | bytes | Clip | Failure = ray.get(reference)
                if is_over():
                    raise Canceled("nobody waits for it")
                match said:
                    case Progress():
                        on_progress(said)
                    case bytes():
                        file.write(said)
                    case Clip():
                        return replace(said, path=target)
                    case Failure():
                        raise GpuLost(said.message, hint=said.hint) if isinstance(said, LastFailure) else said.error
        raise WorkerCrashed("the generation has ended without an answer", hint=HINT)


class Limit:
    """Says once, some time from now, that something takes too long; unless that has ended."""

    def __init__(self, reach: Callable[[], None]) -> None:
        self._reach = reach
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._has_ended = False

    def set(self, seconds: float) -> None:
        """From now on it may take so long; an earlier limit holds, too."""
        with self._lock:
            if not self._has_ended:
                self._timers.append(later(seconds, self._reached))

    def end(self) -> None:
        with self._lock:
            self._has_ended = True
        for timer in self._timers:
            timer.cancel()

    def _reached(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        self._reach()


def later(seconds: float, action: Callable[..., None], *arguments: object) -> threading.Timer:
    """Do something in so many seconds, in a thread that keeps no process from ending."""
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), action, arguments)
    timer.daemon = True
    timer.start()
    return timer


def settle(outcome: "Future[Clip]", come_to: Clip | LTX2Error) -> bool:
    """Whether it was not settled before."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(come_to, Clip):
            outcome.set_result(come_to)
        else:
            outcome.set_exception(come_to)
        return True
    return False


def clear(replicas: list[Replica]) -> None:
    """Let actors remove their files, and end them."""
    import ray

    cleared = [replica.handle.clear.remote() for replica in replicas if replica.is_started]
    if cleared:
        ray.wait(cleared, num_returns=len(cleared), timeout=SECONDS_TO_CLEAR)
    for replica in replicas:
        replica.kill()


def brief(error: Exception) -> str:
    """What Ray says in many lines, without its advice."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    said = " ".join(plain.split()).partition(" Some common causes")[0]
    return re.split(r"The actor (?:is dead|died) because ", said)[-1]
