"""What a mark stands for in an image that is open, and all that there is to say of it."""

from __future__ import annotations

from contextlib import closing

from imagefs.errors import ImagefsError
from imagefs.interfaces import EntryType
from imagefs.tui.folder import Mark
from imagefs.tui.picture import look_at
from imagefs.tui.preview import picture_lines
from imagefs.tui.session import Located, OpenPoint


def place_of(opened: OpenPoint, mark: Mark) -> Located:
    return opened.deleted(mark.path) if mark.deleted else opened.live(mark.path)


def facts_of(opened: OpenPoint, mark: Mark) -> list[str]:
    """What `stat` says, and of a picture what its head does."""
    place = place_of(opened, mark)
    lines = opened.facts(mark)
    if place.entry.type is not EntryType.FILE:
        return lines
    try:
        with closing(place.fs.open(place.entry)) as reader:
            picture = look_at(reader)
    except ImagefsError as error:
        return [*lines, "", error.message]
    return lines if picture is None else [*(line for line, _ in picture_lines(picture)), "", *lines]
