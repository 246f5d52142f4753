"""NTFS volumes as Windows leaves them, made with ntfs-3g and an independent compressor (wimlib)."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.tools import run_tool
from tests.browse.disks import reparse_point
from tests.support.oracles import need_tool

#: Name of WOF's algorithm -> (its number, bytes of a chunk, wimlib's compression type).
PACKINGS = {
    "XPRESS4K": (0, 4096, 1),
    "LZX": (1, 32768, 2),
    "XPRESS8K": (2, 8192, 1),
    "XPRESS16K": (3, 16384, 1),
}
WOF_TAG = 0x80000017


@contextmanager
def ntfs3g(volume: Path, folder: Path, *options: str) -> Iterator[Path]:
    """``volume`` mounted by ntfs-3g at ``folder``."""
    need_tool("ntfs-3g", "fusermount3")
    folder.mkdir(exist_ok=True)
    run_tool(["ntfs-3g", "-o", ",".join(("streams_interface=windows", *options)), volume, folder])
    try:
        yield folder
    finally:
        run_tool(["fusermount3", "-u", folder])


def wof_stream(data: bytes, packing: str) -> bytes:
    """What Windows keeps in ``WofCompressedData``: chunk table and chunks compressed by wimlib."""
    _, chunk, kind = PACKINGS[packing]
    with _compressor(kind, chunk) as compress:
        parts = [compress(data[at : at + chunk]) for at in range(0, len(data), chunk)]
    table, place = b"", 0
    for part in parts[:-1]:
        place += len(part)
        table += struct.pack("<I", place)
    return table + b"".join(parts)


def wof_reparse(packing: str) -> bytes:
    return reparse_point(WOF_TAG, struct.pack("<4I", 1, 2, 1, PACKINGS[packing][0]))


def make_wof(path: Path, data: bytes, packing: str, *, stream: bytes | None = None) -> None:
    """A file on a mounted NTFS (``streams_interface=windows``) as ``compact /exe`` leaves it."""
    Path(f"{path}:WofCompressedData").write_bytes(wof_stream(data, packing) if stream is None else stream)
    os.truncate(path, len(data))
    os.setxattr(path, "system.ntfs_reparse_data", wof_reparse(packing))


@contextmanager
def _compressor(kind: int, chunk: int) -> Iterator[object]:
    found = ctypes.util.find_library("wim")
    assert found, "libwim is missing: install wimtools"
    wim = ctypes.CDLL(found)
    wim.wimlib_compress.restype = ctypes.c_size_t
    wim.wimlib_compress.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    ]
    handle = ctypes.c_void_p()
    made = wim.wimlib_create_compressor(kind, ctypes.c_size_t(chunk), 0, ctypes.byref(handle))
    assert made == 0, f"wimlib_create_compressor: {made}"

    def compress(data: bytes) -> bytes:
        """Compressed; the bytes as they are where that is not shorter."""
        room = ctypes.create_string_buffer(len(data))
        size = wim.wimlib_compress(data, len(data), room, len(data) - 1, handle)
        return room.raw[:size] if size else data

    try:
        yield compress
    finally:
        wim.wimlib_free_compressor(handle)
