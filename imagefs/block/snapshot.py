"""A source that is in use, as it was at one moment: an LVM snapshot, or a clone of the file (reflink).

A snapshot is read in place of the source, checked before the image is committed and removed on every
way out. Knows nothing of images. LVM is asked through its own commands and a runner from outside;
their fields are described in lvs(8) and lvmreport(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import signal
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from imagefs.block.commands import Output, Runner, run_command
from imagefs.block.devices import DeviceReader
from imagefs.block.sysfs import HOST, System, number_of, read_text
from imagefs.block.usage import MountUse, holders_of, lies_on, mounts_of, swaps_of
from imagefs.errors import ImagefsError, SourceError, UsageError

#: What ``take_snapshot`` can be asked for.
WISHES = ("auto", "lvm", "reflink", "live", "none")

_LIVE = "take it as it is with --snapshot live"
#: From here on (percent) a snapshot that held is worth a warning.
_NEARLY_FULL = 80.0


class Snapshot(Protocol):
    """A source at one moment, as long as it is not removed.

    ``source`` is what the user named; ``path`` MUST be openable and hold the bytes of that moment;
    ``kind`` is ``"lvm"`` or ``"reflink"``; ``name`` is for messages. ``settled`` is False where something
    that writes to the source could not be held still for it: then it is as after a power cut.
    """

    @property
    def source(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def settled(self) -> bool: ...

    def check(self) -> list[str]:
        """Warnings; SourceError when what was read is not all of one moment. MUST be called last."""
        ...

    def remove(self) -> list[str]:
        """Remove it; warnings when it could not be. MUST be harmless when called again, never raises
        ImagefsError."""
        ...


def take_snapshot(
    path: str, wish: str, *, run: Runner | None = None, system: System = HOST
) -> Snapshot | None:
    """The snapshot that ``wish`` (one of WISHES) asks for.

    ``auto`` gives None for what can have none: neither a logical volume nor a file that can be cloned.
    UsageError when the wish does not fit the source, SourceError when the snapshot cannot be made. A
    run that is interrupted while it is made leaves none behind.
    """
    if wish not in WISHES:
        raise ValueError(f"a snapshot of the kind {wish!r}")
    if wish == "lvm" or (wish == "auto" and _is_volume(path, system)):
        return _take_lvm(path, run or run_command, system)
    if wish == "reflink":
        return _take_reflink(path, system)
    if wish == "auto":
        with contextlib.suppress(SourceError, UsageError):
            return _take_reflink(path, system)
    return None


def in_use(path: str, *, run: Runner | None = None, system: System = HOST) -> bool:
    """Whether something may write to the source while it is read.

    True for what is mounted read-write or swapped to, itself or anything on it, for a file that a
    process or a writable loop device has open for writing, and for a logical volume that is open,
    say by a virtual machine, and not mounted. Ask before opening the source: one's own
    opening counts. Writers of other devices that do not mount them cannot be seen.
    """
    mounts = mounts_of(path, system=system)
    if any(not use.read_only for use in mounts) or swaps_of(path, system=system):
        return True
    if system.number(path) is None:
        return _has_writers(path, system)
    return not mounts and _is_volume(path, system) and _is_open(path, run or run_command, system)


class SnapshotReader(DeviceReader):
    """A snapshot under the name and identity of its source.

    ``check_unchanged`` checks the snapshot, so that no image of a spoilt one is ever committed;
    ``warnings`` are what it said. Does not own the snapshot.
    """

    def __init__(self, fd: int, snapshot: Snapshot) -> None:
        super().__init__(fd, snapshot.source)
        self.snapshot = snapshot
        self.warnings: list[str] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        try:
            return super().read_at(offset, length)
        except SourceError:
            self.snapshot.check()  # reading a full LVM snapshot is an I/O error: say why
            raise

    @property
    def place(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._open_fd()}"

    def check_unchanged(self, *, content: bool = True) -> None:
        self.warnings = self.snapshot.check()
        size = self._length(self._open_fd())
        if size != self.size:
            raise self._changed(f"changed its size from {self.size} to {size} bytes")


def open_snapshot(snapshot: Snapshot) -> SnapshotReader:
    """Open a snapshot to read; SourceError where it cannot be."""
    try:
        fd = os.open(snapshot.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(f"the snapshot {snapshot.name} cannot be opened", snapshot.source, error) from error
    try:
        return SnapshotReader(fd, snapshot)
    except BaseException:
        os.close(fd)
        raise


# -- LVM ------------------------------------------------------------------------------------------

_TAG = "imagefs"
_GIB = 1 << 30
#: imagefs_snap_<boot id>_<pid>_<start of the process>_<count>
_OWN_NAME = re.compile(r"imagefs_snap_([0-9a-f]{8})_([0-9]+)_([0-9]+)_([0-9]+)")
_count = itertools.count()
#: Seconds before each further attempt: udev may look at a volume just when it is to go.
_PAUSES = (0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class _Volume:
    """A logical volume; sizes in bytes. ``pool`` is empty for one that is not thin."""

    group: str
    name: str
    size: int
    pool: str
    group_free: int
    extent: int

    @property
    def full_name(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass(slots=True)
class LvmSnapshot:
    """A snapshot volume. ``pool`` is the full name of a thin one's pool, empty for others."""

    source: str
    path: str
    name: str
    pool: str
    run: Runner
    notes: list[str] = field(default_factory=list)
    removed: bool = False
    kind: str = "lvm"

    @property
    def settled(self) -> bool:
        return not self.notes

    def check(self) -> list[str]:
        fields = ("lv_attr", "data_percent", "lv_snapshot_invalid")
        (row,) = _lvs(self.run, fields, self.name, self.source)[:1] or [{}]
        attributes, percent = row.get("lv_attr", "").ljust(10, "-"), _percent(row)
        if row.get("lv_snapshot_invalid") == "1" or attributes[4] in "IS" or attributes[8] == "F":
            raise self._spoilt("became invalid: it was full, or its disk failed")
        if self.pool and attributes[4] == "a":  # how full a thin volume is says nothing
            return self.notes + self._pool_warnings()
        if self.pool or percent is None:
            raise self._spoilt("does not say whether it is still valid")
        if percent >= 100:
            raise self._spoilt("became full")
        return self.notes + _fullness(f"the snapshot {self.name}", percent)

    def _spoilt(self, what: str) -> SourceError:
        said = f"the snapshot {self.name} of {self.source} {what}; what was read is not consistent"
        group = self.name.partition("/")[0]
        hint = f"give the volume group {group} more free space, or capture while less is written"
        return SourceError(said, hint=hint, path=self.source, snapshot=self.name)

    def _pool_warnings(self) -> list[str]:
        """A pool without space stops those who write, not what the snapshot holds."""
        rows = _lvs(self.run, ("data_percent", "metadata_percent"), self.pool, self.source)
        data, metadata = (_percent(row, name) for row in rows[:1] for name in row)
        warnings = _fullness(f"the thin pool {self.pool}", data)
        return warnings + _fullness(f"the metadata of the thin pool {self.pool}", metadata)

    def remove(self) -> list[str]:
        if self.removed:
            return []
        try:
            _lvremove(self.run, self.name, self.source)
        except SourceError as error:
            return [f"{error.message}; remove it with: lvremove {self.name}"]
        self.removed = True
        return []


def clear_leftovers(path: str, *, run: Runner | None = None, system: System = HOST) -> list[str]:
    """Remove the snapshots that killed captures left in the volume group of ``path``.

    Only what bears our name and tag, is a snapshot, is not open and whose process no longer lives. Gives
    a sentence for each, those that could not be removed too; nothing for what is no logical volume
    or when LVM cannot be asked. Clones of files leave nothing behind: they have no name.
    """
    run = run or run_command
    warnings = []
    with contextlib.suppress(SourceError, UsageError):
        for name in _leftovers(_find_volume(path, run, system), run, path):
            try:
                _lvremove(run, name, path)
                warnings.append(f"the snapshot {name} of a capture that was killed is removed")
            except SourceError as error:
                warnings.append(f"{error.message}; remove it with: lvremove {name}")
    return warnings


def _leftovers(volume: _Volume, run: Runner, path: str) -> Iterator[str]:
    fields = ("vg_name", "lv_name", "lv_tags", "origin", "lv_device_open")
    for row in _lvs(run, fields, volume.group, path):
        ours = _TAG in row.get("lv_tags", "").split(",") and row.get("origin")
        match = _OWN_NAME.fullmatch(row.get("lv_name", ""))
        if ours and match and row.get("lv_device_open") != "1" and not _lives(*match.groups()[:3]):
            yield f"{volume.group}/{match[0]}"


def _take_lvm(path: str, run: Runner, system: System) -> LvmSnapshot:
    volume = _find_volume(path, run, system)
    name = f"imagefs_snap_{_boot()}_{os.getpid()}_{_started(os.getpid())}_{next(_count)}"
    words = _create_words(volume, name, path)
    snapshot = LvmSnapshot(
        source=path,
        path=_node_of(volume.group, name, system),
        name=f"{volume.group}/{name}",
        pool=f"{volume.group}/{volume.pool}" if volume.pool else "",
        run=run,
        notes=_stacked(path, system),
    )
    try:
        _lvm(run, words, f"no snapshot of {volume.full_name} can be made", path)
        snapshot.path = _node_of(volume.group, name, system)
    except BaseException:  # it may have been made all the same
        snapshot.remove()
        raise
    return snapshot


def _create_words(volume: _Volume, name: str, path: str) -> list[str]:
    """The call of lvcreate; SourceError when the group has no room."""
    words = ["lvcreate", "--yes", "--snapshot", "--name", name, "--permission", "r", "--addtag", _TAG]
    if volume.pool:
        return [*words, "--setactivationskip", "n", "--activate", "y", volume.full_name]
    room = volume.group_free // volume.extent * volume.extent
    wanted = -(-max(volume.size // 10, _GIB) // volume.extent) * volume.extent
    if room <= 0:
        raise SourceError(
            f"the volume group {volume.group} has no free space for a snapshot of {path}",
            hint=f"extend the group, unmount the source, or {_LIVE}",
            path=path,
        )
    return [*words, "--size", f"{min(room, wanted)}b", volume.full_name]


def _node_of(group: str, name: str, system: System) -> str:
    """Where a volume's device is; without udev only device mapper's own name may be there."""
    mapper = f"/dev/mapper/{group.replace('-', '--')}-{name.replace('-', '--')}"
    return mapper if system.number(mapper) else f"/dev/{group}/{name}"


def _stacked(path: str, system: System) -> list[str]:
    """LVM holds still what is mounted from the volume itself, but not what is built on it."""
    own = system.number(path)
    uses = [use for use in mounts_of(path, system=system) if not use.read_only]
    return [_not_held(use) for use in uses if system.number(use.device) != own]


def _is_volume(path: str, system: System) -> bool:
    """A logical volume that people see; the parts of one have a suffix behind the two ids of 32."""
    number = system.number(path)
    uuid = system.attribute(number, "dm/uuid") if number else ""
    return uuid.startswith("LVM-") and len(uuid) == 4 + 64


def _is_open(path: str, run: Runner, system: System) -> bool:
    number = system.number(path)
    with contextlib.suppress(SourceError):
        rows = _lvs(run, ("lv_device_open",), system.name(number or ""), path)
        return any(row.get("lv_device_open") == "1" for row in rows)
    return False


def _find_volume(path: str, run: Runner, system: System) -> _Volume:
    """UsageError when it is not a logical volume."""
    if not _is_volume(path, system):
        hint = f"leave the choice to --snapshot auto, or {_LIVE}"
        raise UsageError(f"{path} is not an LVM logical volume", hint=hint, path=path)
    place = system.name(system.number(path) or "")  # lvs does not know a link or /dev/dm-0
    fields = ("vg_name", "lv_name", "lv_size", "pool_lv", "vg_free", "vg_extent_size")
    try:
        (row,) = _lvs(run, fields, place, path)
        sizes = [int(row[name]) for name in ("lv_size", "vg_free", "vg_extent_size")]
        pool = row["pool_lv"].strip("[]")  # in brackets when it is hidden
        return _Volume(row["vg_name"], row["lv_name"], sizes[0], pool, sizes[1], max(sizes[2], 1))
    except (ValueError, KeyError) as error:
        raise SourceError(f"lvs does not describe {path} as was expected", path=path) from error


def _lvs(run: Runner, fields: Sequence[str], place: str, path: str) -> list[dict[str, str]]:
    """The rows of a report: sizes in bytes, yes and no as 1 and 0 (-1: unknown)."""
    form = ["--reportformat", "json", "--units", "b", "--nosuffix", "--binary"]
    words = ["lvs", *form, "--options", ",".join(fields), place]
    output = _lvm(run, words, f"lvs cannot tell about {place}", path)
    try:
        rows: Any = json.loads(output.stdout)["report"][0]["lv"]
        return [{str(name): str(value) for name, value in row.items()} for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"lvs did not answer with a report about {place}", path=path) from error


def _lvremove(run: Runner, name: str, path: str) -> None:
    """Remove a snapshot; one that is not there is removed already."""
    for pause in (*_PAUSES, None):
        output = run(["lvremove", "--yes", name])
        if not output.code or "Failed to find logical volume" in output.stderr:
            return
        if pause is None:
            raise SourceError(f"the snapshot {name} cannot be removed: {output.reason}", path=path)
        time.sleep(pause)


def _lvm(run: Runner, words: Sequence[str], what: str, path: str) -> Output:
    output = run(words)
    if output.code:
        raise SourceError(f"{what}: {output.reason}", path=path, command=" ".join(words))
    return output


def _percent(row: dict[str, str], name: str = "data_percent") -> float | None:
    try:
        return float(row.get(name, ""))
    except ValueError:
        return None


def _fullness(what: str, percent: float | None) -> list[str]:
    if percent is None or percent < _NEARLY_FULL:
        return []
    return [f"{what} was {percent:.0f} % full at the end: give it more space"]


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:  # not every container shows it
        return "0" * 8


def _started(pid: int) -> int:
    """When a process began, in clock ticks since the boot (proc(5), stat, field 22); 0 if it is gone."""
    fields = read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def _lives(boot: str, pid: str, started: str) -> bool:
    """Whether the process that made a snapshot is still there: pids are used again, so by its start."""
    return boot == _boot() and _started(int(pid)) == int(started)


# -- clones of files ------------------------------------------------------------------------------

_FICLONE = 0x40049409
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_NOCOW = 0x00800000

_CLONE_REASONS = {
    errno.EOPNOTSUPP: "its file system cannot share blocks; XFS and Btrfs can",
    errno.ENOTTY: "its file system cannot share blocks; XFS and Btrfs can",
    errno.EINVAL: "its file system cannot share blocks of this file",
    errno.EXDEV: "its folder is on another file system",
    errno.ETXTBSY: "it is swap space in use",
    errno.EACCES: "its folder may not be written to by you",
    errno.EPERM: "it is protected from that",
    errno.EROFS: "its file system is read-only",
}


@dataclass(slots=True)
class ReflinkSnapshot:
    """A clone of a file that shares its blocks until one of the two changes.

    It never has a name: it is gone as soon as ``fd`` is closed, however this process ends.
    """

    source: str
    name: str
    fd: int
    notes: list[str]
    kind: str = "reflink"

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    @property
    def settled(self) -> bool:
        return not self.notes

    def check(self) -> list[str]:
        """A clone cannot overflow: whoever changes the file needs the space."""
        if self.fd < 0:
            raise SourceError(f"the clone of {self.source} was removed while it was read", path=self.source)
        return self.notes

    def remove(self) -> list[str]:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        return []


def _take_reflink(path: str, system: System) -> ReflinkSnapshot:
    """A clone of the file as it is now; file systems that are mounted from it are held still for it."""
    real = os.path.realpath(path)
    try:
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise UsageError(f"{path} is not a file: only files can be cloned", path=path)
        source = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _clone(path, real, source, system)
        finally:
            os.close(source)
    except OSError as error:
        raise _failed(f"{path} cannot be cloned", path, error, _CLONE_REASONS) from error


def _clone(path: str, real: str, source: int, system: System) -> ReflinkSnapshot:
    copy = _nameless(*os.path.split(real))
    try:
        _copy_nocow(source, copy)
        with _held_still(path, real, system) as notes:
            fcntl.ioctl(copy, _FICLONE, source)
        return ReflinkSnapshot(source=path, name=f"of {path}", fd=copy, notes=notes)
    except BaseException:
        os.close(copy)
        raise


def _nameless(folder: str, name: str) -> int:
    """A new file without a name, for us alone. Where there is no such thing, its name goes at once."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    place = os.path.join(folder, f".{name[:100]}.imagefs-snap-{_boot()}-{os.getpid()}-{next(_count)}")
    fd = os.open(place, flags | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(place)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _copy_nocow(source: int, copy: int) -> None:
    """Btrfs clones only between files of one kind: both or neither written in place (chattr +C)."""
    try:
        wanted, own = (struct.unpack("i", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))[0] for fd in (source, copy))
        if (wanted ^ own) & _NOCOW:
            fcntl.ioctl(copy, _SETFLAGS, struct.pack("i", own ^ _NOCOW))
    except OSError:
        return  # no such flags here; if they mattered, the clone says so


@contextlib.contextmanager
def _held_still(path: str, real: str, system: System) -> Iterator[list[str]]:
    """Freeze what is mounted read-write from the file, so that its journals are written out.

    Gives a note for each file system that could not be: in the clone it is as after a power cut.
    """
    uses = {use.device: use for use in mounts_of(path, system=system) if not use.read_only}
    frozen: list[int] = []
    # A file system on devices that lie on itself would wait for its own thaw for ever.
    possible = not uses or not lies_on(os.path.dirname(real), path, system=system)
    try:
        stirring = [use for use in uses.values() if not (possible and _freeze(use, frozen, system))]
        yield [_not_held(use) for use in stirring]
    finally:
        for fd in frozen:
            with contextlib.suppress(OSError):
                fcntl.ioctl(fd, _FITHAW, 0)
            os.close(fd)


def _freeze(use: MountUse, frozen: list[int], system: System) -> bool:
    """Freeze one file system and note it in ``frozen``; False when it cannot be."""
    try:
        fd = os.open(use.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    # Something else may be mounted over it, and freezing that could stop ourselves.
    if number_of(os.fstat(fd).st_dev) != system.number(use.device):
        os.close(fd)
        return False
    frozen.append(fd)  # before the call: a signal may come right after it
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
    except OSError as error:
        os.close(frozen.pop())
        return error.errno == errno.EBUSY  # frozen by another, who thaws it
    return True


def _not_held(use: MountUse) -> str:
    return f"the file system at {use.mountpoint} could not be held still: it is as after a power cut"


def _has_writers(path: str, system: System) -> bool:
    """Whether anybody has a file open for writing: a loop device does, and so does who a lease tells of."""
    numbers = (system.number(name) for name in holders_of(path, system=system))
    if any(number and system.attribute(number, "ro") != "1" for number in numbers):
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a tape rewinds it
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        # A read lease is refused while somebody writes (fcntl(2)). Who opens it for writing just now
        # waits until it is closed below, and we get a signal: one that is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False


def _failed(what: str, path: str, error: OSError, reasons: dict[int, str] | None = None) -> ImagefsError:
    number = error.errno or 0
    reason = (reasons or {}).get(number) or os.strerror(number)
    return SourceError(f"{what}: {reason}", hint=f"unmount it, or {_LIVE}", path=path, errno=number)
