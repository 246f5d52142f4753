"""Which image a user means: words, prefixes of ids, and points in time in any zone."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import UsageError
from imagefs.image.select import select

RANGE = (datetime(1971, 1, 1), datetime(2200, 1, 1))
BERLIN = ZoneInfo("Europe/Berlin")
NS = 10**9


def image(when: datetime | int, image_id: str = "") -> Any:
    """As much of an ImageInfo as selecting looks at."""
    if isinstance(when, datetime):
        span = when - datetime(1970, 1, 1, tzinfo=UTC)
        when = span // timedelta(microseconds=1) * 1000
    return SimpleNamespace(created=when, id=image_id or f"{when:032x}", name=f"{when}.imagefs")


def at(text: str, zone: Any = UTC) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


DAYS = [image(at(f"2026-11-{day}T{hour}:30:00")) for day in (16, 17, 18) for hour in ("02", "14")]


# -- words and prefixes ---------------------------------------------------------------------------


def test_words() -> None:
    assert select(DAYS, "") is select(DAYS, "latest") is select(DAYS, "latest~0") is DAYS[-1]
    assert select(DAYS, "latest~1") is DAYS[-2]
    assert select(DAYS, "latest~5") is DAYS[0]


@pytest.mark.parametrize("word", ["latest~6", "latest~999999999"])
def test_too_far_back(word: str) -> None:
    with pytest.raises(UsageError, match="too far") as caught:
        select(DAYS, word)
    assert "6 images" in caught.value.hint


@pytest.mark.parametrize(
    "word",
    [
        "newest",
        "latest~",
        "latest~-1",
        "latest-1",
        "abc",
        "xyz12345",
        "2026-11",
        "17.11.2026",
        "@",
        "1" * 33,
        "~1",
    ],
)
def test_what_names_nothing(word: str) -> None:
    with pytest.raises(UsageError, match="does not name an image") as caught:
        select(DAYS, word)
    assert "latest" in caught.value.hint


def test_an_empty_set() -> None:
    with pytest.raises(UsageError, match="no images") as caught:
        select([], "latest")
    assert "capture" in caught.value.hint


def test_prefixes() -> None:
    images = [
        image(1, "3f2a9c1e" + "0" * 24),
        image(2, "3f2a9d00" + "0" * 24),
        image(3, "beef0000" + "0" * 24),
    ]
    assert select(images, "beef") is images[2]
    assert select(images, "BEEF") is images[2]
    assert select(images, "3f2a9c") is images[0]
    assert select(images, images[1].id) is images[1]
    with pytest.raises(UsageError, match=r"1\.imagefs and 2\.imagefs") as caught:
        select(images, "3f2a9")
    assert "more digits" in caught.value.hint
    with pytest.raises(UsageError, match="no image's id begins with dead"):
        select(images, "dead")


def test_a_copy_under_another_name_is_the_same_image() -> None:
    images = [image(1, "3f2a9c1e" + "0" * 24), image(1, "3f2a9c1e" + "0" * 24)]
    assert select(images, "3f2a") in images


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("2026-11-17", 3),  # the end of that day
        ("2026-11-17T14:30", 3),  # the end of that minute
        ("2026-11-17T14:30:00", 3),  # the end of that second
        ("2026-11-17T14:29", 2),
        ("2026-11-17T14:29:59", 2),
        ("2026-11-17T02:30:00Z", 2),
        ("2026-11-17T04:30+02:00", 2),
        ("2026-11-17T04:29+02:00", 1),
        ("2026-11-17T04:30+0200", 2),
        ("2026-11-17T00:00-05:30", 2),
        ("2026-11-17T14:30:00.999", 3),
        ("2030-01-01", 5),
        ("2026-11-16", 1),
        ("2026-11-17Z", 3),
        ("2026-11-17+12:00", 2),
    ],
)
def test_the_newest_at_or_before(moment: str, number: int) -> None:
    assert select(DAYS, moment, zone=UTC) is DAYS[number]


def test_before_the_first() -> None:
    with pytest.raises(UsageError, match="no image at or before") as caught:
        select(DAYS, "2026-11-15", zone=BERLIN)
    assert "2026-11-16 03:30 +0100" in caught.value.hint


@pytest.mark.parametrize(
    "moment",
    [
        "2026-13-01",
        "2026-02-30",
        "2026-11-17T25:00",
        "2026-11-17T14:61",
        "0000-01-01",
        "2026-11-17+99:00",
        "9999-12-31",
    ],
)
def test_times_that_are_none(moment: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(DAYS, moment, zone=UTC)
    assert caught.value.hint


def test_a_day_is_the_users_day() -> None:
    """23:30 in Berlin is still that day there, and in UTC too; 00:30 is the next only in Berlin."""
    images = [image(at("2026-07-01T21:30:00")), image(at("2026-07-01T22:30:00"))]
    assert select(images, "2026-07-01", zone=BERLIN) is images[0]
    assert select(images, "2026-07-01", zone=UTC) is images[1]


def test_the_systems_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        images = [image(at("2026-07-01T21:30:00")), image(at("2026-07-01T22:30:00"))]
        assert select(images, "2026-07-01") is images[0]
        assert select(images, "2026-07-02T00:30") is images[1]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_hour_that_comes_twice() -> None:
    """On 2026-10-25 the clocks of Berlin go from 03:00 back to 02:00."""
    images = [
        image(at("2026-10-24T23:59:30")),  # 01:59 summer time
        image(at("2026-10-25T00:30:00")),  # 02:30 summer time
        image(at("2026-10-25T01:30:00")),  # 02:30 winter time
        image(at("2026-10-25T22:59:59")),  # one second before midnight
        image(at("2026-10-25T23:00:00")),  # midnight
    ]
    assert select(images, "2026-10-25T01:59", zone=BERLIN) is images[0]
    assert select(images, "2026-10-25T02:30", zone=BERLIN) is images[2]
    assert select(images, "2026-10-25T02:30+02:00", zone=BERLIN) is images[1]
    assert select(images, "2026-10-25", zone=BERLIN) is images[3]


def test_the_hour_that_is_left_out() -> None:
    """On 2026-03-29 the clocks of Berlin go from 02:00 on to 03:00."""
    images = [
        image(at("2026-03-29T00:59:00")),
        image(at("2026-03-29T21:59:00")),
        image(at("2026-03-29T22:00:00")),
    ]
    assert select(images, "2026-03-29T02:30", zone=BERLIN) is images[0]
    assert select(images, "2026-03-29", zone=BERLIN) is images[1]


@given(
    moments=st.lists(
        st.datetimes(*RANGE),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    asked=st.datetimes(*RANGE),
    minutes=st.integers(-14 * 60, 14 * 60),
    parts=st.sampled_from([1, 3, 4]),
)
def test_any_time_in_any_zone(moments: list[datetime], asked: datetime, minutes: int, parts: int) -> None:
    """Against a model: cut the moment, add one of its smallest part, take the last one before that."""
    zone = timezone(timedelta(minutes=minutes))
    images = [image(moment.replace(tzinfo=UTC)) for moment in sorted(moments)]
    form, step = {
        1: ("%Y-%m-%d", timedelta(days=1)),
        3: ("%Y-%m-%dT%H:%M", timedelta(minutes=1)),
        4: ("%Y-%m-%dT%H:%M:%S", timedelta(seconds=1)),
    }[parts]
    text = asked.strftime(form)
    end = datetime.strptime(text, form).replace(tzinfo=zone) + step
    before = [info for info in images if info.created < image(end).created]
    if before:
        assert select(images, text, zone=zone) is before[-1]
    else:
        with pytest.raises(UsageError):
            select(images, text, zone=zone)


@given(st.text(max_size=40))
def test_any_text_is_an_image_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert select(DAYS, text, zone=UTC) in DAYS
