"""What the lists of the browser show, line by line, in cells of the widths that there are. No screen in here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from imagefs.cli.text import age_text, moment_of, size_text
from imagefs.interfaces import EntryType, Finding, Whole
from imagefs.tui.folder import Marks, Rows, mark_of
from imagefs.tui.names import fitted, pieces, text_pieces
from imagefs.tui.session import Point, Version, VolumeRow

Cell = tuple[str, str]
#: What stands before a name, as Midnight Commander has it, and how the name looks.
_GLYPHS = {
    EntryType.FILE: (" ", ""),
    EntryType.DIRECTORY: ("/", "folder"),
    EntryType.SYMLINK: ("@", "link"),
    EntryType.DEVICE: ("+", "special"),
    EntryType.FIFO: ("|", "special"),
    EntryType.SOCKET: ("=", "special"),
    EntryType.OTHER: ("?", "special"),
}
_WORDS = {
    Whole.INTACT: "good",
    Whole.GUESS: "warm",
    Whole.PARTLY: "warm",
    Whole.OVERWRITTEN: "bad",
    Whole.ABSENT: "bad",
    Whole.UNKNOWN: "bad",
}
_SIZE, _TIME, _WORD, _AGE = 10, 16, max(len(word) for word in Whole), 14


def short_time(ns: int | None, zone: tzinfo | None) -> str:
    """``2026-11-20 03:00``, for columns."""
    moment = moment_of(ns)
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M}" if moment else "-"


def cell(text: str, width: int, look: str = "") -> list[Cell]:
    """Text of whatever origin, at the left of its column."""
    return [(part, "escape" if escape else look) for part, escape in fitted(text_pieces(text), width)]


class FolderTable:
    """A folder, its rows in the order ``shown``. ``whole``: with a column for how whole deleted files are."""

    def __init__(
        self, rows: Rows, shown: Sequence[int], marks: Marks, *, zone: tzinfo | None, whole: bool
    ) -> None:
        self.rows, self.shown = rows, shown
        self._marks = marks
        self._zone = zone
        self._whole = whole

    def __len__(self) -> int:
        return len(self.shown)

    def heading(self, width: int, /) -> str:
        word = f" {'left of it':<{_WORD}}" if self._whole else ""
        return f"{'  name':<{self._room(width)}}{word} {'size':>{_SIZE}}  {'modified':<{_TIME}}"

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        index = self.shown[number]
        rows = self.rows
        gone = rows.gone.get(index)
        glyph, look = _GLYPHS[rows.type(index)]
        if gone is not None:
            look = "deleted"
        mark = "*" if mark_of(rows, index)[0] in self._marks else " "
        row: list[Cell] = [(mark, "mark"), (glyph, look)]
        room = self._room(width) - 2
        name_look = "mark" if mark == "*" and not look else look
        row += [
            (text, "escape" if escape else name_look)
            for text, escape in fitted(pieces(rows.names[index]), room)
        ]
        if self._whole:
            word = gone.word if gone else None
            row.append((f" {word or '':<{_WORD}}", _WORDS.get(word, "") if word else ""))
        size = "" if rows.is_folder(index) else size_text(rows.size(index))
        return [*row, (f" {size:>{_SIZE}}", ""), (f"  {short_time(rows.time(index), self._zone)}", "dim")]

    def _room(self, width: int) -> int:
        return max(8, width - _SIZE - _TIME - 4 - (_WORD + 1 if self._whole else 0))


class VolumeTable:
    """The volumes of a disk."""

    def __init__(self, volumes: Sequence[VolumeRow]) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def heading(self, width: int, /) -> str:
        return f"  {'volume':<10}{'size':>{_SIZE}} {'used':>{_SIZE}}  {'file system':<12} {'label':<17} role"

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        each = self.volumes[number]
        return [
            (f" /{each.name:<10}", "folder"),
            (f"{size_text(each.size):>{_SIZE}} {size_text(each.used):>{_SIZE}}  ", ""),
            *cell(each.filesystem or "-", 12, "" if each.filesystem else "dim"),
            (" ", ""),
            *cell(each.label or "-", 17),
            (" ", ""),
            *cell(each.role or "-", max(4, width - 66)),
        ]


class PointTable:
    """The points in time of a set, newest first."""

    def __init__(self, points: Sequence[Point], *, zone: tzinfo | None, now: int) -> None:
        self.points = points
        self._zone, self._now = zone, now

    def __len__(self) -> int:
        return len(self.points)

    def heading(self, width: int, /) -> str:
        return f" {'taken':<{_TIME}}  {'age':<{_AGE}} {'kind':<12} {'stored':>{_SIZE}}  note"

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        each = self.points[number]
        if each.trouble:
            return [
                (f" {'cannot be used':<{_TIME}}  ", "bad"),
                *cell(each.name, max(8, width - 2 * _SIZE - 6), "dim"),
            ]
        return [
            (f" {short_time(each.created, self._zone)}  ", "title"),
            (f"{age_text(each.created, self._now):<{_AGE}} ", "dim"),
            (f"{each.kind:<12} ", "folder" if each.kind == "full" else ""),
            (f"{size_text(each.stored):>{_SIZE}}  ", ""),
            *cell(each.note, max(4, width - 59), "warm"),
        ]


class VersionTable:
    """The versions of one path, newest first."""

    def __init__(self, versions: Sequence[Version], *, zone: tzinfo | None) -> None:
        self.versions = versions
        self._zone = zone

    def __len__(self) -> int:
        return len(self.versions)

    def heading(self, width: int, /) -> str:
        return f" {'since image of':<{_TIME}} {'images':>6} {'':<11} {'size':>{_SIZE}}  {'modified':<{_TIME}}  what"

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        each = self.versions[number]
        looks = {"first seen": "good", "back again": "good", "deleted": "bad", "renamed": "warm"}
        entry = each.entry
        is_file = entry is not None and entry.type is EntryType.FILE
        return [
            (f" {short_time(each.point.created, self._zone)} ", "title"),
            (f"{each.images:>6} ", "dim"),
            (f"{each.change:<11} ", looks.get(each.change, "")),
            (f"{size_text(entry.size) if entry and is_file else '':>{_SIZE}}  ", ""),
            (f"{short_time(entry.mtime_ns, self._zone) if entry else '':<{_TIME}}  ", "dim"),
            *cell(each.what, max(4, width - 68)),
        ]


class FindingTable:
    """What there is to say of single files after an extraction."""

    def __init__(self, findings: Sequence[Finding], more: int) -> None:
        self._lines = [(each.message, "dim" if each.severity == "note" else "warm") for each in findings]
        if more:
            self._lines.append((f"and {more} more like these", "dim"))

    def __len__(self) -> int:
        return len(self._lines)

    def heading(self, width: int, /) -> str:
        return "what there is to say of single files"

    def cells(self, number: int, width: int, /) -> Sequence[Cell]:
        text, look = self._lines[number]
        return cell(text, width, look)


def point_words(point: Point, zone: tzinfo | None) -> str:
    """A point in time for a title."""
    moment = moment_of(point.created)
    taken = f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %z}" if moment else "-"
    return f"{taken}  {point.kind} {point.id[:8]}"


def count_words(number: int, word: str, plural: str = "") -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
