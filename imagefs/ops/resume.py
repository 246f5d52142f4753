"""Resuming a capture: choosing the partial, proving that the source is still the same, feeding digests again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from imagefs.block.devices import DeviceReader
from imagefs.block.rescue import MEDIUM_ERRORS
from imagefs.errors import ChainError, ImagefsError, SourceError, StoreError, UsageError
from imagefs.format.codec import digest_of
from imagefs.format.index import Rows
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.image.disk import VirtualDisk
from imagefs.image.resume import Partial, read_partial, stretches
from imagefs.interfaces import State
from imagefs.ops.linear import LinearDigests
from imagefs.ops.plan import CaptureOptions, SourceFacts, header_text, known_bad_digest
from imagefs.ops.skips import Skips, joined
from imagefs.ops.source import difference

#: Chunks of the source that are read again before anything is added.
SAMPLE = 64
#: What is fed to the digests at once, in chunks.
_STEP = 64


def newest_partial(catalog: Catalog, facts: SourceFacts) -> Partial:
    """The unfinished capture that was begun last. Raises UsageError when none can be resumed."""
    found: list[Partial] = []
    reasons: list[str] = []
    for info in catalog.partials:
        reader = catalog.store.open_partial(info.name)
        try:
            found.append(read_partial(reader, info.name, disk_size=facts.disk_size))
        except ImagefsError as error:
            reader.close()
            reasons.append(error.message)
    if not found:
        why = f": {reasons[0]}" if reasons else ""
        raise UsageError(
            f"{catalog.store.url} holds no unfinished capture that could be resumed{why}",
            hint="leave --resume out to start a new one",
        )
    found.sort(key=lambda partial: partial.header.created)
    for other in found[:-1]:
        other.close()
    return found[-1]


def partial_of(catalog: Catalog, name: str, disk_size: int) -> Partial:
    """The unfinished image that is to become ``name``."""
    for info in catalog.store.partials():
        if name in info.name:
            return read_partial(catalog.store.open_partial(info.name), info.name, disk_size=disk_size)
    raise StoreError(f"the unfinished image {name} is gone", hint="start the capture again")


def resumed_options(options: CaptureOptions, partial: Partial) -> CaptureOptions:
    """What the capture was begun with; only threads and limits are this run's.

    Whatever is said again has to be the same: UsageError rather than an image of which something was
    asked that it does not have.
    """
    header, facts = partial.header, partial.header.facts
    hashes, case = facts.get("hashes", []), facts.get("case", {})
    begun = replace(
        options,
        mode=header.mode,
        level=header.level,
        hashes=tuple(str(name) for name in hashes) if isinstance(hashes, list) else (),
        case=case if isinstance(case, dict) else {},
    )
    differs = {
        "the case data are": options.case and header_text(options.case) != begun.case,
        "the digests are": options.hashes and set(options.hashes) != set(begun.hashes),
        "the mode is": options.mode not in (None, header.mode),
        "the kind is": options.kind not in (None, header.kind),
        "the chunk size is": options.chunk_size not in (None, header.chunk_size),
        "the note is": options.note and header_text({"": options.note})[""] != facts.get("note"),
        "the mapfile is": known_bad_digest(options) != facts.get("mapfile", ""),
    }
    for what in (what for what, different in differs.items() if different):
        raise UsageError(
            f"{what} not what {partial.name} was begun with",
            hint="give the same options again, or start a new capture, without --resume",
        )
    return begun


def find_parent(catalog: Catalog, partial: Partial) -> ImageInfo | None:
    """The parent that the capture was begun on. Raises ChainError when it is gone or another."""
    header = partial.header
    if header.parent is None:
        return None
    parent = catalog.by_uuid.get(header.parent)
    sealed = parent is not None and parent.tail.seal == header.parent_seal
    if parent is None or not sealed or parent.summary.view != header.parent_view:
        raise ChainError(
            f"the parent {header.parent.hex[:8]} of {partial.name} is not in the set any more",
            hint="start again without --resume",
        )
    return parent


def check_source(
    source: DeviceReader, partial: Partial, parent: VirtualDisk | None, facts: SourceFacts
) -> None:
    """SourceError unless ``source`` is the disk that ``partial`` was begun on, as it was then."""
    if partial.header.facts.get("snapshot") in ("lvm", "reflink"):
        raise UsageError(
            f"{partial.name} was read from a snapshot, which is gone",
            hint="start a new capture, without --resume",
        )
    old = partial.header.facts.get("source")
    old = old if isinstance(old, dict) else {}
    reason = difference(old, facts.identity, old_size=source.size, new_size=source.size)
    if not reason and old.get("size") != source.size:
        reason = f"it has {source.size} bytes, it had {old.get('size')} when the capture was begun"
    if not reason and old.get("mtime_ns") != facts.identity.get("mtime_ns"):
        reason = "it was written to since"
    if not reason and partial.header.sector_size != facts.sector_size:
        reason = "its sector size is another"
    reason = reason or _sampled(source, partial, parent)
    if reason:
        raise SourceError(
            f"{source.path} is not as it was when the capture was begun: {reason}",
            hint="start a new capture, without --resume",
            path=source.path,
        )


def check_skips(source: DeviceReader, partial: Partial, skips: Skips) -> None:
    """SourceError unless the file systems still leave out what they left out when the capture began."""
    done, ranges = min(partial.next_chunk * partial.header.chunk_size, source.size), partial.ranges()
    skipped = ranges.state == State.SKIPPED
    before = Skips(ranges.first[skipped], (ranges.first + ranges.count)[skipped])
    now = skips.within(0, done)
    if joined(before.within(0, done)) != joined(now):
        raise SourceError(
            f"{source.path} is not as it was when the capture was begun: other blocks are in use",
            hint="start a new capture, without --resume",
            path=source.path,
        )


def _sampled(source: DeviceReader, partial: Partial, parent: VirtualDisk | None) -> str:
    """Read some chunks of the source again: the first, the last, and others between, whatever their state."""
    bad, chunk, unread, compared = _bad_chunks(partial), partial.header.chunk_size, 0, 0
    wanted = np.unique(np.linspace(0, partial.next_chunk - 1, SAMPLE).astype(np.int64))
    for state, first, count, rows in stretches(partial):
        if state in (State.UNREADABLE, State.SKIPPED):
            continue
        low, high = np.searchsorted(wanted, (first, first + count)).tolist()
        # Of what was stored itself always something, however little it is.
        chosen = set(wanted[low:high].tolist()) | ({first} if rows is not None and low == high else set())
        for number in sorted(chosen - bad):
            plain = _read_if_readable(source, number * chunk, chunk)
            if plain is None:
                unread += 1
                continue
            compared += 1
            if rows is not None:
                same = digest_of(plain) == rows.digest[number - first].tobytes()
            elif state is State.ABSENT and parent is not None:
                same = plain == parent.read_at(number * chunk, chunk)
            else:
                same = state is not State.ZERO or not any(plain)
            if not same:
                return f"chunk {number} has other bytes"
    return "nothing of what was captured can be read any more" if unread and not compared else ""


def _read_if_readable(source: DeviceReader, offset: int, length: int) -> bytes | None:
    """None for a bad place: a disk that is dying has new ones, and they prove nothing."""
    try:
        return source.read_at(offset, length)
    except SourceError as error:
        if error.data.get("errno") not in MEDIUM_ERRORS:
            raise
        return None


def unreadable(partial: Partial) -> list[tuple[int, int]]:
    """(offset, length) of what could not be read so far."""
    ranges = partial.ranges()
    lost = ranges.state == State.UNREADABLE
    return list(zip(ranges.first[lost].tolist(), ranges.count[lost].tolist(), strict=True))


def _bad_chunks(partial: Partial) -> set[int]:
    """Chunks that hold something skipped or unreadable: the source has other bytes there."""
    ranges, chunk = partial.ranges(), partial.header.chunk_size
    edges = zip(ranges.first.tolist(), ranges.count.tolist(), strict=True)
    return {number for first, count in edges for number in {first // chunk, (first + count - 1) // chunk}}


def feed_again(
    digests: LinearDigests,
    partial: Partial,
    parent: VirtualDisk | None,
    disk_size: int,
    check_stop: Callable[[], None] | None = None,
) -> None:
    """Give ``digests`` what was captured already, from the unfinished image and its parent."""
    for piece in _plain(partial, parent, disk_size):
        if check_stop is not None:
            check_stop()
        if isinstance(piece, int):
            digests.feed_zeros(piece)
        else:
            digests.feed(piece)


def _plain(partial: Partial, parent: VirtualDisk | None, disk_size: int) -> Iterator[bytes | int]:
    chunk = partial.header.chunk_size
    for state, first, count, rows in stretches(partial):
        start, stop = first * chunk, min((first + count) * chunk, disk_size)
        if rows is not None:
            yield from _stored(partial, rows, disk_size)
        elif state is State.ABSENT and parent is not None:
            for at in range(start, stop, _STEP * chunk):
                yield parent.read_at(at, min(_STEP * chunk, stop - at))
        else:
            yield stop - start


def _stored(partial: Partial, rows: Rows, disk_size: int) -> Iterator[bytes]:
    chunk = partial.header.chunk_size
    for i in range(len(rows)):
        yield partial.plain(rows, i, min(chunk, disk_size - rows.chunk_no.item(i) * chunk))
