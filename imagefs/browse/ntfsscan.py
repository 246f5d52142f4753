"""Records of the MFT as columns: most files have one run for each attribute, so a few operations tell which of a
hundred thousand may have something in given places. Layout: as ``mft.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imagefs.block.ranges import Ranges

_SECTOR = 512
_END = 0xFFFFFFFF
_IN_USE = 1
#: Records with more attributes, or longer runs, are looked at one by one.
_MAX_ATTRIBUTES, _MAX_WIDTH = 16, 7

#: Records as bytes, (n, size of a record).
Rows = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


def may_touch(raw: bytes, size: int, ranges: Ranges, cluster: int) -> list[int]:
    """Which of the records in ``raw`` are in use and may have a run in ``ranges``, counted from 0. Some that have
    none are among them, none that has one is missing."""
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size).copy()
    used = (rows[:, :4] == np.frombuffer(b"FILE", np.uint8)).all(axis=1) & (rows[:, 22] & _IN_USE != 0)
    at = np.flatnonzero(used)
    rows = rows[at]
    plain = _unfix(rows)
    return sorted([*at[~plain].tolist(), *at[plain][_touching(rows[plain], ranges, cluster)].tolist()])


def _unfix(rows: Rows) -> npt.NDArray[np.bool_]:
    """Put back the last two bytes of each sector; False for records that are not plainly like most."""
    sectors = rows.shape[1] // _SECTOR
    place, count = _number(rows, 4, 2), _number(rows, 6, 2)
    plain: npt.NDArray[np.bool_] = (count == sectors + 1) & (place >= 42) & (place + 2 * count <= _SECTOR - 2)
    every = np.arange(len(rows))
    for sector in range(sectors):
        for byte in range(2):
            kept = rows[every, np.where(plain, place + 2 + 2 * sector + byte, 0)]
            end = (sector + 1) * _SECTOR - 2 + byte
            rows[:, end] = np.where(plain, kept, rows[:, end])
    return plain


def _touching(rows: Rows, ranges: Ranges, cluster: int) -> npt.NDArray[np.bool_]:
    """Which records have an attribute with a first run in the ranges, or with more than one run."""
    size = rows.shape[1]
    found = np.zeros(len(rows), np.bool_)
    left = np.arange(len(rows))
    at = _number(rows, 20, 2)
    for _ in range(_MAX_ATTRIBUTES):
        fits = at + 64 <= size
        found[left[~fits & (at + 24 <= size)]] = True  # the last attribute may be a short one: one by one
        left, at = left[fits], at[fits]
        kind, length = _number(rows, at, 4, left), _number(rows, at + 4, 4, left)
        more = (kind != _END) & (length >= 24) & (at + length <= size)
        left, at, length = left[more], at[more], length[more]
        if not len(left):
            return found
        away = rows[left, at + 8] != 0
        found[left[away]] |= _runs_touch(rows, left[away], at[away], length[away], ranges, cluster)
        at = at + length
    found[left] = True
    return found


def _runs_touch(
    rows: Rows, which: Numbers, at: Numbers, length: Numbers, ranges: Ranges, cluster: int
) -> npt.NDArray[np.bool_]:
    """For attributes that are not resident: whether the first run lies in the ranges, or there are more."""
    size = rows.shape[1]
    start = at + _number(rows, at + 32, 2, which)
    inside = (start > at) & (start + 2 * _MAX_WIDTH + 2 <= size) & (start < at + length)
    start = np.where(inside, start, 0)
    head = rows[which, start]
    many, far = (head & 15).astype(np.int64), (head >> 4).astype(np.int64)
    simple = inside & (many <= _MAX_WIDTH) & (far <= _MAX_WIDTH)
    many, far = np.where(simple, many, 0), np.where(simple, far, 0)
    count = _varying(rows, which, start + 1, many)
    place = _varying(rows, which, start + 1 + many, far)
    alone = (rows[which, np.where(simple, start + 1 + many + far, 0)] == 0) | (many == 0)
    big = (count < 0) | (count > 1 << 40) | (place > 1 << 40)
    touch = ranges.touch(place * cluster, (place + np.where(big, 0, count)) * cluster) & (far > 0)
    result: npt.NDArray[np.bool_] = (~simple | ~alone | big | touch) & ~(simple & (head == 0))
    return result


def _number(rows: Rows, at: Numbers | int, width: int, which: Numbers | None = None) -> Numbers:
    """Little-endian numbers of ``width`` bytes, in the column or at the place ``at`` of each row."""
    every = np.arange(len(rows)) if which is None else which
    found = np.zeros(len(every), np.int64)
    for byte in range(width):
        found |= rows[every, at + byte].astype(np.int64) << (8 * byte)
    return found


def _varying(rows: Rows, which: Numbers, at: Numbers, width: Numbers) -> Numbers:
    """The same where each has a width of its own, up to seven bytes; unsigned."""
    found = np.zeros(len(which), np.int64)
    for byte in range(_MAX_WIDTH):
        value = rows[which, np.minimum(at + byte, rows.shape[1] - 1)].astype(np.int64) << (8 * byte)
        found |= np.where(byte < width, value, 0)
    return found
