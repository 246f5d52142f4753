"""Native mounts: a volume that a mount shows as ``p2.raw``, mounted by the kernel or its own driver too.

For each a loop device over the file and a mount of that; read-only unless asked otherwise, and then
without replaying a journal, so that nothing is ever written. Undone in the opposite order, by whoever
ends the mount, also when the process that served it is gone. Knows the words that volumes' file systems
go by, and the drivers for them; touches no FUSE library.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from imagefs.block.commands import ENVIRONMENT, Output, run_command
from imagefs.errors import MountError, SourceError
from mounter import mounttable
from mounter.detach import detach
from mounter.mountpoint import MountPoint, prepare, remove_made
from mounter.state import MountStates, NativeMount

#: Seconds for losetup; mounting reads, and with a journal to replay writes, much more.
_LOOP_TIMEOUT, _MOUNT_TIMEOUT = 30.0, 120.0
#: A driver that is a program ends, and lets go of its loop device, a moment after the unmount.
_GONE_SECONDS, _PAUSE = 15.0, 0.05
_SAFE = "nosuid,nodev,noexec"


@dataclass(frozen=True, slots=True)
class Driver:
    """``name`` for ``mount -t``; or a ``program`` and the package it is in. Options for both ways.

    The mount table must name the device as the source, by which a mount is known again.
    """

    name: str
    read_only: str = "ro"
    read_write: str = "rw"
    program: str = ""
    package: str = ""


_EXT = (Driver("ext4", "ro,noload"),)
_FAT = (Driver("vfat"), Driver("fusefat", "ro,fsname={device}", "rw+,fsname={device}", "fusefat", "fusefat"))
_NTFS_3G = Driver("ntfs-3g", "ro,norecover", "rw", "ntfs-3g", "ntfs-3g")

#: By the words of volume/probe.py; of several drivers the first that is there.
DRIVERS: dict[str, tuple[Driver, ...]] = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": (Driver("xfs", "ro,norecovery,nouuid", "rw,nouuid"),),
    "btrfs": (Driver("btrfs", "ro,rescue=nologreplay"),),
    "f2fs": (Driver("f2fs", "ro,norecovery"),),
    "ntfs": (_NTFS_3G, Driver("ntfs3")),
    "exfat": (Driver("exfat"), Driver("exfat-fuse", "ro", "rw", "mount.exfat-fuse", "exfat-fuse")),
    "fat12": _FAT,
    "fat16": _FAT,
    "fat32": _FAT,
    "squashfs": (Driver("squashfs"),),
    "erofs": (Driver("erofs"),),
    "iso9660": (Driver("iso9660"),),
    "udf": (Driver("udf"),),
    "hfs": (Driver("hfs"),),
    "hfs+": (Driver("hfsplus"),),
    "ufs1": (Driver("ufs", "ro,ufstype=44bsd", "rw,ufstype=44bsd"),),
    "ufs2": (Driver("ufs", "ro,ufstype=ufs2", "rw,ufstype=ufs2"),),
}


@dataclass(frozen=True, slots=True)
class NativeWish:
    """``volume`` (``p2``), which holds a file system of ``kind``, wanted on ``directory``."""

    volume: str
    directory: str
    kind: str
    writable: bool = False


class Natives:
    """The native mounts of the mount on ``directory``: prepared before it is there, attached when it
    answers, undone before it ends. From any thread."""

    def __init__(self, wishes: Iterable[NativeWish], directory: str) -> None:
        self._wishes = tuple(wishes)
        self._directory = directory
        self._points: list[MountPoint] = []
        self._lock = threading.Lock()
        self._over = False
        self.mounts: tuple[NativeMount, ...] = ()

    def prepare(self) -> None:
        """MountError, with nothing left behind, for what can be seen beforehand."""
        try:
            for wish in self._wishes:
                _check(wish, self._directory)
                self._points.append(self._prepared(wish))
        except BaseException:
            self.forget()
            raise

    def _prepared(self, wish: NativeWish) -> MountPoint:
        path = mounttable.resolve(wish.directory)
        for other in (self._directory, *(point.directory for point in self._points)):
            if os.path.commonpath((path, other)) in (path, other):
                said = f"{path} and {other} cannot both be mounted on: one lies in the other"
                raise MountError(said, hint=f"choose another directory for {wish.volume}", path=path)
        return prepare(path, None)

    def attach(self, remember: Callable[[tuple[NativeMount, ...]], None]) -> None:
        """Set all of them up; ``remember`` hears of each loop device before it is mounted."""
        for wish, point in zip(self._wishes, self._points, strict=True):
            with self._lock:
                if self._over:
                    return
                device = _make_loop(self._file(wish.volume), writable=wish.writable)
                native = NativeMount(wish.volume, point.directory, device, point.made)
                self.mounts = (*self.mounts, native)
                remember(self.mounts)
                mount_device(wish, device, point.directory)

    def _file(self, volume: str) -> str:
        return os.path.join(self._directory, f"{volume}.raw")

    def undo(self, log: Callable[[str], None]) -> None:
        """Take all of them away, the busy ones with their last user. For when the mount ends anyway."""
        with self._lock:
            self._over = True
            try:
                undo(self.mounts, self._directory, lazy=True)
            except MountError as error:
                log(error.message)
            self.forget()

    def forget(self) -> None:
        for point in self._points:
            if mounttable.find(point.directory) is None:
                point.remove()


def is_there(native: NativeMount, directory: str) -> bool:
    """Whether it is still as it was set up, for the mount on ``directory``."""
    return _is_ours(native, directory) and _is_mounted(native)


def undo_dead(directory: str, states: MountStates | None) -> None:
    """Undo the native mounts of a mount whose process was killed; nothing for one that is served."""
    record = states.read(mounttable.resolve(directory)) if states else None
    if record is not None and not record.alive():
        undo(record.natives, record.directory, lazy=True)


def undo(natives: Iterable[NativeMount], directory: str, *, lazy: bool) -> None:
    """Newest first: the mount, the directory if it was made, the loop device.

    What is not there any more, or has become somebody else's, is left alone. MountError naming who holds
    one, unless ``lazy``.
    """
    for native in reversed(tuple(natives)):
        if _is_ours(native, directory):
            if _is_mounted(native):
                detach(native.directory, lazy=lazy, mount=directory)
            _remove_loop(native, directory, lazy=lazy)
        if mounttable.find(native.directory) is None:
            remove_made(native.directory, native.made)


def _check(wish: NativeWish, directory: str) -> None:
    if os.geteuid() != 0:
        raise MountError(
            f"only root can mount {wish.volume} natively",
            hint=f"run it with sudo; the files are in {directory}/{wish.volume} without --native too",
        )
    if not wish.kind:
        said = f"{wish.volume} holds no file system that is known, so it cannot be mounted natively"
        raise MountError(said, hint="leave out its --native")
    if wish.kind not in DRIVERS:
        said = f"{wish.volume} holds {wish.kind}, which cannot be mounted natively"
        raise MountError(said, hint=f"set up a loop device on {directory}/{wish.volume}.raw by hand")


# -- loop devices ---------------------------------------------------------------------------------


def _make_loop(file: str, *, writable: bool) -> str:
    words = ["losetup", "--find", "--show", *([] if writable else ["--read-only"]), file]
    output = _run(words, _LOOP_TIMEOUT)
    if output.code:
        hint = "in a container, start it with --privileged or give it /dev/loop-control and loop devices"
        raise MountError(f"no loop device for {file} can be had: {output.reason}", hint=hint)
    return output.stdout.strip()


def _backing(device: str) -> str:
    """The file behind a loop device, empty when there is none; asks neither of them."""
    try:
        file = Path("/sys/block", os.path.basename(device), "loop/backing_file").read_bytes()
    except OSError:
        return ""
    return os.fsdecode(file.rstrip(b"\n"))


def _is_ours(native: NativeMount, directory: str) -> bool:
    return bool(native.device) and _backing(native.device) == os.path.join(directory, f"{native.volume}.raw")


def _mounts_of(device: str) -> list[str]:
    return [f"a mount on {mounted.directory}" for mounted in mounttable.mounts() if mounted.source == device]


def _is_mounted(native: NativeMount) -> bool:
    mounted = mounttable.find(native.directory)
    return mounted is not None and mounted.source == native.device


def _remove_loop(native: NativeMount, directory: str, *, lazy: bool) -> None:
    """Detached at once, or when its last user is gone: then this waits for that."""
    deadline = time.monotonic() + _GONE_SECONDS
    output = _run(["losetup", "--detach", native.device], _LOOP_TIMEOUT)
    while _is_ours(native, directory):
        if lazy:
            return
        if time.monotonic() > deadline:
            said = output.reason if output.code else "it is still open"
            who = ", ".join(_mounts_of(native.device)) or "a process that has it open"
            hint = f"it is used by {who}; end that, then run `imagefs umount {directory}` again"
            raise MountError(f"the loop device {native.device} cannot be removed: {said}", hint=hint)
        time.sleep(_PAUSE)


# -- mounting -------------------------------------------------------------------------------------


def mount_device(wish: NativeWish, device: str, directory: str, *, more: str = "") -> None:
    """With the first driver that this system has; ``more`` are further options."""
    missing = []
    for driver in DRIVERS[wish.kind]:
        options = (driver.read_write if wish.writable else driver.read_only).format(device=device)
        if driver.program and not shutil.which(driver.program, path=ENVIRONMENT["PATH"]):
            missing.append(driver)
            continue
        words = [driver.program] if driver.program else ["mount", "-t", driver.name]
        output = _run(
            [*words, "-o", ",".join(filter(None, (options, more, _SAFE))), device, directory], _MOUNT_TIMEOUT
        )
        if not output.code:
            _make_safe(directory, writable=wish.writable)
            return
        if not driver.program and "unknown filesystem type" in output.stderr:
            missing.append(driver)
            continue
        reason = _reason(output)
        said = f"{wish.volume} ({wish.kind}) cannot be mounted on {directory}: {reason}"
        hint = f"`imagefs ls` and the mount's {wish.volume} may still read it"
        raise MountError(said, hint=hint, reason=reason)
    raise _no_driver(wish, missing)


def _make_safe(directory: str, *, writable: bool) -> None:
    """Some programs take no notice of the options that every mount of ours has; the kernel does."""
    options = f"remount,bind,{'rw' if writable else 'ro'},{_SAFE}"
    output = _run(["mount", "-o", options, directory], _MOUNT_TIMEOUT)
    if output.code:
        raise MountError(f"{directory} cannot be made {_SAFE}: {_reason(output)}")


def _no_driver(wish: NativeWish, missing: list[Driver]) -> MountError:
    lacks = [
        f"{driver.program} is not installed"
        if driver.program
        else f"this kernel has no driver for {driver.name}"
        for driver in missing
    ]
    packages = [driver.package for driver in missing if driver.package]
    hint = f"apt install {packages[0]}" if packages else "leave out its --native"
    return MountError(f"{wish.volume} ({wish.kind}) cannot be mounted: {' and '.join(lacks)}", hint=hint)


def _reason(output: Output) -> str:
    """What mount said first; its last line is only advice."""
    lines = [line.strip() for line in output.stderr.splitlines() if line.strip()]
    return lines[0].partition(": ")[2].rstrip(".") or lines[0] if lines else output.reason


def _run(words: list[str], timeout: float) -> Output:
    try:
        return run_command(words, timeout=timeout)
    except SourceError as error:
        raise MountError(error.message, hint=error.hint) from error
