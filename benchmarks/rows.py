"""What a measurement comes to: a figure beside a peer's, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: ``ratio`` is ours over theirs; ``wanted`` the bound, an upper one unless ``at_least``.

    ``ours`` and ``theirs`` are every value measured, in ``unit``.
    """

    group: str
    name: str
    peer: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    wanted: float
    at_least: bool = False

    @property
    def ratio(self) -> float:
        return median(self.ours) / median(self.theirs)

    @property
    def reached(self) -> bool:
        return self.ratio >= self.wanted if self.at_least else self.ratio <= self.wanted


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that could not be measured here, and why."""

    group: str
    name: str
    reason: str


Row = Figure | LeftOut
