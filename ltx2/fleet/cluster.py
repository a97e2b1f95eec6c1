"""An engine that has its clips made by the actors of a Ray cluster.

Another process is connected to the cluster (:mod:`ltx2.fleet.driver`), so that whatever becomes of that, the server
answers. When it ends because the cluster is gone, another one is started every while until it is there again.
"""

import contextlib
import importlib.util
import itertools
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ltx2.engine import CancelFlag, Clip, EngineStatus, OnProgress, Progress
from ltx2.errors import Canceled, EngineDown, Failure, InvalidRequest, LTX2Error, NotReady, WorkerCrashed
from ltx2.fleet.link import Ended, Events, Link, Woken
from ltx2.fleet.messages import Cancel, Connected, Generate, Load, Message, Start
from ltx2.fleet.replica import Limit
from ltx2.request import GenerationRequest
from ltx2.settings import Settings

log = logging.getLogger(__name__)

LOCAL = "ltx2.model.local:LocalEngine"
FAKE = "ltx2.fake:FakeEngine"
SECONDS_TO_HEED = 60.0
"""How long an actor may go on after a cancel before it is taken for one that hangs."""
SECONDS_TO_ANSWER = 10.0
"""How long the driver may be silent after that, and after a deadline, before it is taken for one that hangs."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Between two tries to reach a cluster that is gone, in seconds; each is twice as long as the one before."""
DOWN = "the Ray cluster cannot be reached"
LOST = "the connection to the Ray cluster was lost"
HINT = "send the request again later; the server's log says more"


class ClusterEngine:
    """Implements :class:`ltx2.engine.Engine` by Ray actors, each with a model and, where there are any, a GPU.

    ``ray_min_actors`` are kept, more are started while all are busy, up to ``ray_max_actors``, and let go after the
    residency's seconds without work. An actor that dies is replaced.

    Args:
        settings: those of the server. Actors get them without the secrets, and have folders of their own.
        build: the class of the engine that each actor makes, as ``package.module:Class``.
        seconds_to_heed: how long after a cancel an actor is killed that goes on all the same.

    Raises:
        InvalidRequest: there would be fewer actors at most than at least, or the address is none.
        NotReady: Ray is not installed.
    """

    def __init__(self, settings: Settings, build: str = LOCAL, *, seconds_to_heed: float = SECONDS_TO_HEED) -> None:
        if settings.ray_min_actors > settings.ray_max_actors:
            message = f"LTX2_RAY_MAX_ACTORS must be LTX2_RAY_MIN_ACTORS at least, which is {settings.ray_min_actors}"
            raise InvalidRequest(message, field="LTX2_RAY_MAX_ACTORS")
        if settings.ray_address is not None and not re.fullmatch(r"auto|[^\s/]+:\d{1,5}", settings.ray_address):
            message = "LTX2_RAY_ADDRESS must be host:port of the cluster's head, or auto: run the server in the cluster"
            raise InvalidRequest(message, field="LTX2_RAY_ADDRESS")
        if importlib.util.find_spec("ray") is None:
            raise NotReady("Ray is not installed", hint="pip install 'ray>=2.60', or this project with [ray]")
        # Ray shows each actor only the GPU that it may use
        device = "cuda" if settings.device.startswith("cuda") else settings.device
        self._folder = settings.data_dir.absolute() / "engine"
        settings = settings.without_secrets().model_copy(update={"data_dir": self._folder, "device": device})
        self._work_dir = settings.work_dir
        self._start = Start(settings, build, seconds_to_heed)
        self._ttl_seconds = settings.ttl_seconds if settings.ray_min_actors == 0 else None
        seats = settings.ray_max_actors
        is_ready = settings.ray_min_actors == 0  # then a model is loaded when it is wanted
        self._status = EngineStatus((), 0.0, 0.0, fake=build == FAKE, ready=is_ready, seats=seats)
        self._restarts = 0
        """Of actors that were lost by drivers that are no more."""
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._numbers = itertools.count(1)
        self._users = 0
        self._used_at = time.monotonic()
        self._is_swept = False
        self._closed = threading.Event()

    def status(self) -> EngineStatus:
        held = self._status
        return replace(
            held,
            ready=held.ready and self._fault is None,
            fault=self._fault or held.fault,
            recovers=self._fault is not None,
            idle_seconds=0.0 if self._users else time.monotonic() - self._used_at,
            ttl_seconds=self._ttl_seconds,
            restarts=self._restarts + held.restarts,
        )

    def load(self) -> None:
        """As :class:`ltx2.engine.Engine` has it. Any thread may call it, also during generations."""
        self._asked(Load, lambda _progress: None, CancelFlag(), math.inf)

    def generate(
        self,
        request: GenerationRequest,
        media: Mapping[str, bytes],
        on_progress: OnProgress,
        cancelled: CancelFlag,
    ) -> Clip:
        if cancelled():
            raise Canceled("the generation was cancelled")
        # to wait for an actor may take as long as to generate
        longest = 2 * self._start.settings.deadline_seconds + SECONDS_TO_ANSWER
        clip = self._asked(lambda number: Generate(number, request, dict(media)), on_progress, cancelled, longest)
        assert clip is not None  # noqa: S101 - only loading has no answer
        return clip

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            link = self._link
        if link is not None:
            link.end()
            self._sweep()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._used_at = time.monotonic()

    def _asked(
        self, message: Callable[[int], Message], on_progress: OnProgress, cancelled: CancelFlag, longest: float
    ) -> Clip | None:
        """What something has come to that the driver is asked for, which is killed if it takes too long to say so."""
        with self._in_use():
            number = next(self._numbers)
            link = self._linked()
            events = link.enter(number)
            # the driver itself sees to all limits; who waits for one that hangs may be in the middle of telling it
            limit = Limit(link.kill)

            def wake() -> None:
                limit.set(self._start.seconds_to_heed + SECONDS_TO_ANSWER)
                events.put(Woken())

            try:
                cancelled.when_set(wake)
                return self._answer(link, number, message, events, on_progress, cancelled, partial(limit.set, longest))
            finally:
                limit.end()
                link.leave(number)

    def _answer(
        self,
        link: Link,
        number: int,
        message: Callable[[int], Message],
        events: Events,
        on_progress: OnProgress,
        cancelled: CancelFlag,
        begin: Callable[[], None],
    ) -> Clip | None:
        is_sent = is_begun = False
        while True:
            match events.get():
                case Connected():
                    begin()
                    link.send(message(number))
                    is_sent = True
                    if cancelled():
                        link.send(Cancel(number))
                case Woken() if not is_sent:
                    raise Canceled("the generation was cancelled")
                case Woken():
                    link.send(Cancel(number))
                case Progress() as progress:
                    is_begun = is_begun or progress.phase not in {"queued", "loading"}
                    on_progress(progress)
                case Ended() if cancelled():
                    raise Canceled("the generation was cancelled")
                case Ended():
                    raise self._loss(is_begun=is_begun)
                case Failure() as failure:
                    raise failure.error
                case answer:
                    return answer

    def _loss(self, *, is_begun: bool) -> LTX2Error:
        """What to say of something that the driver gave no answer to."""
        if self._closed.is_set():
            if is_begun:
                return WorkerCrashed("the server was shut down in the middle of the generation")
            return _closed()
        if is_begun:
            return WorkerCrashed(f"{LOST} in the middle of the generation", hint=HINT)
        return EngineDown(self._fault or DOWN, hint=HINT)

    def _linked(self) -> Link:
        """The driver; started if there was none. One that has ended is replaced by another thread."""
        with self._lock:
            if self._closed.is_set():
                raise _closed()
            if self._fault is not None:
                raise EngineDown(self._fault, hint=HINT)
            if self._link is None:
                self._link = self._new_link()
            return self._link

    def _new_link(self) -> Link:
        """Call it with the lock."""
        self._sweep()
        try:
            return Link(self._start, self._environment(), self._heard)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise NotReady(f"no process could be started that connects to Ray: {reason}") from error

    def _environment(self) -> dict[str, str]:
        """For a cluster of our own, whose ports Ray opens to all the world: a secret to be let in, known to nobody."""
        if self._start.settings.ray_address is not None:
            return {}
        token = self._folder / "ray-token"
        self._folder.mkdir(parents=True, exist_ok=True)
        token.unlink(missing_ok=True)
        with os.fdopen(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        # Ray lets everything else go before what it runs; here that is all there is to do
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}

    def _sweep(self) -> None:
        """Remove what a lost process has left. Of this server, finished clips may still be wanted."""
        with contextlib.suppress(OSError):
            for left in self._work_dir.iterdir():
                if left.is_file() and (not self._is_swept or left.suffix == ".part"):
                    left.unlink()
        self._is_swept = True

    def _heard(self, link: Link, event: EngineStatus | Connected | Ended) -> None:
        """Keep account of a driver. Called by its own thread."""
        match event:
            case Connected():
                log.info("connected to the Ray cluster")
            case EngineStatus():
                model = event.model or self._status.model  # what the last actor had, the next one will have
                self._status = replace(event, fake=self._status.fake, seats=self._status.seats, model=model)
            case Ended() if not self._closed.is_set():
                with self._lock:
                    held = self._status
                    # of what the cluster took along nobody has counted anything
                    self._restarts += held.restarts + bool(held.loaded)
                    self._status = replace(held, loaded=(), resident_gb=0.0, restarts=0)
                    is_known = self._fault is not None
                    self._fault = LOST if link.is_connected else DOWN
                if not is_known:
                    log.error("%s; trying again until it can be", DOWN)
                    threading.Thread(target=self._reconnect, name="Ray", daemon=True).start()

    def _reconnect(self) -> None:
        """Start drivers until one is connected."""
        pause = FIRST_PAUSE
        while not self._closed.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._lock:
                if self._closed.is_set():
                    return
                try:
                    self._link = link = self._new_link()
                except NotReady as error:
                    log.warning("%s", error)
                    continue
            link.enter(0).get()  # it is connected, or has ended
            link.leave(0)
            with self._lock:
                if link.has_ended:
                    continue
                self._fault = None
            with contextlib.suppress(LTX2Error):
                self.load()  # before somebody waits for it
            return


def _closed() -> NotReady:
    return NotReady("the server is being shut down", hint="send the request again")
