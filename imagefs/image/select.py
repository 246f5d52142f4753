"""Which image a user means: ``latest``, ``latest~2``, an id prefix, or a point in time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo

from imagefs.errors import UsageError
from imagefs.image.catalog import ImageInfo

LATEST = re.compile(r"latest(?:~(\d{1,9}))?")
PREFIX = re.compile(r"[0-9a-fA-F]{4,32}")
MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?")


def select(images: Sequence[ImageInfo], selector: str, *, zone: tzinfo | None = None) -> ImageInfo:
    """The image of ``images`` (oldest first) that ``selector`` names.

    ``zone`` is the zone of a time without one, None for local time. Raises UsageError when nothing
    or more than one thing matches.
    """
    if not images:
        raise UsageError("the set has no images", hint="make one with `imagefs capture SOURCE SET`")
    if not selector:
        return images[-1]
    latest = LATEST.fullmatch(selector)
    if latest:
        return _back(images, int(latest[1] or 0))
    if PREFIX.fullmatch(selector):
        return _by_prefix(images, selector.lower())
    moment = MOMENT.fullmatch(selector)
    if moment:
        return _at(images, _end_of(moment, zone), selector, zone)
    raise UsageError(
        f"{selector!r} does not name an image",
        hint="use latest, latest~1, an id of 4 or more hex digits, or a time such as 2026-11-17T14:00",
    )


def _back(images: Sequence[ImageInfo], steps: int) -> ImageInfo:
    if steps >= len(images):
        raise UsageError(f"latest~{steps} goes back too far", hint=f"the set has {len(images)} images")
    return images[-1 - steps]


def _by_prefix(images: Sequence[ImageInfo], prefix: str) -> ImageInfo:
    found = [info for info in images if info.id.startswith(prefix)]
    if not found:
        raise UsageError(f"no image's id begins with {prefix}", hint="`imagefs list` shows the ids")
    if len({info.id for info in found}) > 1:  # a copy under another name is the same image
        names = " and ".join(info.name for info in found)
        raise UsageError(f"the id {prefix} fits {names}", hint="give more digits")
    return found[0]


def _end_of(moment: re.Match[str], zone: tzinfo | None) -> datetime:
    """The first instant after what was named: a day without a time means the end of that day.

    An hour that the clocks show twice means its second pass, so that nothing named is left out.
    """
    day, hour, minute, second, offset = moment.groups()
    try:
        start = datetime.fromisoformat(f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}")
        if offset:
            zone = UTC if offset == "Z" else datetime.fromisoformat(f"2000-01-01T00:00:00{offset}").tzinfo
        if not hour:
            return _instant(start + timedelta(days=1), zone)
        last = max(_instant(start.replace(fold=fold), zone) for fold in (0, 1))
        return last + timedelta(seconds=1 if second else 60)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{moment[0]} is not a time", hint="write 2026-11-17 or 2026-11-17T14:00") from error


def _instant(local: datetime, zone: tzinfo | None) -> datetime:
    """In UTC, where moments can be compared and added to; ``zone`` None is the system's own."""
    return (local.replace(tzinfo=zone) if zone else local).astimezone(UTC)


def _at(images: Sequence[ImageInfo], end: datetime, selector: str, zone: tzinfo | None) -> ImageInfo:
    limit = (end - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    found = [info for info in images if info.created < limit]
    if not found:
        oldest = datetime.fromtimestamp(images[0].created // 10**9, UTC).astimezone(zone)
        raise UsageError(
            f"there is no image at or before {selector}",
            hint=f"the oldest is of {oldest:%Y-%m-%d %H:%M %z}",
        )
    return found[-1]
