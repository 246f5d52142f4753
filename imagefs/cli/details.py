"""What ``stat`` tells besides the entry itself: named streams, extended attributes, whose clock its times are."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from imagefs.cli.console import Console
from imagefs.cli.text import quote, valid_text
from imagefs.errors import BrowseError
from imagefs.interfaces import Entry, FileSystem, HasStreams, HasXattrs

LOCAL_TIMES = "local-times"


def details(console: Console, fs: FileSystem, entry: Entry) -> dict[str, Any]:
    """Rows for ``stat``; raises BrowseError where an attribute cannot be read."""
    row: dict[str, Any] = {}
    if LOCAL_TIMES in entry.flags:
        row["times"] = f"local time without a zone, read as {console.fat_zone} (--fat-tz)"
    streams = fs.streams(entry) if isinstance(fs, HasStreams) and "stream" not in entry.flags else []
    if streams:
        row["streams"] = [_named(each.name) | {"size": each.size} for each in streams]
    found = fs.xattrs(entry) if isinstance(fs, HasXattrs) else {}
    if found:
        row["xattrs"] = [_named(name) | _value(value) for name, value in found.items()]
    return row


def stat_lines(row: dict[str, Any]) -> Iterator[str]:
    """A row as text: a key and its value a line, a line for each stream and attribute."""
    for key, value in row.items():
        if key == "streams":
            for each in value:
                yield f"{'stream':<10} {_quoted(each, 'name')} {each['size']}"
        elif key == "xattrs":
            for each in value:
                yield f"{'xattr':<10} {_quoted(each, 'name')}={_quoted(each, 'value')}"
        elif key in ("path", "target"):
            yield f"{key:<10} {_text(value)}"
        else:
            yield f"{key:<10} {'-' if value in (None, '') else value}"


def with_streams(console: Console, fs: FileSystem, entries: Iterator[Entry]) -> Iterator[Entry]:
    """``entries`` with the named streams of each behind it."""
    for entry in entries:
        yield entry
        try:
            for each in (
                fs.streams(entry) if isinstance(fs, HasStreams) and "stream" not in entry.flags else ()
            ):
                yield fs.lookup(entry.path + b":" + each.name)
        except BrowseError as error:
            console.warn(error.message)
            console.exit_code = 3


def _text(value: str) -> str:
    return quote(value.encode("utf-8", "surrogateescape"))


def _quoted(each: dict[str, Any], key: str) -> str:
    """Text quoted, other bytes in base 64 behind ``0s``, as ``getfattr`` writes them."""
    raw = each.get(f"{key}_b64")
    return _text(each[key]) if raw is None else f"0s{raw}"


def _named(name: bytes) -> dict[str, Any]:
    text = valid_text(name)
    if text is not None:
        return {"name": text}
    return {"name": name.decode("utf-8", "replace"), "name_b64": base64.b64encode(name).decode()}


def _value(value: bytes) -> dict[str, Any]:
    text = valid_text(value)
    if text is not None and text.isprintable():
        return {"value": text}
    return {"value_b64": base64.b64encode(value).decode()}
