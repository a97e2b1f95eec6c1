"""Whether the endpoint can be used: asked again and again, by a thread of its own."""

import logging
import threading
import time
from typing import Final

from ltx2.fleet.remote import Lost, Odd, Refused, Remote, Unreached

log = logging.getLogger(__name__)

SECONDS_WHEN_WELL: Final = 10.0
SECONDS_TO_DOUBT: Final = 1.0
FIRST_PAUSE: Final = 1.0
"""Seconds between two questions while the endpoint is not well; each is twice as long as the one before."""
LONGEST_PAUSE: Final = 15.0
MOST_FAILURES: Final = 3
MOST_REMEMBERED: Final = 1000

_OPERATOR: Final = "whoever runs this server should look at"


class Pulse:
    """Belongs to one engine. Any thread may call it."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._news = threading.Event()
        """Set when the pause is another one now, and when there is nothing more to ask."""
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_doubted = False
        self._asked_at = time.monotonic()
        self._misses = 0
        """Questions after health in a row that showed a fault."""
        self._refusals = 0
        """Times that an endpoint took no job which said it was well, since it took one."""
        self._taken = 0
        self._failed: dict[str, tuple[int, int]] = {}
        """Of jobs that were not taken: how often, while others were, and how many there were of these by then."""
        self.fault: str | None = None
        """Why the endpoint cannot be used, for callers to read: without key, URL and id."""
        self.is_known = False
        """Whether an answer came yet, or was missed."""

    def start(self) -> None:
        """Begin to ask; once."""
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._beat, name="endpoint health", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        with self._lock:
            self._is_closed = True
        self._news.set()

    def ask(self) -> None:
        """Ask now."""
        fault = self._asked()
        with self._lock:
            self._asked_at, self._is_doubted = time.monotonic(), False
            self._misses = self._misses + 1 if fault else 0
            self._became(fault)

    def refused(self, fault: str) -> None:
        """A job could not be sent. Nobody need try another until the endpoint was asked."""
        with self._lock:
            if self.fault is None:
                self._refusals += 1
                self._became(fault)
                self._news.set()

    def doubt(self) -> None:
        """An answer about a job was lost: ask soon, since callers should learn it if that goes on."""
        with self._lock:
            if self.fault is None and time.monotonic() - self._asked_at > SECONDS_TO_DOUBT:
                self._is_doubted = True
                self._news.set()

    def took(self, key: str) -> None:
        """A job was taken."""
        with self._lock:
            self._refusals = 0
            self._taken += 1
            self._failed.pop(key, None)

    def is_its_own_fault(self, key: str) -> bool:
        """Whether a job has failed to be sent again and again while the endpoint took others in between.

        If it were tried for ever, the others would wait for it each time.
        """
        with self._lock:
            times, taken = self._failed.get(key, (0, self._taken))
            times += self._taken > taken
            if times >= MOST_FAILURES or len(self._failed) > MOST_REMEMBERED:
                self._failed.pop(key, None)
                return times >= MOST_FAILURES
            self._failed[key] = times, self._taken
            return False

    def _became(self, fault: str | None) -> None:
        if fault and fault != self.fault:
            log.warning("no clips can be made: %s", fault)
        elif self.fault and not fault:
            log.info("the RunPod endpoint can be used again")
        self.fault, self.is_known = fault, True

    def _pause(self) -> float:
        if self._is_doubted:
            return 0.0
        # an endpoint that is well by its own word and takes nothing is tried less and less often, too
        times = max(self._misses, self._refusals)
        return min(FIRST_PAUSE * 2.0 ** min(times - 1, 10), LONGEST_PAUSE) if self.fault else SECONDS_WHEN_WELL

    def _beat(self) -> None:
        while True:
            self._news.clear()
            if self._is_closed:
                return
            if not self._news.wait(self._pause()):
                self.ask()

    def _asked(self) -> str | None:
        try:
            health = self._remote.health()
        except (Refused, Lost, Unreached) as error:
            return fault_of(error)
        # of an endpoint without a worker these are there, too
        return None if isinstance(health.get("workers"), dict) else fault_of(Odd("there are no workers in it"))


def fault_of(error: Refused | Lost | Unreached) -> str:
    """What is wrong, for callers to read."""
    if isinstance(error, Odd):
        return f"what answers is no RunPod endpoint ({_OPERATOR} RUNPOD_ENDPOINT_BASE_URL)"
    if not isinstance(error, Refused):
        return "the RunPod endpoint cannot be reached"
    match error.status:
        case 401 | 403:
            return f"RunPod does not take this server's key ({_OPERATOR} RUNPOD_API_KEY)"
        case 404:
            return f"RunPod knows no such endpoint ({_OPERATOR} LTX2_RUNPOD_ENDPOINT)"
        case 429:
            return "RunPod takes no more requests for now"
        case status if status >= 500 or status == 408:
            return f"the RunPod endpoint is down (it answers {status})"
        case status:
            return f"the RunPod endpoint cannot be used (it answers {status})"
