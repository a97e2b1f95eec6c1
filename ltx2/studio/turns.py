"""Whose turn it is: in turns between owners, by priority and then by age among the jobs of one."""

import heapq
import itertools
from collections import OrderedDict

FIRST = -(10**9)
"""Sorts before every other job."""


class Turns:
    """The jobs that wait, by id. Not for several threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: set[str] = set()
        # the owner who has waited longest comes first
        self._heaps: OrderedDict[str, list[tuple[int, int, str]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._waiting

    def add(self, job_id: str, owner: str, priority: int = 0) -> None:
        """Let a job wait behind its owner's jobs of the same priority."""
        self._waiting.add(job_id)
        heapq.heappush(self._heaps.setdefault(owner, []), (-priority, next(self._numbers), job_id))

    def add_first(self, job_id: str, owner: str) -> None:
        """Let a job wait that had its turn already: before all others of its owner, and the owner before others."""
        self._waiting.add(job_id)
        heapq.heappush(self._heaps.setdefault(owner, []), (FIRST, next(self._numbers), job_id))
        self._heaps.move_to_end(owner, last=False)

    def remove(self, job_id: str) -> bool:
        """Take a job out. Returns whether it was waiting."""
        waited = job_id in self._waiting
        self._waiting.discard(job_id)  # its entry stays in the heap until its turn comes
        return waited

    def next(self) -> str | None:
        """The job whose turn it is, which then waits no more."""
        while self._heaps:
            owner, heap = next(iter(self._heaps.items()))
            while heap:
                job_id = heapq.heappop(heap)[2]
                if self.remove(job_id):
                    if heap:
                        self._heaps.move_to_end(owner)
                    else:
                        del self._heaps[owner]
                    return job_id
            del self._heaps[owner]
        return None
