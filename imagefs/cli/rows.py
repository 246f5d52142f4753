"""Entries and names of an image as ``--json`` writes them."""

from __future__ import annotations

import base64
from typing import Any

from imagefs.cli.text import time_json, valid_text
from imagefs.interfaces import Entry


def path_fields(key: str, path: bytes) -> dict[str, Any]:
    """A path or name under ``key``; where it is not valid Unicode its bytes too, under ``<key>_b64``."""
    text = valid_text(path)
    if text is not None:
        return {key: text}
    return {key: path.decode("utf-8", "replace"), f"{key}_b64": base64.b64encode(path).decode()}


def entry_row(path: bytes, entry: Entry) -> dict[str, Any]:
    """One entry of ``ls``, ``find`` and ``stat``."""
    named = path_fields("path", path)
    return {
        "path": named.pop("path"),
        "type": str(entry.type),
        "size": entry.size,
        "mtime": time_json(entry.mtime_ns),
        "inode": entry.inode,
        "deleted": entry.deleted,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
    } | named
