"""What is shown of a file beside the list, and first in the viewer: read in a thread, without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from imagefs.interfaces import EntryType
from imagefs.tui.content import SAMPLE, guess_encoding, hex_lines, text_lines
from imagefs.tui.names import plain
from imagefs.tui.picture import Picture, look_at
from imagefs.tui.session import Located

#: Lines of a preview.
LINES = 200


def preview_lines(place: Located) -> Sequence[tuple[str, str]]:
    """(line, look) of the beginning of a file, and what a link, an empty file or anything else is."""
    entry = place.entry
    if entry.type is EntryType.SYMLINK:
        return [(f"a link to {plain(place.fs.readlink(entry))}", "dim")]
    if entry.type is not EntryType.FILE:
        return [(f"a {entry.type}", "dim")]
    with closing(place.fs.open(entry)) as reader:
        if not reader.size:
            return [("an empty file", "dim")]
        picture = look_at(reader)
        if picture is not None:
            return picture_lines(picture)
        sample = reader.read_at(0, SAMPLE)
    encoding = guess_encoding(sample)
    if not encoding:
        return [(line, "") for line in hex_lines(sample[: 16 * LINES], size=reader.size)]
    return [(line, "") for line in text_lines(sample, encoding)[:LINES]]


def picture_lines(picture: Picture) -> list[tuple[str, str]]:
    return [(f"{name:<13} {value}", "") for name, value in picture.lines()]
