"""What a user writes after the options of ``find``, as values: sizes, moments, patterns, words. UsageError
for what makes no sense."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from types import FrameType

from imagefs.browse.find import Range
from imagefs.errors import BrowseError, UsageError

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE = re.compile(r"(\d{1,18})(?:([kmgtp])(?:i?b)?|[cb]?)", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_AGO = re.compile(
    r"(\d{1,9}) ?(s|sec|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?|y|years?)", re.IGNORECASE
)
_SINCE_1970 = re.compile(r"@(-?\d{1,12})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: CPU time that one pattern may take on one path.
PATIENCE_SECONDS = 1.0


def size_range(text: str) -> Range:
    """``+10M`` at least, ``-4k`` at most, ``512`` exactly, ``4k..10M`` between; in bytes, nothing rounded."""
    low, dots, high = text.partition("..")
    if dots and (low or high):
        return Range(_size(low, text) if low else None, _size(high, text) if high else None)
    number = _size(text[1:] if text[:1] in ("+", "-") else text, text)
    return {"+": Range(low=number), "-": Range(high=number)}.get(text[:1], Range(number, number))


def _size(number: str, text: str) -> int:
    match = _SIZE.fullmatch(number)
    if not match:
        raise UsageError(f"{text!r} is not a size", hint="write +10M, -4k, 512 or 4k..10M")
    return int(match[1]) << 10 * _UNITS[(match[2] or "").upper()]


def moment(text: str, zone: tzinfo | None) -> int:
    """A date, a date with a time, ``@SECONDS``, or how long ago; in ns since 1970. ``zone`` None is local."""
    ago = _AGO.fullmatch(text)
    if ago:
        return time.time_ns() - int(ago[1]) * _SECONDS[ago[2][0].lower()] * 10**9
    since = _SINCE_1970.fullmatch(text)
    if since:
        return int(since[1]) * 10**9
    try:
        local = datetime.fromisoformat(text)
        if local.tzinfo is None and zone is not None:
            local = local.replace(tzinfo=zone)
        return (local.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{text!r} is not a time", hint="write 2026-11-17, '2026-11-17 14:00', 3d or @1700000000"
        ) from error


def path_pattern(text: str, *, ignore_case: bool) -> Callable[[bytes], bool]:
    """A test of whole paths, from end to end. A dot is any character, a newline too."""
    try:
        match = re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0)).fullmatch
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}") from error

    patience = _Patience(text)

    def test(path: bytes) -> bool:
        with patience:
            patience.path = path
            return match(path.decode("utf-8", "surrogateescape")) is not None

    return test


class _Patience:
    """Python's ``re`` tries everything that a pattern allows, and names come from the disk: ``(a+)+b`` on
    thirty times ``a`` takes minutes. After a second of CPU time a signal ends it, which ``re`` looks out for;
    only the main thread has signals, and the command line is all in it."""

    path = b""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __enter__(self) -> None:
        signal.signal(signal.SIGVTALRM, self._stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        shown = self.path.decode("utf-8", "backslashreplace")
        raise BrowseError(f"{self._pattern!r} takes too long on the path '{shown}'", path=self.path)


def needle_of_text(text: bytes) -> tuple[bytes, ...]:
    """The spellings of a text: its own bytes, and UTF-16 as Windows writes it."""
    if not text:
        raise UsageError("--contains needs a text")
    try:
        return text, text.decode("utf-8").encode("utf-16-le")
    except UnicodeDecodeError:
        return (text,)


def needle_of_hex(text: str) -> tuple[bytes, ...]:
    """``de ad be ef``, ``deadbeef`` or ``0xdeadbeef``."""
    try:
        data = bytes.fromhex(text.removeprefix("0x").replace(":", " "))
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not in hex", hint="two digits a byte, such as 'de ad be ef'"
        ) from error
    if not data:
        raise UsageError("--contains-hex needs bytes")
    return (data,)
