"""What is fuzzed: everything that looks at the bytes of a disk, from the partition table to the files.

``python -m tests.fuzz.target WORK SECONDS SEEDS...`` runs atheris over it; with ``--once FILE...`` each file is tried
once. Only ImagefsErrors are answers; anything else is a finding, and so is what takes too long.
"""

from __future__ import annotations

import contextlib
import sys
from itertools import islice
from pathlib import Path

from tests.fuzz.sparse import SparseDisk

#: So much is done with one disk: entries of a volume, bytes of a file.
ENTRIES, BYTES = 60, 32 << 10


def try_disk(data: bytes) -> None:
    """One disk, through the floors volume, allocation and browse."""
    from imagefs.errors import ImagefsError
    from imagefs.ops.usedblocks import find_skips
    from imagefs.volume import probe, read_table

    disk = SparseDisk(data)
    sector_size = (512, 4096)[data[3:4] > b"\x80"]
    volumes = read_table(disk, sector_size=sector_size).volumes
    for volume in volumes:
        assert 0 <= volume.start <= volume.start + volume.length <= disk.size
    skips, _ = find_skips(disk, sector_size=sector_size)  # type: ignore[arg-type]
    assert all(0 <= first < end <= disk.size for first, end in zip(skips.first, skips.end, strict=True))
    for volume in volumes[:3]:
        part = _slice(disk, volume)
        assert probe(part) is not None
        with contextlib.suppress(ImagefsError):
            look_into(part)


def _slice(disk, volume):  # type: ignore[no-untyped-def]
    from imagefs.block.views import SliceReader

    return SliceReader(disk, volume.start, volume.length)


def look_into(part) -> None:  # type: ignore[no-untyped-def]
    """Walk, read and ask everything there is to ask."""
    from imagefs.browse.opening import open_filesystem
    from imagefs.browse.walk import walk
    from imagefs.errors import ImagefsError

    with contextlib.closing(open_filesystem(part)) as fs:
        with contextlib.suppress(ImagefsError):
            assert isinstance(fs.label, str)
            assert fs.used_bytes is None or fs.used_bytes >= 0
        if hasattr(fs, "deleted"):
            with contextlib.suppress(ImagefsError):
                for entry in islice(fs.deleted(), ENTRIES):
                    ask(fs, entry)
        for entry in islice(walk(fs, fs.root(), onerror=lambda error: None), ENTRIES):
            assert entry.path.startswith(b"/")
            assert b"\0" not in entry.path
            ask(fs, entry)


def ask(fs, entry) -> None:  # type: ignore[no-untyped-def]
    from imagefs.errors import ImagefsError, PathNotFound

    with contextlib.suppress(PathNotFound, ImagefsError):
        if not entry.deleted:
            assert fs.lookup(entry.path).path is not None
    with contextlib.suppress(ImagefsError):
        for place in fs.places(entry):
            assert place.first <= place.end
    for name, words in (("streams", ()), ("xattrs", ()), ("wholeness", ())):
        with contextlib.suppress(ImagefsError):
            if hasattr(fs, name):
                getattr(fs, name)(entry, *words)
    with contextlib.suppress(ImagefsError):
        if entry.type == "symlink":
            assert fs.readlink(entry)
        elif entry.type == "file":
            content = fs.open(entry)
            data = content.read_at(0, BYTES)
            assert len(data) == min(content.size, BYTES)
            with contextlib.suppress(ImagefsError):
                content.read_at(max(0, content.size - 100), 100)


def _in_this_process() -> None:
    """Capture looks into NTFS in a worker, where a crash would not be seen, and starts partclone, which is not
    ours to fuzz. Checksums of APFS are taken for right: a fuzzer makes none."""
    from imagefs.allocation import partclone
    from imagefs.browse import apfsdisk
    from imagefs.browse.opening import open_filesystem
    from imagefs.ops import usedblocks

    apfsdisk.is_whole = lambda raw: True
    usedblocks._open = open_filesystem
    partclone.KINDS = frozenset()  # type: ignore[assignment]


def fuzz(work: Path, seconds: int, seeds: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["imagefs"]):
        import imagefs.allocation.exfat
        import imagefs.allocation.ext
        import imagefs.allocation.fat
        import imagefs.allocation.ntfs
        import imagefs.browse.apfs
        import imagefs.browse.fat
        import imagefs.browse.tsk
        import imagefs.ops.usedblocks
        import imagefs.volume  # noqa: F401
    _in_this_process()
    words = [
        f"-max_total_time={seconds}", "-timeout=600", "-rss_limit_mb=2500", "-max_len=200000", "-len_control=0",
        f"-artifact_prefix={work}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *words, *seeds], try_disk)
    atheris.Fuzz()


def main() -> None:
    if sys.argv[1] == "--once":
        _in_this_process()
        for name in sys.argv[2:]:
            try_disk(Path(name).read_bytes())
        return
    fuzz(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])


if __name__ == "__main__":
    main()
