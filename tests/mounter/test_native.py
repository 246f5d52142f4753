"""Native mounts without mounting: which driver, which options, and what is said when there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.block.commands import Output
from imagefs.errors import MountError, SourceError
from imagefs.volume.probe import KINDS
from mounter import native
from mounter.native import DRIVERS, Natives, NativeWish
from mounter.state import MountRecord, MountStates, NativeMount

#: What is no file system, or has no driver that an ordinary kernel or a package brings.
NOT_MOUNTABLE = {"refs", "bitlocker", "apfs", "swap", "luks", "lvm2", "raid"}


class Host:
    """A system with some programs and some drivers in the kernel; remembers what was run."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, kernel: Sequence[str], programs: Sequence[str]
    ) -> None:
        self.kernel, self.ran = kernel, []  # type: tuple[Sequence[str], list[list[str]]]
        monkeypatch.setattr(native, "run_command", self.run)
        monkeypatch.setattr(native.shutil, "which", lambda name, path: name if name in programs else None)

    def run(self, argv: Sequence[str], *, timeout: float | None) -> Output:
        self.ran.append(list(argv))
        if argv[0] == "mount" and argv[1] == "-t" and argv[2] not in self.kernel:
            return Output(
                32, "", f"mount: /n: unknown filesystem type '{argv[2]}'.\n  dmesg(1) may have more.\n"
            )
        return Output(0, "/dev/loop7\n", "")


def wish(kind: str, *, writable: bool = False) -> NativeWish:
    return NativeWish("p2", "/n", kind, writable)


def test_every_kind_has_drivers_or_is_known_to_have_none() -> None:
    assert set(DRIVERS) == KINDS - NOT_MOUNTABLE


@pytest.mark.parametrize("kind", sorted(DRIVERS))
def test_options_never_write_unless_asked(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    everything = [driver.name for driver in DRIVERS[kind]], [driver.program for driver in DRIVERS[kind]]
    for writable in (False, True):
        host = Host(monkeypatch, kernel=everything[0], programs=everything[1])
        native.mount_device(wish(kind, writable=writable), "/dev/loop7", "/n")
        first, second = host.ran
        for words in host.ran:
            options = words[words.index("-o") + 1].split(",")
            assert {"nosuid", "nodev", "noexec"} <= set(options)
            assert writable or "ro" in options
        assert first[-2:] == ["/dev/loop7", "/n"]
        assert second[:2] == ["mount", "-o"]
        journals = {"ext3": "noload", "ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}
        if kind in journals:
            assert (journals[kind] in first[first.index("-o") + 1].split(",")) is not writable


def test_the_next_driver_is_tried_and_a_missing_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, kernel=[], programs=["mount.exfat-fuse"])
    native.mount_device(wish("exfat"), "/dev/loop7", "/n")
    assert [words[0] for words in host.ran] == ["mount", "mount.exfat-fuse", "mount"]
    Host(monkeypatch, kernel=["ntfs3"], programs=[])
    native.mount_device(wish("ntfs"), "/dev/loop7", "/n")
    Host(monkeypatch, kernel=[], programs=[])
    for kind, package in (("exfat", "exfat-fuse"), ("ntfs", "ntfs-3g"), ("fat16", "fusefat")):
        with pytest.raises(MountError) as caught:
            native.mount_device(wish(kind), "/dev/loop7", "/n")
        assert "this kernel has no driver" in caught.value.message
        assert "is not installed" in caught.value.message
        assert caught.value.hint == f"apt install {package}"
    with pytest.raises(MountError, match="no driver for xfs") as caught:
        native.mount_device(wish("xfs"), "/dev/loop7", "/n")
    assert caught.value.exit_code == 50


def test_what_holds_no_file_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for kind, said in (("", "no file system that is known"), ("luks", "holds luks")):
        with pytest.raises(MountError, match=said):
            Natives([wish(kind)], "/mnt").prepare()


def test_directories_are_made_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    places = [replace(wish("ext4"), directory=str(tmp_path / name)) for name in ("a", "b")]
    natives = Natives(places, str(tmp_path / "mnt"))
    natives.prepare()
    assert (tmp_path / "b").is_dir()
    natives.forget()
    (tmp_path / "b").write_bytes(b"in the way")
    with pytest.raises(MountError, match="not a directory"):
        Natives(places, str(tmp_path / "mnt")).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with pytest.raises(MountError, match="one lies in the other"):
        Natives([places[0], places[0]], str(tmp_path / "mnt")).prepare()
    assert not (tmp_path / "a").exists()


def test_a_program_that_is_missing_or_hangs_is_an_error_of_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Output:
        raise SourceError("losetup did not end within 30 seconds")

    monkeypatch.setattr(native, "run_command", broken)
    with pytest.raises(MountError, match="did not end"):
        native._make_loop("/mnt/p1.raw", writable=False)
    monkeypatch.setattr(native, "run_command", lambda *_, **__: Output(1, "", "losetup: no free device"))
    with pytest.raises(MountError, match="no free device"):
        native._make_loop("/mnt/p1.raw", writable=False)


def test_what_became_somebody_elses_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device number that was given away again, a directory with something in it."""
    monkeypatch.setattr(native, "run_command", None)
    (tmp_path / "n").mkdir()
    (tmp_path / "n/file").touch()
    status = (tmp_path / "n").stat()
    gone = NativeMount("p2", str(tmp_path / "n"), "/dev/loop999", (status.st_dev, status.st_ino))
    native.undo([gone], str(tmp_path / "mnt"), lazy=False)
    assert (tmp_path / "n/file").exists()
    assert not native.is_there(gone, str(tmp_path / "mnt"))


def test_records_keep_native_mounts_and_odd_ones_are_passed_over(tmp_path: Path) -> None:
    states = MountStates(tmp_path)
    mounts = (NativeMount("p1", "/n1", "/dev/loop1", (1, 2)), NativeMount("p2", "/n2", "/dev/loop2"))
    record = MountRecord("/mnt/a", "an image", 1, 2, 3, "/log", overlay="/o", natives=mounts)
    states.write(record)
    assert states.read("/mnt/a") == record
    (file,) = tmp_path.glob("*.json")
    whole = json.loads(file.read_text())
    for natives in ("x", [1], [{}], [{**whole["natives"][0], "device": 7}], {"a": 1}, 5):
        file.write_text(json.dumps({**whole, "natives": natives}))
        assert states.read("/mnt/a") is None
    file.write_text(json.dumps({key: whole[key] for key in whole if key not in ("natives", "overlay")}))
    assert states.read("/mnt/a") == replace(record, natives=(), overlay="")
