"""``verify --level deep``: files that cannot be read to their end, in images whose chunks are all right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures import inner
from imagefs.block.views import MarkedReader
from imagefs.image.catalog import scan
from imagefs.interfaces import Finding, State
from imagefs.ops.capture import Mode
from imagefs.ops.deep import look_into
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.innervolumes import Secret
from imagefs.ops.verify import Verifier
from imagefs.store import MemoryStore
from tests.browse.apfsdisks import disk_of
from tests.browse.disks import debugfs, make_ext, make_ntfs, pattern, sparse_file
from tests.browse.mac import in_fork, make_mac
from tests.support.images import capture_file
from tests.support.oracles import run_tool


@contextmanager
def captured(path: Path) -> Iterator[DiskImage]:
    store = MemoryStore()
    capture_file(store, path, mode=Mode.ALL)
    catalog = scan(store)
    (info,) = catalog.images
    with DiskImage(catalog.open_disk(info), info) as disk:
        yield disk


def found_in(path: Path) -> list[Finding]:
    with captured(path) as disk:
        return list(look_into(disk))


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    (tmp_path / "tree/folder").mkdir(parents=True)
    (tmp_path / "tree/folder/large").write_bytes(pattern(300_000))
    (tmp_path / "tree/small").write_bytes(b"small")
    (tmp_path / "tree/link").symlink_to("small")
    return make_ext(tmp_path / "ext4", tmp_path / "tree")


def test_disks_that_are_whole(ext4: Path, tmp_path: Path) -> None:
    ntfs = make_ntfs(tmp_path / "ntfs", {"file": pattern(50_000), "file:stream": b"other"}, tmp_path)
    (tmp_path / "apfs").write_bytes(disk_of("case_insensitive"))
    for path in (ext4, ntfs, tmp_path / "apfs"):
        assert found_in(path) == []


def test_what_is_no_file_system_is_nothing_to_look_into(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "swap", 4 << 20)
    run_tool(["mkswap", path])
    assert found_in(path) == []
    (found,) = found_in(sparse_file(tmp_path / "empty", 1 << 20))
    assert (found.severity, found.code) == ("note", "unknown")


def test_damage_of_before_the_capture_is_found(ext4: Path) -> None:
    """An extent past the end of the volume, a folder's block, a link without a target."""
    debugfs(ext4, "set_inode_field /folder/large block[5] 99999999", "set_inode_field /link size 900")
    (found, link) = found_in(ext4)
    assert (found.severity, found.code, found.files) == ("error", "file", ("/p0/folder/large",))
    assert "/folder/large" in found.message
    assert link.files == ("/p0/link",)
    block = int(debugfs(ext4, "bmap /folder 0").split()[-1])
    with ext4.open("r+b") as disk:
        disk.seek(block * 1024)
        disk.write(b"\xff" * 64)
    codes = [each.code for each in found_in(ext4)]
    assert codes == ["file", "folder"]


def test_a_file_system_that_cannot_be_opened(ext4: Path) -> None:
    with ext4.open("r+b") as disk:
        disk.seek(1024 + 40)
        disk.write(bytes(4))  # no inodes in a group
    (found,) = found_in(ext4)
    assert (found.severity, found.code) == ("error", "filesystem")


@pytest.mark.parametrize(("state", "severity"), [(State.UNREADABLE, "error"), (State.SKIPPED, "warning")])
def test_what_is_not_in_the_image_is_told(ext4: Path, state: State, severity: str) -> None:
    with captured(ext4) as disk:
        fs = disk.filesystem(0)
        place = next(each for each in fs.places(fs.lookup(b"/folder/large")) if not each.stream)
        disk.read_through(MarkedReader(disk.disk, [place.first], [place.first + 1024], state))
        (found,) = look_into(disk)
    assert (found.severity, found.code, found.files) == (severity, "file", ("/p0/folder/large",))
    assert "1024 bytes" in found.message


def test_content_that_macos_compressed_is_decoded(tmp_path: Path) -> None:
    attribute, fork = in_fork(4, b"compressible " * 20_000)
    assert found_in(make_mac(tmp_path / "right", {20: (attribute, fork)})) == []
    bad = bytearray(fork)
    bad[len(bad) // 2] ^= 0x40
    (found,) = found_in(make_mac(tmp_path / "wrong", {20: (attribute, bytes(bad))}))
    assert found.files == ("/p0/passwords.txt",)


def test_encrypted_volumes_are_told_and_looked_into_with_their_secret(tmp_path: Path) -> None:
    (tmp_path / "apfs").write_bytes(disk_of("encrypted"))
    for path, volume, secret in (
        (tmp_path / "apfs", "p0", b"password"),
        (inner.unpack("lvm", tmp_path / "lvm"), "p4", inner.PASSPHRASE),
    ):
        with captured(path) as disk:
            locked = [each for each in look_into(disk) if each.code == "locked"]
            assert any(each.severity == "warning" and "--unlock" in each.message for each in locked)
        with captured(path) as disk:
            disk.unlock({volume: Secret(secret)})
            assert not [
                each for each in look_into(disk) if volume in each.message or each.severity == "error"
            ]


def test_deep_needs_a_chain_that_is_sound(ext4: Path) -> None:
    store = MemoryStore()
    capture_file(store, ext4, mode=Mode.ALL)
    catalog = scan(store)
    (info,) = catalog.images
    data = bytearray(store.objects[info.name])
    data[-100] ^= 1
    store.objects[info.name] = bytes(data)
    verifier = Verifier(catalog, level="deep")
    verifier.verify(info)
    verifier.look_into(info, lambda catalog, info: pytest.fail("it is opened"))
    assert not verifier.report.ok


def test_findings_are_damage_for_the_command(ext4: Path, tmp_path: Path) -> None:
    def imagefs(*words: str | Path, ok: tuple[int, ...] = (0,)) -> str:
        return run_tool([sys.executable, "-P", "-m", "imagefs", *words], cwd=tmp_path, ok=ok).stdout.decode()

    imagefs("capture", ext4, "whole")
    assert "level deep" in imagefs("verify", "whole", "--level", "deep")
    debugfs(ext4, "set_inode_field /folder/large block[5] 99999999")
    imagefs("capture", ext4, "hurt", "--mode", "all")
    imagefs("verify", "hurt")
    document = json.loads(imagefs("verify", "hurt", "--level", "deep", "--json", ok=(4,)))
    (row,) = document["findings"]
    assert (row["files"], document["level"], document["ok"]) == (["/p0/folder/large"], "deep", False)
