"""The process that is connected to a Ray cluster on behalf of a server: what it is told and tells, and what runs in it.

It is not the server's own process, since Ray ends the process that has lost its cluster, takes over its signals, and
leaves threads behind. It lives no longer than the server does, and takes along its actors, and the cluster if that is
its own: their connection ends with either.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from ltx2.engine import CancelFlag, Clip, Progress
from ltx2.errors import Failure, Internal, LTX2Error
from ltx2.fleet.messages import Cancel, Connected, Generate, Load, Message, Reply, Start, Told
from ltx2.fleet.pool import Pool
from ltx2.settings import Settings

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
PROBE_SECONDS = 5.0
STORE_BYTES = 2**28
"""Of shared memory for what travels, in a cluster of our own; and that much more for each actor's inputs."""


def main(descriptor: int) -> NoReturn:
    """In the process: serve whoever is at the other end of a socket until they let go of it."""
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Reply, Message] = Connection(descriptor)
    status = 1
    try:
        start = connection.recv()
        if isinstance(start, Start):
            logging.basicConfig(
                level=start.settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
            )
            # Ray ties the processes of its own cluster to the thread that starts them: this one stays
            _Driver(connection, start).serve()
            status = 0
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        log.warning("there is no Ray cluster to work with: %s", error)
    logging.shutdown()
    os._exit(status)


class _Driver:
    """Has the pool of actors, a thread for each generation, and listens to the server in the main thread."""

    def __init__(self, connection: "Connection[Reply, Message]", start: Start) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._flags: dict[int, CancelFlag] = {}
        settings = start.settings
        options = connected(settings)
        self._pool = Pool(
            settings,
            start.build,
            options,
            seconds_to_heed=start.seconds_to_heed,
            changed=self._tell,
            check=check,
        )
        # to load is one of many, and generations beyond the bound wait in the pool
        self._threads = ThreadPoolExecutor(settings.ray_max_actors * 2 + 8, thread_name_prefix="generation")

    def serve(self) -> None:
        """Do what is asked for, until the server has ended or has no use for this process."""
        import ray

        self._tell(Connected())
        try:
            while True:
                match self._connection.recv():
                    case Load() as load:
                        self._threads.submit(self._answer, load.number, self._pool.load)
                    case Generate() as order:
                        flag = self._flags[order.number] = CancelFlag()
                        self._threads.submit(self._answer, order.number, partial(self._generate, order, flag))
                    case Cancel() as cancel:
                        # it may be over, or be so in this very moment
                        if given := self._flags.get(cancel.number):
                            given.set()
        except (EOFError, OSError):
            pass
        finally:
            self._pool.close()
            ray.shutdown(wait_for_processes=True)

    def _generate(self, order: Generate, flag: CancelFlag) -> Clip:
        def on_progress(progress: Progress) -> None:
            self._tell(Told(order.number, progress))

        try:
            return self._pool.generate(order.request, order.media, on_progress, flag)
        finally:
            self._flags.pop(order.number)

    def _answer(self, number: int, work: "partial[Clip] | Any") -> None:
        try:
            answer = work()
        except LTX2Error as error:
            answer = Failure.of(error)
        except Exception:
            log.exception("a generation failed")
            answer = Failure.of(Internal("the generation failed; the server's log says why"))
        self._tell(Told(number, answer))

    def _tell(self, reply: Reply) -> None:
        # where the server has ended, this process is about to
        with contextlib.suppress(OSError), self._sending:
            self._connection.send(reply)


def connected(settings: Settings) -> dict[str, Any]:
    """Connect to the cluster, or start one.

    Returns:
        What Ray is to give to each actor.

    Raises:
        OSError, RuntimeError, ValueError: there is no cluster.
    """
    import ray

    logging.getLogger("ray").propagate = True
    logging.getLogger("ray").setLevel(logging.WARNING)
    common: dict[str, Any] = {
        "configure_logging": False,  # what it says is formatted as ours is
        "log_to_driver": False,  # actors tell us themselves what they log
        "namespace": None,  # a random one
        # to nodes that have the libraries, but another version of this project, or none
        "runtime_env": {"py_modules": [str(PACKAGE)]},
    }
    if settings.ray_address is None:
        most = settings.ray_max_actors
        room = STORE_BYTES + most * settings.max_body_bytes
        # CPUs are only counted: each actor takes one, and Ray starts a process for each beforehand
        ray.init(address="local", num_cpus=most, include_dashboard=False, object_store_memory=room, **common)
    else:
        if settings.ray_address != "auto":
            _probe(settings.ray_address)
        ray.init(address=settings.ray_address, **common)
    # Ray's own handler would end this process in the middle of everything, by an exception
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _needs(settings, [machine["Resources"] for machine in ray.nodes() if machine["Alive"]])


def _needs(settings: Settings, machines: list[dict[str, float]]) -> dict[str, Any]:
    """What an actor takes: a GPU, or where there is none, a CPU. With it go the CPUs that it may keep busy."""
    if settings.ray_address is None:
        machines = [{**resources, "CPU": float(os.cpu_count() or 1)} for resources in machines]
    with_gpus = [resources for resources in machines if resources.get("GPU")]
    # to a cluster that was joined, one may come; on this machine the model itself says that there is none
    may_come = settings.device == "cuda" and settings.ray_address is not None
    uses_gpu = settings.device != "cpu" and (bool(with_gpus) or may_come)
    if uses_gpu:
        shares = [resources.get("CPU", 1.0) / resources["GPU"] for resources in with_gpus]
    else:
        actors_each = max(1.0, settings.ray_max_actors / max(1, len(machines)))
        shares = [resources.get("CPU", 1.0) / actors_each for resources in machines]
    threads = max(1, int(min(shares, default=1.0)))
    return {
        "num_gpus": 1 if uses_gpu else 0,
        "num_cpus": 0 if uses_gpu else 1,
        # without, Ray says one for each CPU that was asked for
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }


def check() -> None:
    """End this process if the cluster is gone. Ray itself does so only after a minute without the head.

    Where just this machine's part is gone, it would go on for ever.
    """
    import ray

    try:
        context = ray.get_runtime_context()
        _probe(context.gcs_address)
        ours = context.get_node_id()
        is_there = any(machine["NodeID"] == ours and machine["Alive"] for machine in ray.nodes())
    except OSError:
        is_there = False
    if not is_there:
        log.error("the Ray cluster is gone")
        logging.shutdown()
        os._exit(1)


def _probe(address: str) -> None:
    """Fail at once where nobody listens: Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
