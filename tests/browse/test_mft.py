"""MFT records without TSK: the same entries as TSK makes, and no bytes that they do not survive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.devices import open_source
from imagefs.browse.mft import Stream, decode, pieces_of, record_size
from imagefs.browse.tsk import open_tsk
from imagefs.browse.walk import walk
from imagefs.interfaces import Entry
from tests.browse.disks import mft_record


def entries(path: Path, *, own: bool) -> list[Entry]:
    reader = open_source(str(path))
    fs = open_tsk(reader)
    if not own:
        fs._maker._mft = None
        fs._directories._facts = replace(fs._facts, mft=None)
    found = list(walk(fs, fs.root(), onerror=lambda error: None))
    fs.close()
    reader.close()
    return found


def test_entries_are_those_that_tsk_makes(ntfs: Path) -> None:
    ours = entries(ntfs, own=True)
    assert len(ours) > 15
    assert ours == entries(ntfs, own=False)


@given(st.binary(max_size=1100), st.integers(0, 1023))
def test_any_record_is_survived(noise: bytes, at: int) -> None:
    head = b"FILE\x30\0\3\0".ljust(1024, b"\0")
    for raw in (noise, (head[:at] + noise)[:1024].ljust(1024, b"\0")):
        record = decode(raw)
        assert record is None or record.data is None or record.data.size >= 0


@given(st.integers(0, 1023), st.integers(1, 255))
def test_any_flip_in_a_record_is_survived(ntfs: Path, at: int, mask: int) -> None:
    offset, _ = mft_record(ntfs, 5)
    with ntfs.open("rb") as stream:
        stream.seek(offset)
        raw = bytearray(stream.read(1024))
    assert decode(bytes(raw)) is not None
    raw[at] ^= mask
    decode(bytes(raw))


@given(st.binary(max_size=40), st.integers(0, 1 << 40))
def test_any_runs_are_inside_the_volume_or_none(runs: bytes, size: int) -> None:
    pieces = pieces_of(Stream(0, size, None, runs), 4096, 1 << 30)
    end = 0
    for piece in pieces or []:
        assert piece.start == end
        assert piece.source is None or 0 <= piece.source < 1 << 30
        end += piece.length
    assert pieces is None or end == size


@given(st.binary(max_size=512))
def test_any_boot_sector_is_survived(boot: bytes) -> None:
    assert record_size(boot) in (None, 512, 1024, 2048, 4096)
