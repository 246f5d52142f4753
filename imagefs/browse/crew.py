"""How many worker processes may live at once: whoever has not been asked for longest lets its own go.

A file system without a worker starts one for the next request (``apart.py``), so nothing is lost but time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

#: A worker is some 24 MB of memory that is not shared.
MAX_WORKERS = 6


class Member(Protocol):
    """Has a worker, and can do without it for a while."""

    def rest(self) -> None:
        """Let the worker go and leave the crew; nothing is done while it is at work."""
        ...


class Crew:
    """Keeps the workers of its members at ``limit``, those aside that are at work this moment. Thread-safe."""

    def __init__(self, limit: int = MAX_WORKERS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._members: OrderedDict[Member, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._members)

    def works(self, member: Member) -> None:
        """``member`` has a worker and is being asked something; others may have to do without."""
        with self._lock:
            self._members[member] = None
            self._members.move_to_end(member)
            surplus = len(self._members) - self._limit
            others = list(self._members)[:surplus] if surplus > 0 else []
        for other in others:
            other.rest()

    def leaves(self, member: Member) -> None:
        """``member`` has no worker any more."""
        with self._lock:
            self._members.pop(member, None)
