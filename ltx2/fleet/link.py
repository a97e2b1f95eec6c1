"""The process that is connected to a Ray cluster, as the server sees it."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from ltx2.engine import Clip, EngineStatus, Progress
from ltx2.errors import Failure
from ltx2.fleet.messages import Connected, Message, Reply, Start, Told

SECONDS_TO_CONNECT = 120.0
"""How long it may take to connect to a cluster, or to start one."""
SECONDS_TO_END = 20.0
"""How long it may take to end the actors, and the cluster if that is its own."""
ROOT = Path(__file__).parents[2]
# as in ltx2.studio.child: relative paths of the settings start where the server was started
_PROGRAM = "import sys; sys.path[0] = sys.argv[1]; from ltx2.fleet.driver import main; main(int(sys.argv[2]))"


class Ended:
    """The process is no more."""


class Woken:
    """Nothing came from the process, but somebody cancels."""


Event = Connected | Ended | Woken | Progress | Clip | Failure | None
"""What somebody waits for who has asked for something; None is an answer."""
Events = queue.SimpleQueue[Event]


class Link:
    """A process and the connection to it; it ends when either does.

    Args:
        start: what to connect to.
        environment: what Ray takes from the environment alone.
        heard: told of what concerns all, and of the end. Called by a thread of this object's own.

    Raises:
        OSError, RuntimeError: no process can be started, or no thread that listens to it.
    """

    def __init__(
        self,
        start: Start,
        environment: Mapping[str, str],
        heard: "Callable[[Link, EngineStatus | Connected | Ended], None]",
    ) -> None:
        self._heard = heard
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._asked: dict[int, Events] = {}
        self.is_connected = False
        """Whether it ever was."""
        self.has_ended = False
        self._socket, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            extra = [f"{name}={value}" for name, value in environment.items()]
            program = ["env", *extra, sys.executable, "-c", _PROGRAM, str(ROOT), str(theirs.fileno())]
            self._process = subprocess.Popen(  # noqa: S603 - the program is ours
                program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # Ray prints there what we log more briefly
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for the server alone
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._connection: Connection[Message, Reply] = Connection(os.dup(self._socket.fileno()))
            undo.callback(self._connection.close)
            self._late = threading.Timer(SECONDS_TO_CONNECT, self.kill)
            self._late.daemon = True
            self._late.start()
            undo.callback(self._late.cancel)
            self._reader = threading.Thread(target=self._read, name="Ray's driver", daemon=True)
            self._reader.start()
            undo.pop_all()
        self.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    def enter(self, number: int) -> Events:
        """What comes for a number: first that the process is connected, or that it has ended."""
        events: Events = queue.SimpleQueue()
        with self._lock:
            if self.has_ended:
                events.put(Ended())
            elif self.is_connected:
                events.put(Connected())
            self._asked[number] = events
        return events

    def leave(self, number: int) -> None:
        with self._lock:
            self._asked.pop(number)

    def send(self, message: Message) -> None:
        """Tell it something. Where it has ended, that is an event, and no error here."""
        with contextlib.suppress(OSError), self._sending:
            self._connection.send(message)

    def end(self) -> None:
        """Let go of it, and wait until it has ended. Several threads may do this at the same time."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # to close it would not wake the thread that reads
        self._reader.join(SECONDS_TO_END)
        if self._reader.is_alive():
            self.kill()
            self._reader.join(SECONDS_TO_END)

    def kill(self) -> None:
        """End it whatever it does. Does not wait."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        try:
            while True:
                self._tell(self._connection.recv())
        except (EOFError, OSError):
            pass  # it has ended, or is about to
        finally:
            self._late.cancel()
            self._process.kill()  # whoever has closed the connection is of no more use
            self._process.wait()
            with self._sending:
                self._connection.close()
            self._socket.close()
            with self._lock:
                self.has_ended = True
                asked = list(self._asked.values())
            self._heard(self, Ended())
            for events in asked:
                events.put(Ended())

    def _tell(self, reply: Reply) -> None:
        match reply:
            case Told():
                with self._lock:
                    events = self._asked.get(reply.number)
                if events is not None:
                    events.put(reply.what)
            case Connected():
                self._late.cancel()
                self._heard(self, reply)
                with self._lock:
                    self.is_connected = True
                    asked = list(self._asked.values())
                for events in asked:
                    events.put(reply)
            case EngineStatus():
                self._heard(self, reply)
