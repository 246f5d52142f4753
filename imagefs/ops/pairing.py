"""The same volume at two points in time. A partition has its number, and so has what lies in a mirror or is encrypted;
logical volumes are numbered in order, which shifts when one is removed, so LVM's own ids tell."""

from __future__ import annotations

from collections.abc import Sequence

from imagefs.interfaces import Volume


def same_volume(volume: Volume, volumes: Sequence[Volume], others: Sequence[Volume]) -> Volume | None:
    """The one of ``others``, all of another point in time, that is ``volume``, one of ``volumes``; else None."""
    above = ""
    if volume.inside:
        outer = next((each for each in volumes if each.id == volume.inside), None)
        there = same_volume(outer, volumes, others) if outer is not None else None
        if there is None:
            return None
        above = there.id
    return next((each for each in others if each.inside == above and _is_same(each, volume)), None)


def _is_same(one: Volume, other: Volume) -> bool:
    if one.moment or other.moment:
        return one.moment == other.moment
    if one.role == other.role == "lvm" and one.uuid and other.uuid:
        return one.uuid == other.uuid
    return one.number == other.number


def natural(volume_id: str) -> list[int]:
    """For sorting: ``p3.10`` behind ``p3.9``."""
    return [int(part) for part in volume_id[1:].partition("@")[0].split(".")]
