"""The Python API: ``imagefs.open`` and what other libraries make of it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import pytsk3

import imagefs
from imagefs.errors import FormatError, StoreError
from imagefs.interfaces import State
from tests.cli.conftest import Cli
from tests.support.reader_contract import check_reader


def test_a_disk_image_is_a_reader_with_volumes_and_chunks(cli: Cli, ext4: Path, tmp_path: Path) -> None:
    cli("capture", "ext4.raw", "set", "--mode", "all")
    disk = imagefs.open(tmp_path / "set")
    expected = ext4.read_bytes()
    assert disk.size == len(expected)
    assert [volume.id for volume in disk.volumes] == ["p0"]
    chunks = list(disk.chunks)
    assert sum(chunk.length for chunk in chunks) == disk.size
    for chunk in chunks:
        zero = not any(expected[chunk.offset : chunk.offset + chunk.length])
        assert (chunk.state is State.ZERO) == zero
    content = disk.filesystem(0).open(disk.filesystem(0).lookup(b"/report.txt"))
    assert content.read_at(0, 100) == b"the report\n"
    check_reader(disk, expected)


def test_its_file_object_serves_other_libraries(cli: Cli, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "inside " * 10_000)
    (tmp_path / "z.raw").write_bytes(packed.getvalue())
    assert cli("capture", "z.raw", "set", "--raw").code == 0
    with imagefs.open(tmp_path / "set") as disk:
        assert zipfile.ZipFile(disk.file()).read("a.txt") == b"inside " * 10_000
        column = np.frombuffer(disk.file().read(), np.uint8)
        assert column.tobytes() == packed.getvalue()


def test_tsk_reads_it_as_an_image(cli: Cli, ext4: Path, tmp_path: Path) -> None:
    class Image(pytsk3.Img_Info):  # type: ignore[misc]
        def __init__(self, file: io.BufferedReader, size: int) -> None:
            self._file, self._size = file, size
            super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

        def get_size(self) -> int:
            return self._size

        def read(self, offset: int, length: int) -> bytes:
            self._file.seek(offset)
            return self._file.read(length)

    cli("capture", "ext4.raw", "set", "--mode", "all")
    with imagefs.open(tmp_path / "set") as disk:
        names = {
            entry.info.name.name for entry in pytsk3.FS_Info(Image(disk.file(), disk.size)).open_dir("/")
        }
    assert b"report.txt" in names


def test_what_cannot_be_opened_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no image" * 100)
    with pytest.raises(FormatError, match="not an imagefs image"):
        imagefs.open(tmp_path / "x")
    with pytest.raises(StoreError, match="does not exist"):
        imagefs.open(tmp_path / "y")
