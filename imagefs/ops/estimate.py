"""What a capture will take, guessed from samples before it starts: bytes to read, image size, time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from imagefs.block.devices import DeviceReader
from imagefs.block.views import extents_of
from imagefs.errors import ImagefsError, StoreFull
from imagefs.format.codec import digest_of, make_frame
from imagefs.format.header import Header
from imagefs.image.disk import VirtualDisk
from imagefs.interfaces import ObjectStore, State
from imagefs.ops.skips import Skips

#: Below this nothing is guessed: it is read sooner than anybody has read the guess.
LEAST = 64 << 20
_SAMPLES = 24
_SAMPLE_BYTES = 4 << 20
#: A guess has to exceed the free space by so much before a capture is refused for it.
_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Estimate:
    """``read_bytes`` are known; ``stored_bytes`` and ``seconds`` are guesses from samples."""

    read_bytes: int
    stored_bytes: int
    seconds: float


def estimate(
    source: DeviceReader,
    header: Header,
    parent: VirtualDisk | None,
    skips: Skips,
    *,
    threads: int,
    rate: float | None = None,
) -> Estimate | None:
    """Read samples all over ``source``, and compress what ``parent`` does not have; None for a small disk.

    What cannot be read is no sample: the capture itself will tell. ``rate`` is the limit in bytes a second.
    """
    chunk = header.chunk_size
    wanted = list(_to_read(source, skips, chunk))
    total = sum(count for _, count in wanted) * chunk
    if total < LEAST:
        return None
    read = stored = 0
    reading = packing = 0.0
    each = max(1, min(_SAMPLE_BYTES, total // 2048) // chunk)
    for first in _spread(wanted, _SAMPLES):
        begun = time.monotonic()
        try:
            data = memoryview(source.read_at(first * chunk, each * chunk))
        except ImagefsError:
            continue
        middle = time.monotonic()
        stored += _packed(data, first, header, parent)
        read += len(data)
        reading += middle - begun
        packing += time.monotonic() - middle
    if not read:
        return None
    speed = reading + packing / threads
    seconds = max(speed * total / read, total / rate if rate else 0.0)
    return Estimate(total, stored * total // read, seconds)


def estimate_text(guess: Estimate) -> str:
    minutes = round(guess.seconds / 60)
    hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    time_told = hours if minutes else "less than a minute"
    return f"about {_size(guess.read_bytes)} to read, {_size(guess.stored_bytes)} to store, {time_told}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def check_room(guess: Estimate, store: ObjectStore, *, full: bool) -> str:
    """A warning where the image may not fit the set's disk; StoreFull where a full one surely does not."""
    free = store.free_bytes()
    if free is None or guess.stored_bytes <= free:
        return ""
    told = f"the image will take about {guess.stored_bytes} bytes and {store.url} has {free} free"
    if full and guess.stored_bytes > free * _MARGIN:
        raise StoreFull(told, hint="make room, use another set, or start it all the same with --no-estimate")
    return told


def _packed(data: memoryview, first: int, header: Header, parent: VirtualDisk | None) -> int:
    """Bytes that the chunks of a sample take in the image."""
    count, chunk = 0, header.chunk_size
    for i in range(-(-len(data) // chunk)):
        plain = data[i * chunk : (i + 1) * chunk]
        digest = digest_of(plain)
        if not any(plain[:: len(plain) // 64 or 1]) and plain == bytes(len(plain)):
            continue
        if parent is not None and (first + i + 1) * chunk <= parent.size:
            states, digests = parent.states_and_digests(first + i, 1)
            if states[0] == State.STORED and digests[0].tobytes() == digest:
                continue
        count += len(make_frame(first + i, plain, digest, header.level)[1])
    return count


def _to_read(source: DeviceReader, skips: Skips, chunk: int) -> Iterator[tuple[int, int]]:
    """(first chunk, chunks) of all that is neither skipped nor a hole."""
    position, chunks = 0, -(-source.size // chunk)
    for first, end in [*skips.chunks(chunk, source.size), (chunks, chunks)]:
        if first > position:
            for extent in extents_of(source, position * chunk, (first - position) * chunk):
                if extent.state is State.STORED:
                    start = extent.offset // chunk
                    yield start, -(-(extent.offset + extent.length) // chunk) - start
        position = max(position, end)


def _spread(wanted: list[tuple[int, int]], count: int) -> Iterator[int]:
    """Chunk numbers spread evenly over ``wanted``."""
    total, at, passed = sum(length for _, length in wanted), 0, 0
    for first, length in wanted:
        while at < count and (2 * at + 1) * total // (2 * count) < passed + length:
            yield first + (2 * at + 1) * total // (2 * count) - passed
            at += 1
        passed += length
