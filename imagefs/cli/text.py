"""How things are written for people: sizes, times, ages, names. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: Bytes that a shell takes as they are, so that a name made of them needs no quotes.
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@^_~")
ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}


def size_text(count: int | None) -> str:
    """``1.5 GiB``; bytes up to 1,023 as they are; ``-`` for unknown."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def time_text(ns: int | None, zone: tzinfo | None) -> str:
    """Local time with its offset, or in ``zone``; ``-`` for unknown."""
    moment = moment_of(ns)
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %z") if moment else "-"


def time_json(ns: int | None) -> str | None:
    """RFC 3339 in UTC with what precision there is; None for unknown."""
    moment = moment_of(ns)
    if moment is None or ns is None:
        return None
    fraction = f".{ns % 10**9:09d}".rstrip("0") if ns % 10**9 else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def moment_of(ns: int | None) -> datetime | None:
    """The time as a datetime; None for unknown and for what no calendar holds."""
    try:
        return None if ns is None else datetime.fromtimestamp(ns // 10**9, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def age_text(ns: int, now_ns: int) -> str:
    """``3 days``: how long ago, in the largest unit that fits twice, or plainly ``just now``."""
    seconds = (now_ns - ns) // 10**9
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if seconds >= 2 * length or (seconds >= length and unit == "second"):
            count = seconds // length
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now" if seconds > -60 else "in the future"


def duration_text(seconds: float) -> str:
    """``1:02:03`` or ``02:03``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"


def quote(name: bytes) -> str:
    """A name as GNU ``ls`` shows it on a terminal (shell-escape): it can be pasted back into a shell."""
    if name and all(byte in PLAIN for byte in name) and not name.startswith((b"~", b"#")):
        return name.decode("ascii")
    parts: list[tuple[bool, str]] = []
    for char in _characters(name):
        escaped = isinstance(char, int) or not char.isprintable()
        if escaped:
            raw = bytes([char]) if isinstance(char, int) else char.encode()
            shown = "".join(ESCAPES.get(byte, f"\\{byte:03o}") for byte in raw)
        else:
            shown = "'\\''" if char == "'" else str(char)
        if parts and parts[-1][0] is escaped:
            parts[-1] = (escaped, parts[-1][1] + shown)
        else:
            parts.append((escaped, shown))
    return "".join(f"$'{text}'" if escaped else f"'{text}'" for escaped, text in parts) or "''"


def _characters(name: bytes) -> list[str | int]:
    """The characters of ``name``; a byte that is no valid UTF-8 stands as its number."""
    text = name.decode("utf-8", "surrogateescape")
    return [ord(char) - 0xDC00 if 0xDC80 <= ord(char) <= 0xDCFF else char for char in text]


def valid_text(name: bytes) -> str | None:
    """The name as text, or None where it is not valid UTF-8."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None


def one_line(value: object) -> str:
    """Text that came out of an image, made safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def use_text(use: dict[str, Any]) -> str:
    """What was captured of a volume in mode used, and by which map or why all of it."""
    how = f"all of it, because {use['whole']}" if use["whole"] else f"by its {use['source']}"
    return f"{size_text(use['used'])} captured, {how}"
