"""What the machine can do at most: the same chunks through bare zstd and BLAKE3 on the same threads.

No files are written, nothing is indexed, nothing is kept in order.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

THREADS = os.cpu_count() or 1
_BATCH = 64


def compress_time(disk: Path, offsets: Sequence[int], *, chunk: int, level: int) -> float:
    """Seconds to compress the chunks at ``offsets``, out of the page cache, the results thrown away."""
    with disk.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        whole = memoryview(view)

        def work(batch: Sequence[int]) -> None:
            press = zstandard.ZstdCompressor(level=level)
            for offset in batch:
                press.compress(whole[offset : offset + chunk])

        try:
            return _time(work, offsets)
        finally:
            whole.release()


def decode_hash_time(disk: Path, offsets: Sequence[int], *, chunk: int, level: int) -> float:
    """Seconds to decode and BLAKE3-hash the chunks, which were compressed beforehand into memory."""
    return decode_time(disk, offsets, chunk=chunk, level=level, then=lambda plain: blake3(plain).digest())


def decode_time(
    disk: Path,
    offsets: Sequence[int],
    *,
    chunk: int,
    level: int,
    then: Callable[[bytes], object] = lambda plain: None,
) -> float:
    """Seconds to decode the chunks, which were compressed beforehand into memory, and do that with each."""
    press = zstandard.ZstdCompressor(level=level)
    with disk.open("rb") as stream:
        frames = [press.compress(os.pread(stream.fileno(), chunk, offset)) for offset in offsets]

    def work(batch: Sequence[bytes]) -> None:
        unpress = zstandard.ZstdDecompressor()
        for frame in batch:
            then(unpress.decompress(frame))

    return _time(work, frames)


def digest_time(disk: Path, algorithm: str) -> float:
    """Seconds to read a whole file and make one linear digest of it, on one thread."""
    begin = time.perf_counter()
    with disk.open("rb") as stream:
        hashlib.file_digest(stream, algorithm)
    return time.perf_counter() - begin


def read_hash_time(disk: Path, offsets: Sequence[int], *, chunk: int) -> float:
    """Seconds to read and BLAKE3-hash the chunks."""
    with disk.open("rb", buffering=0) as stream:
        descriptor = stream.fileno()

        def work(batch: Sequence[int]) -> None:
            for offset in batch:
                blake3(os.pread(descriptor, chunk, offset)).digest()

        return _time(work, offsets)


def _time(work: Callable[[Sequence[Any]], None], items: Sequence[Any]) -> float:
    """Wall time of ``work`` over all items, in batches on as many threads as there are cores."""
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(THREADS) as pool:
        begin = time.perf_counter()
        for _ in pool.map(work, batches):
            pass
        return time.perf_counter() - begin
