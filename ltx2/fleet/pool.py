"""Actors of a Ray cluster, each with a model: as many as are wanted, within bounds, and new ones for those that die.

Nothing here polls. Whoever wants an actor is handed one by whoever has done with it, or is told why there is none.
"""

import itertools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import (
    Canceled,
    Failure,
    GpuLost,
    Internal,
    LTX2Error,
    NotReady,
    WorkerCrashed,
    not_in_time,
    too_long,
)
from ltx2.fleet.actor import METHODS, Actor, Said, Started
from ltx2.fleet.messages import Generate
from ltx2.fleet.replica import HINT, Limit, Replica, brief, clear, later, settle
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

SECONDS_TO_PLACE = 10.0
"""After so long without a place in the cluster, the log says that an actor waits for one."""
MOST_UNPLACED = 3
"""So many actors in a row may end before they begin: Ray gives places on a machine that is gone for a while."""


@dataclass(eq=False)
class _Waiter:
    on_progress: OnProgress
    replica: "Future[Replica]" = field(default_factory=Future)
    loading_since: float | None = None
    """None as long as no actor has its place: until then it waits as in a queue."""

    def loading(self) -> None:
        if self.loading_since is None:
            self.loading_since = time.perf_counter()
            self.on_progress(Progress("loading"))


class Pool:
    """Makes clips by actors.

    Args:
        settings: with the folder that clips are written to here.
        build: the class of an actor's engine.
        options: what Ray is to give to each actor.
        seconds_to_heed: how long after a cancel an actor is killed that goes on all the same.
        changed: told of the state of all actors together, in order.
        check: called, in some thread, when an actor was lost: the cluster may be gone, too.
    """

    def __init__(
        self,
        settings: Settings,
        build: str,
        options: Mapping[str, Any],
        *,
        seconds_to_heed: float,
        changed: Callable[[EngineStatus], None],
        check: Callable[[], None],
    ) -> None:
        import ray

        self._settings = settings
        self._make = ray.remote(Actor).options(max_concurrency=METHODS, max_restarts=0, **options)
        self._arguments = (settings, build, Path.cwd())
        self._seconds_to_heed = seconds_to_heed
        self._changed = changed
        self._check = check
        self._fewest, self._most = settings.ray_min_actors, settings.ray_max_actors
        self._lock = threading.RLock()
        self._replicas: list[Replica] = []
        self._waiters: deque[_Waiter] = deque()
        self._made = 0
        self._numbers = itertools.count(1)
        self._restarts = 0
        self._unplaced_in_a_row = 0
        self._fault: str | None = None
        self._is_ready = self._fewest == 0
        self._is_closed = False

    def load(self) -> None:
        """Start the fewest actors, and wait until a model is loaded.

        Raises:
            NotReady, WorkerCrashed: it is not.
        """
        with self._lock:
            self._grow()
            if self._fewest == 0 or any(replica.status for replica in self._replicas):
                return
            waiter = self._waiting(lambda _progress: None)
        self._give_back(waiter.replica.result())

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        """As :class:`ltx2.engine.Engine` has it."""
        replica, waited = self._taken(on_progress, cancelled)
        # only now: who asked first need not be the first to have this actor
        order = Generate(next(self._numbers), request, media)
        outcome: Future[Clip] = Future()
        limit = Limit(lambda: self._overdue(replica, outcome, cancelled))

        def cancel() -> None:
            limit.set(self._seconds_to_heed)
            replica.cancel(order.number)

        try:
            limit.set(self._settings.deadline_seconds)
            arguments = (replica, order, on_progress, outcome)
            threading.Thread(target=self._follow, args=arguments, name=str(replica), daemon=True).start()
            cancelled.when_set(cancel)
            clip = outcome.result()
        finally:
            limit.end()
            self._give_back(replica)
        return replace(clip, seconds={**clip.seconds, "loading": clip.seconds.get("loading", 0.0) + waited})

    def close(self) -> None:
        """Let all actors go. What they were making is lost."""
        with self._lock:
            self._is_closed = True
            replicas, self._replicas = self._replicas, []
        clear(replicas)

    def _taken(self, on_progress: OnProgress, cancelled: CancelFlag) -> tuple[Replica, float]:
        """An actor for one generation, and how many seconds its model was waited for."""
        with self._lock:
            free = [replica for replica in self._replicas if replica.status and not replica.is_busy]
            if free:
                # the one used last: the others may become idle for long enough to be let go
                replica = max(free, key=lambda replica: replica.used_at)
                replica.is_busy = True
                return replica, 0.0
            on_progress(Progress("queued"))
            waiter = self._waiting(on_progress)
            if any(replica.is_started and not replica.status for replica in self._replicas):
                waiter.loading()
        late = not_in_time("no actor was ready", self._settings.deadline_seconds)
        limit = Limit(lambda: self._turn_away(waiter, late))
        try:
            limit.set(self._settings.deadline_seconds)
            cancelled.when_set(lambda: self._turn_away(waiter, Canceled("the generation was cancelled")))
            replica = waiter.replica.result()
        finally:
            limit.end()
        return replica, time.perf_counter() - (waiter.loading_since or time.perf_counter())

    def _waiting(self, on_progress: OnProgress) -> _Waiter:
        """Queue up for an actor. Call it with the lock."""
        waiter = _Waiter(on_progress)
        self._waiters.append(waiter)
        self._grow()
        return waiter

    def _turn_away(self, waiter: _Waiter, error: LTX2Error) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                waiter.replica.set_exception(error)

    def _give_back(self, replica: Replica) -> None:
        """An actor is free: it is handed to who waits longest, or let go if nobody needs it for long enough."""
        ttl = self._settings.ttl_seconds
        with self._lock:
            if replica not in self._replicas:
                return
            replica.is_busy = bool(self._waiters)
            if self._waiters:
                self._waiters.popleft().replica.set_result(replica)
                return
            replica.used_at = time.monotonic()
            if ttl is not None and len(self._replicas) > self._fewest:
                later(ttl, self._expire, replica, replica.used_at)

    def _expire(self, replica: Replica, used_at: float) -> None:
        with self._lock:
            is_idle = not replica.is_busy and replica.used_at == used_at
            if self._is_closed or not is_idle or len(self._replicas) <= self._fewest or not self._drop(replica):
                return
        log.info("%s was not used for %g s and is let go", replica, self._settings.ttl_seconds)
        clear([replica])

    def _grow(self) -> None:
        """Start what actors are wanted. Call it with the lock."""
        starting = sum(replica.status is None for replica in self._replicas)
        wanted = max(self._fewest - len(self._replicas), len(self._waiters) - starting)
        for _ in range(min(wanted, self._most - len(self._replicas))):
            self._made += 1
            replica = Replica(self._made, self._make.remote(*self._arguments))
            self._replicas.append(replica)
            threading.Thread(target=self._listen, args=[replica], name=str(replica), daemon=True).start()

    def _listen(self, replica: Replica) -> None:
        """Hear what an actor says, until it ends."""
        import ray

        unplaced = later(SECONDS_TO_PLACE, self._unplaced, replica)
        reason = "ended"
        try:
            for reference in replica.handle.serve.remote():
                self._heard(replica, ray.get(reference))
        except ray.exceptions.RayError as error:
            reason = f"ended: {brief(error)}"
        except Exception:
            log.exception("%s says what nobody understands", replica)
        finally:
            unplaced.cancel()
        if not self._is_closed:
            self._lose(replica, reason)

    def _unplaced(self, replica: Replica) -> None:
        if not replica.is_started and not self._is_closed:
            log.warning("%s waits for a place in the Ray cluster: there are not enough free GPUs or CPUs", replica)

    def _heard(self, replica: Replica, said: Said) -> None:
        match said:
            case Started():
                log.info("%s is process %d on %s", replica, said.pid, said.host)
                with self._lock:
                    replica.is_started = True
                    self._unplaced_in_a_row = 0
                    for waiter in self._waiters:
                        waiter.loading()
            case EngineStatus():
                with self._lock:
                    is_new, replica.status = replica.status is None, said
                    self._is_ready, self._fault = True, None
                    self._tell()
                if is_new:
                    self._give_back(replica)
            case Failure():
                if self._drop(replica):
                    replica.kill()
                    self._refuse(replica, said.error)
            case logging.LogRecord():
                said.msg = f"{replica}: {said.msg}"
                logging.getLogger(said.name).handle(said)

    def _drop(self, replica: Replica, *, is_lost: bool = False) -> bool:
        """Count an actor no more; whether it was counted."""
        with self._lock:
            if replica not in self._replicas:
                return False
            self._replicas.remove(replica)
            self._restarts += is_lost
            self._tell()
            return True

    def _lose(self, replica: Replica, reason: str) -> None:
        """An actor was lost, or is of no more use. Who finds that out second changes nothing."""
        if self._drop(replica, is_lost=True):
            self._replace(replica, reason)

    def _replace(self, replica: Replica, reason: str) -> None:
        log.warning("%s %s", replica, reason)
        replica.kill()
        self._check()
        with self._lock:
            self._unplaced_in_a_row += not replica.is_started
            if replica.status is not None or (not replica.is_started and self._unplaced_in_a_row <= MOST_UNPLACED):
                self._grow()
                return
        if replica.is_started:
            self._refuse(replica, WorkerCrashed("an actor ended while it was loading the model", hint=HINT))
        else:
            self._refuse(replica, NotReady("no actor can be started in the Ray cluster; the server's log says why"))

    def _refuse(self, replica: Replica, error: LTX2Error) -> None:
        """An actor has no model: all who wait hear why, unless there are others that have one or may come to."""
        log.warning("%s cannot be used: %s", replica, error)
        with self._lock:
            if self._replicas:
                return
            refused, self._waiters = self._waiters, deque()
            self._is_ready, self._fault = False, error.message
            self._tell()
        for waiter in refused:
            waiter.replica.set_exception(error)

    def _overdue(self, replica: Replica, outcome: "Future[Clip]", cancelled: CancelFlag) -> None:
        """A generation takes too long, or does not heed a cancel. What it is doing ends with its actor."""
        is_dropped = self._drop(replica, is_lost=True)
        if cancelled():
            settle(outcome, Canceled("the generation was cancelled"))
        else:
            settle(outcome, too_long(self._settings.deadline_seconds))
        if is_dropped:
            self._replace(replica, "took too long and is killed")

    def _follow(self, replica: Replica, order: Generate, on_progress: OnProgress, outcome: "Future[Clip]") -> None:
        """See a generation through to its end, in a thread of its own: one that hangs is left alone with it."""
        import ray

        target = self._settings.work_dir / f"{uuid.uuid4().hex}.{order.request.output.format}"
        try:
            clip = replica.receive(order, target, on_progress, outcome.done)
            if not settle(outcome, clip):
                target.unlink(missing_ok=True)
        except GpuLost as error:
            self._lose(replica, "has lost its GPU")
            settle(outcome, error)
        except LTX2Error as error:
            settle(outcome, error)
        except ray.exceptions.RayTaskError as error:  # a bug of ours in what the actor does for Ray
            self._lose(replica, f"failed: {brief(error)}")
            settle(outcome, Internal("the generation failed; the server's log says why"))
        except ray.exceptions.RayError as error:
            self._lose(replica, f"ended: {brief(error)}")
            what = "server was shut down" if self._is_closed else "actor ended"
            settle(outcome, WorkerCrashed(f"the {what} in the middle of the generation", hint=HINT))
        except Exception:
            log.exception("a generation failed")
            self._lose(replica, "may still be making what nobody wants")
            settle(outcome, Internal("the generation failed; the server's log says why"))

    def _tell(self) -> None:
        """Tell how things are. Call it with the lock."""
        held = [replica.status for replica in self._replicas if replica.status]
        loaded = tuple(dict.fromkeys(name for status in held for name in status.loaded))
        resident = round(sum(status.resident_gb for status in held), 3)
        budget = round(sum(status.budget_gb for status in held), 1)
        model = held[0].model if held else None
        status = EngineStatus(
            loaded, resident, budget, ready=self._is_ready, fault=self._fault, restarts=self._restarts, model=model
        )
        self._changed(status)
