"""Whose turn it is: in turns between owners, by priority and then by age among the jobs of one."""

import bisect
import itertools
from collections import OrderedDict

FIRST = -(10**9)
"""Sorts before every other job."""


class Turns:
    """The jobs that wait, by id: some thousands at most. Not for several threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._owners: dict[str, str] = {}
        # the owner who has waited longest comes first
        self._lines: OrderedDict[str, list[tuple[int, int, str]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def waiting(self, owner: str) -> int:
        """How many jobs of an owner wait."""
        return len(self._lines.get(owner, ()))

    def add(self, job_id: str, owner: str, priority: int = 0) -> None:
        """Let a job wait behind its owner's jobs of the same priority."""
        self._owners[job_id] = owner
        bisect.insort(self._lines.setdefault(owner, []), (-priority, next(self._numbers), job_id))

    def add_first(self, job_id: str, owner: str) -> None:
        """Let a job wait that had its turn already: before all others of its owner, and the owner before others."""
        self.add(job_id, owner, -FIRST)
        self._lines.move_to_end(owner, last=False)

    def remove(self, job_id: str) -> bool:
        """Take a job out. Returns whether it was waiting."""
        owner = self._owners.pop(job_id, None)
        if owner is None:
            return False
        left = [place for place in self._lines[owner] if place[2] != job_id]
        if left:
            self._lines[owner] = left
        else:
            del self._lines[owner]
        return True

    def next(self) -> str | None:
        """The job whose turn it is, which then waits no more."""
        if not self._lines:
            return None
        owner, line = next(iter(self._lines.items()))
        job_id = line[0][2]
        self._lines.move_to_end(owner)
        self.remove(job_id)
        return job_id
