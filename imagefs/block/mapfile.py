"""GNU ddrescue's mapfiles: which stretches of a disk were read and which were not.

Format: the manual of ddrescue, "Mapfile structure": comment lines, a status line, then one line a
block: position, size, status (``+`` finished, ``-`` bad sectors, ``*`` ``/`` ``?`` not there yet).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from imagefs.errors import SourceError

MAX_LINES = 4_000_000
_STATUS = frozenset("?*/-+")
_LONGEST = 200


def read_mapfile(path: str) -> list[tuple[int, int, str]]:
    """(offset, length, status) blocks in order. Raises SourceError naming the line that makes no sense."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return list(_parsed(path, stream))
    except OSError as error:
        raise SourceError(f"the mapfile {path} cannot be read: {error.strerror}", path=path) from error


def not_rescued(blocks: Iterable[tuple[int, int, str]]) -> tuple[tuple[int, int], ...]:
    """(offset, length) of whatever is not finished."""
    return tuple((offset, length) for offset, length, status in blocks if status != "+")


def _parsed(path: str, lines: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    end, status_line = 0, False
    for number, line in enumerate(lines, 1):
        words = line[:_LONGEST].partition("#")[0].split()
        if not words:
            continue
        if not status_line:  # current position, status, pass
            status_line = True
            continue
        block = _block(words)
        if block is None or block[0] < end or len(line) > _LONGEST or number > MAX_LINES:
            raise SourceError(f"line {number} of the mapfile {path} makes no sense", path=path, line=number)
        end = block[0] + block[1]
        yield block


def _block(words: Sequence[str]) -> tuple[int, int, str] | None:
    try:
        offset, length, status = int(words[0], 0), int(words[1], 0), words[2]
    except (ValueError, IndexError):
        return None
    fits = offset >= 0 and 0 < length <= 2**63 - 1 - offset and status in _STATUS
    return (offset, length, status) if fits else None


def format_mapfile(
    bad: Iterable[tuple[int, int]], size: int, *, comment: str, untried: Iterable[tuple[int, int]] = ()
) -> Iterator[str]:
    """The lines of a mapfile for a disk of ``size`` bytes of which ``bad`` (offset, length) could not be
    read and ``untried`` was not wanted."""
    yield f"# Mapfile. Created by {comment}"
    yield "# current_pos  current_status  current_pass"
    yield "0x00000000     +               1"
    yield "#      pos        size  status"
    at = 0
    blocks = [(offset, length, "-") for offset, length in bad]
    blocks += [(offset, length, "?") for offset, length in untried]
    for offset, length, status in sorted(blocks):
        if offset > at:
            yield f"0x{at:08X}  0x{offset - at:08X}  +"
        yield f"0x{offset:08X}  0x{length:08X}  {status}"
        at = offset + length
    if at < size:
        yield f"0x{at:08X}  0x{size - at:08X}  +"
