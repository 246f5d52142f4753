"""Volumes for the browse tests, made by tools we did not write, and Readers that misbehave on demand."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fixtures.tools import run_tool
from imagefs.block.views import BytesReader, clamp
from imagefs.errors import BrowseError, IntegrityError, PathNotFound
from imagefs.interfaces import Entry, EntryType, Reader
from tests.support.oracles import need_tool

KIB = 1024
MIB = 1024 * 1024
#: 2021-02-03 04:05:06.123456789 UTC
STAMP_NS = 1_612_325_106_123_456_789


class FileReader:
    """A file as a Reader; ``start`` skips to a partition."""

    def __init__(self, path: Path, start: int = 0, length: int | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._start = start
        rest = os.fstat(self._fd).st_size - start
        self.size = rest if length is None else min(length, rest)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return os.pread(self._fd, clamp(self.size, offset, length), self._start + offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()


class BreakingReader:
    """A Reader that fails inside ``[start, stop)`` once ``broken`` is set."""

    def __init__(self, reader: Reader, start: int, stop: int, *, broken: bool = True) -> None:
        self._reader = reader
        self._range = start, stop
        self.size = reader.size
        self.broken = broken

    def read_at(self, offset: int, length: int, /) -> bytes:
        start, stop = self._range
        if self.broken and offset < stop and offset + length > start:
            raise IntegrityError("chunk 17 fails its check", chunk=17)
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        pass


class CountedReader:
    """A Reader that counts the bytes it gave."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.size
        self.bytes = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = self._reader.read_at(offset, length)
        self.bytes += len(data)
        return data

    def close(self) -> None:
        self._reader.close()


class CrowdedReader:
    """A Reader that notices two reads at once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.size
        self._inside = threading.Semaphore(1)
        self.crowded = False

    def read_at(self, offset: int, length: int, /) -> bytes:
        if not self._inside.acquire(blocking=False):
            self.crowded = True
            return self._reader.read_at(offset, length)
        try:
            return self._reader.read_at(offset, length)
        finally:
            self._inside.release()

    def close(self) -> None:
        pass


@dataclass
class FakeFs:
    """A FileSystem out of dictionaries, for trees that no tool would make."""

    tree: dict[bytes, list[Entry]]
    content: dict[bytes, Reader] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)
    damaged: set[bytes] = field(default_factory=set)
    kind: str = "fake"
    label: str = ""
    case_insensitive: bool = False
    used_bytes: int | None = None

    def root(self) -> Entry:
        return folder(b"/", "2")

    def lookup(self, path: bytes, /) -> Entry:
        raise PathNotFound("there is no path here")

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        yield from self.tree.get(entry.path, [])
        if entry.path in self.damaged:
            raise BrowseError(f"{entry.path!r} is damaged")

    def open(self, entry: Entry, /) -> Reader:
        return self.content.get(entry.path) or BytesReader(entry.path)

    def readlink(self, entry: Entry, /) -> bytes:
        return self.links[entry.path]

    def close(self) -> None:
        pass


def folder(path: bytes, inode: str, **more: object) -> Entry:
    return Entry(path, EntryType.DIRECTORY, 0, inode, **{"mode": 0o755, **more})  # type: ignore[arg-type]


def file(path: bytes, inode: str = "9", **more: object) -> Entry:
    return Entry(path, EntryType.FILE, len(path), inode, **{"mode": 0o644, **more})  # type: ignore[arg-type]


def link(path: bytes, inode: str = "8") -> Entry:
    return Entry(path, EntryType.SYMLINK, 1, inode, mode=0o777)


# -- volumes ---------------------------------------------------------------------------------------


def sparse_file(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def stage(root: Path) -> Path:
    """A folder of what a file system can hold without root: links, holes, odd names, a full directory."""
    (root / "d" / "e").mkdir(parents=True)
    (root / "many").mkdir()
    (root / "a.txt").write_bytes(b"hello\n")
    (root / "rnd").write_bytes(pattern(300_000))
    (root / "empty").touch()
    (root / "d" / "e" / "deep").write_bytes(b"deep")
    os.link(root / "a.txt", root / "d" / "hard")
    os.symlink("../a.txt", root / "d" / "link")
    os.symlink("x" * 200, root / "longlink")
    os.symlink(b"odd\ntarget^", root / "oddlink")
    os.mkfifo(root / "fifo")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_bytes(b"latin")
    (root / "new\nline").write_bytes(b"control")
    with (root / "sparse").open("wb") as stream:
        stream.truncate(3 * MIB)
        stream.seek(2 * MIB + 5)
        stream.write(b"middle")
    for number in range(300):
        (root / "many" / f"file_with_a_longish_name_{number}").write_text(str(number))
    os.chmod(root / "a.txt", 0o4751)
    os.chmod(root / "d", 0o2750)
    for path in (root / "a.txt", root / "d" / "e" / "deep"):
        os.utime(path, ns=(STAMP_NS + 1, STAMP_NS))
    return root


def pattern(length: int) -> bytes:
    """Bytes that differ from block to block."""
    return b"".join(struct.pack("<I", number * 2654435761 & 0xFFFFFFFF) for number in range(-(-length // 4)))[
        :length
    ]


def make_ext(path: Path, root: Path, *words: str, kind: str = "ext4", size: int = 16 * MIB) -> Path:
    need_tool("mke2fs")
    sparse_file(path, size)
    run_tool(["mke2fs", "-q", "-F", "-t", kind, "-b", "1024", "-L", "extlabel", *words, "-d", root, path])
    return path


def debugfs(path: Path, *script: str) -> str:
    need_tool("debugfs")
    done = run_tool(["debugfs", "-w", "-f", "-", path], stdin="\n".join((*script, "")).encode())
    return done.stdout.decode("utf-8", "replace")


def make_large_folder(path: Path, room: Path, count: int) -> Path:
    """ext4 with a folder ``/many`` of ``count`` names, ``name-0000000.dat`` and on, for a hundred files.

    No tool makes one in reasonable time: the blocks of the folder are written as a file, which is
    then told to be a folder.
    """
    files = room / "files"
    files.mkdir()
    for number in range(100):
        (files / f"file-{number}").write_bytes(b"x" * number)
    make_ext(path, room, "-b", "4096", "-O", "^metadata_csum,^has_journal", size=count * 32 + 16 * MIB)
    said = debugfs(path, "ls -p /files")
    inodes = [int(line.split("/")[1]) for line in said.splitlines() if "/file-" in line]
    own = int(debugfs(path, "stat /files").split("Inode:")[1].split()[0])
    blob = room / "blob"
    with blob.open("wb") as stream:
        block = dirent(own, b".", kind=2) + dirent(2, b"..", kind=2)
        for number in range(count):
            entry = dirent(inodes[number % len(inodes)], b"name-%07d.dat" % number)
            if len(block) + len(entry) > 4096:
                stream.write(_closed(block))
                block = b""
            block += entry
        stream.write(_closed(block))
    debugfs(
        path, f"write {blob} many", "set_inode_field many mode 040755", "set_inode_field many links_count 2"
    )
    blob.unlink()
    return path


def dirent(inode: int, name: bytes, length: int = 0, kind: int = 1) -> bytes:
    """An entry of an ext directory, as long as it must be or ``length`` bytes."""
    size = 8 + len(name) + -len(name) % 4
    return (struct.pack("<IHBB", inode, length or size, len(name), kind) + name).ljust(length or size, b"\0")


def _closed(block: bytes) -> bytes:
    """A directory block whose rest is an entry that is not in use."""
    return block + dirent(0, b"", 4096 - len(block)) if len(block) < 4096 else block


def make_ntfs(path: Path, files: dict[str, bytes], room: Path, *, size: int = 12 * MIB) -> Path:
    """An NTFS volume; a name with a colon is an alternate data stream."""
    need_tool("mkntfs", "ntfscp")
    sparse_file(path, size)
    run_tool(
        ["mkntfs", "-q", "-F", "-Q", "-L", "NtLabel", "-s", "512", "-p", "0", "-H", "16", "-S", "63", path]
    )
    for name, data in files.items():
        source = room / "source"
        source.write_bytes(data)
        base, _, stream = name.partition(":")
        more = ["-N", stream] if stream else []
        run_tool(["ntfscp", "-q", "-f", *more, path, source, base])
    return path


def make_fat(path: Path, root: Path, *words: str, size: int = 8 * MIB) -> Path:
    need_tool("mkfs.fat", "mcopy")
    sparse_file(path, size)
    run_tool(["mkfs.fat", "-n", "FATLABEL", *words, path])
    run_tool(["mcopy", "-s", "-m", "-i", path, *sorted(root.iterdir()), "::"])
    return path


def fls(path: Path) -> dict[bytes, str]:
    """What ``fls`` lists of live files: path -> inode. Virtual files, streams and labels left out."""
    need_tool("fls")
    out: dict[bytes, str] = {}
    for line in run_tool(["fls", "-rp", path]).stdout.split(b"\n"):
        head, tab, name = line.partition(b":\t")
        kind, _, inode = head.partition(b" ")
        if not tab or inode.startswith(b"*") or kind.lower() == b"v/v" or b"$OrphanFiles" in name:
            continue
        if name.endswith(b" (Volume Label Entry)") or b":" in name:
            continue
        out[b"/" + name] = inode.decode()
    return out


def icat(path: Path, inode: str) -> bytes:
    need_tool("icat")
    return run_tool(["icat", path, inode]).stdout


# -- NTFS by hand ----------------------------------------------------------------------------------


def mft_record(path: Path, number: int) -> tuple[int, bytes]:
    """(offset in the volume, the record with its fixups undone) of one of the first MFT records."""
    boot = path.read_bytes()[:512]
    cluster = struct.unpack_from("<H", boot, 11)[0] * boot[13]
    offset = struct.unpack_from("<Q", boot, 48)[0] * cluster + number * 1024
    raw = bytearray(path.read_bytes()[offset : offset + 1024])
    assert raw[:4] == b"FILE"
    array = struct.unpack_from("<H", raw, 4)[0]
    for sector in (1, 2):
        raw[sector * 512 - 2 : sector * 512] = raw[array + 2 * sector : array + 2 * sector + 2]
    return offset, bytes(raw)


def write_record(path: Path, offset: int, record: bytes) -> None:
    raw = bytearray(record)
    array = struct.unpack_from("<H", raw, 4)[0]
    for sector in (1, 2):
        end = sector * 512
        raw[array + 2 * sector : array + 2 * sector + 2] = raw[end - 2 : end]
        raw[end - 2 : end] = raw[array : array + 2]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(raw)


def add_attribute(path: Path, number: int, kind: int, data: bytes, *, name: str = "") -> None:
    """Add a resident attribute to an MFT record, as its last: ``kind`` must be above those there."""
    offset, record = mft_record(path, number)
    used = struct.unpack_from("<I", record, 24)[0]
    text = name.encode("utf-16-le")
    start = 24 + len(text) + -len(text) % 8
    length = start + len(data) + -len(data) % 8
    head = struct.pack("<IIBBHHHIHBB", kind, length, 0, len(name), 24, 0, 99, len(data), start, 0, 0)
    body = (head + text).ljust(start, b"\0") + data
    end = used - 8
    assert record[end : end + 4] == b"\xff\xff\xff\xff"
    new = record[:end] + body.ljust(length, b"\0") + b"\xff\xff\xff\xff\0\0\0\0"
    new = new[:24] + struct.pack("<I", used + length) + new[28:]
    assert len(new) <= 1022
    write_record(path, offset, new + bytes(1024 - len(new)))


def reparse_point(tag: int, data: bytes) -> bytes:
    return struct.pack("<IHH", tag, len(data), 0) + data


def symlink_data(target: str, *, relative: bool, junction: bool = False) -> bytes:
    substitute, shown = f"\\??\\{target}".encode("utf-16-le"), target.encode("utf-16-le")
    head = struct.pack("<HHHH", 0, len(substitute), len(substitute), len(shown))
    flags = b"" if junction else struct.pack("<I", int(relative))
    return head + flags + substitute + shown
