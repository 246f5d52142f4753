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
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
    used = (rows[:, :4] == np.frombuffer(b"FILE", np.uint8)).all(axis=1) & (rows[:, 22] & _IN_USE != 0)
    at = np.flatnonzero(used)
    rows = rows[at]
    plain = _unfix(rows)
    found = ~plain
    _touching(found, rows, ranges, cluster)
    numbers: list[int] = at[found].tolist()
    return numbers


def _unfix(rows: Rows) -> npt.NDArray[np.bool_]:
    """Put back the last two bytes of each sector; False for records that are not plainly like most."""
    sectors = rows.shape[1] // _SECTOR
    place, count = _number(rows, 4, 2), _number(rows, 6, 2)
    plain: npt.NDArray[np.bool_] = (count == sectors + 1) & (place >= 42) & (place + 2 * count <= _SECTOR - 2)
    for sector in range(sectors):
        end = (sector + 1) * _SECTOR - 2
        kept = _number(rows, np.where(plain, place + 2 + 2 * sector, end), 2)
        rows[:, end], rows[:, end + 1] = kept & 255, kept >> 8
    return plain


def _touching(found: npt.NDArray[np.bool_], rows: Rows, ranges: Ranges, cluster: int) -> None:
    """Of the records that are not ``found``, find those that have an attribute with a first run in the ranges, or with
    more than one run."""
    size = rows.shape[1]
    left = np.flatnonzero(~found)
    at = _number(rows, 20, 2, left)
    for _ in range(_MAX_ATTRIBUTES):
        fits = at + 64 <= size
        found[left[~fits & (at + 24 <= size)]] = True  # the last attribute may be a short one: one by one
        left, at = left[fits], at[fits]
        kind, length = _number(rows, at, 4, left), _number(rows, at + 4, 4, left)
        more = (kind != _END) & (length >= 24) & (at + length <= size)
        left, at, length = left[more], at[more], length[more]
        if not len(left):
            return
        away = rows[left, at + 8] != 0
        found[left[away]] |= _runs_touch(rows, left[away], at[away], length[away], ranges, cluster)
        at = at + length
    found[left] = True


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
    count = _number(rows, start + 1, many, which)
    place = _number(rows, start + 1 + many, far, which)
    alone = (rows[which, np.where(simple, start + 1 + many + far, 0)] == 0) | (many == 0)
    big = (count < 0) | (count > 1 << 40) | (place > 1 << 40)
    touch = ranges.touch(place * cluster, (place + np.where(big, 0, count)) * cluster) & (far > 0)
    result: npt.NDArray[np.bool_] = (~simple | ~alone | big | touch) & ~(simple & (head == 0))
    return result


def _number(rows: Rows, at: Numbers | int, width: Numbers | int, which: Numbers | None = None) -> Numbers:
    """Little-endian numbers of ``width`` bytes, up to seven, in the column or at the place ``at`` of each row."""
    size = rows.shape[1]
    words: npt.NDArray[np.int64] = np.ndarray((len(rows), size - 7), "<i8", rows, strides=(size, 1))
    first = np.minimum(at, size - 8)  # eight bytes at once, wherever they begin
    found = words[np.arange(len(rows)) if which is None else which, first]
    number: Numbers = found >> (8 * (at - first)) & ((1 << 8 * width) - 1)
    return number
