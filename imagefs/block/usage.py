"""Who else uses a device or file: mounts, swap, device mapper, loop devices, and what lies on what.

Asks the kernel through a ``System``; opens no device and changes nothing.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imagefs.block.sysfs import HOST, Mount, System, number_of
from imagefs.errors import SourceError, TargetError

#: A device by its number (``"8:1"``) or a file by its device and inode.
Node = str | tuple[int, int]


@dataclass(frozen=True, slots=True)
class MountUse:
    """``device`` is mounted at ``mountpoint``; ``read_only`` when the file system itself is."""

    mountpoint: str
    read_only: bool
    device: str


def mounts_of(path: str, *, system: System = HOST) -> list[MountUse]:
    """Every mount of the device or file, of its partitions and of all that is built on them."""
    own = _node(path, system)
    users = _users(own, system)
    found = []
    for mount in system.mounts():
        number = _mounted_number(mount, system)
        if number in users:
            found.append(MountUse(mount.mountpoint, mount.read_only, system.name(number)))
        elif own is not None and own == _mounted_file(mount, system):
            found.append(MountUse(mount.mountpoint, mount.read_only, path))
    return found


def swaps_of(path: str, *, system: System = HOST) -> list[str]:
    """The swap areas on the device, on its partitions or on what is built on them."""
    own = _node(path, system)
    users = _users(own, system)
    return [swap for swap in system.swaps() if _node(swap, system) in {own, *users} - {None}]


def holders_of(path: str, *, system: System = HOST) -> list[str]:
    """The devices that are built on this device or file: mapper, md, loop. Partitions are not."""
    users = _users(_node(path, system), system)
    plain = {_node(path, system)}
    plain |= {part for number in _only_numbers(plain) for part in system.partitions(number)}
    return [system.name(number) for number in sorted(users - plain)]


def partitions_of(path: str, *, system: System = HOST) -> list[str]:
    """The kernel's partition devices of a whole disk, in their order; empty for all else."""
    number = system.number(path)
    return [system.name(part) for part in system.partitions(number)] if number else []


def check_not_mounted_rw(path: str, *, system: System = HOST) -> None:
    """SourceError when something that is mounted read-write lies on the source."""
    for use in mounts_of(path, system=system):
        if not use.read_only:
            raise SourceError(
                f"{path} changes while it is read: {use.device} is mounted read-write at {use.mountpoint}",
                hint="unmount it, remount it read-only, or take it as it is with --snapshot live",
                path=path,
                device=use.device,
                mountpoint=use.mountpoint,
            )


def check_target_free(path: str, *, system: System = HOST) -> None:
    """TargetError when anything at all uses the device or file that is about to be overwritten."""
    for use in mounts_of(path, system=system):
        said = f"{path} is in use: {use.device} is mounted at {use.mountpoint}"
        hint = f"unmount it with: umount {shlex.quote(use.mountpoint)}"
        raise TargetError(said, hint=hint, path=path, device=use.device, mountpoint=use.mountpoint)
    for swap in swaps_of(path, system=system):
        said = f"{path} is in use: {swap} is swap space"
        hint = f"turn it off with: swapoff {shlex.quote(swap)}"
        raise TargetError(said, hint=hint, path=path, device=swap)
    for holder in holders_of(path, system=system):
        said = f"{path} is in use: {holder} is built on it"
        raise TargetError(said, hint=f"take {holder} down first", path=path, device=holder)


def lies_on(place: str, device: str, *, system: System = HOST) -> bool:
    """Whether the folder, file or device ``place`` has its bytes on ``device`` (or inside that file).

    Looks through partitions, device mapper, md, loop devices, Btrfs over several devices and
    overlays. What does not exist yet is judged by the folder it would be made in.
    """
    wanted = _node(device, system)
    return wanted is not None and wanted in _foundations(place, system)


def overlaps(one: str, other: str, *, system: System = HOST) -> bool:
    """Whether writing to one of the two can change the other."""
    return lies_on(one, other, system=system) or lies_on(other, one, system=system)


# -- upwards: who is built on it ------------------------------------------------------------------


def _users(own: Node | None, system: System) -> set[str]:
    """The device itself, if it is one, and every device that reads or writes through it."""
    groups = list(system.btrfs_groups())
    loops = [(number, _node(backing, system)) for number, backing in system.loops()]
    seen: set[str] = set()
    waiting: list[Node] = [] if own is None else [own]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        waiting += [number for number, backing in loops if backing == node]
        if isinstance(node, str):
            seen.add(node)
            waiting += [*system.partitions(node), *system.holders(node), *_peers(node, groups)]
    return seen


def _peers(number: str, groups: list[list[str]]) -> Iterator[str]:
    for group in groups:
        if number in group:
            yield from group


def _mounted_number(mount: Mount, system: System) -> str:
    """The device that is mounted. Btrfs and FUSE report numbers of their own: ask by the source."""
    if system.directory(mount.number) is None and mount.source.startswith("/dev/"):
        return system.number(mount.source) or mount.number
    return mount.number


def _mounted_file(mount: Mount, system: System) -> Node | None:
    """The image file behind a FUSE mount such as ``ntfs-3g disk.img``."""
    if mount.fstype.startswith("fuse") and mount.source.startswith("/"):
        return _node(mount.source, system)
    return None


# -- downwards: what it is built on ---------------------------------------------------------------


def _foundations(place: str, system: System) -> set[Node]:
    """Every device and file that the bytes of ``place`` lie on, itself included."""
    groups = list(system.btrfs_groups())
    loops = dict(system.loops())
    seen: set[Node] = set()
    paths: set[str] = set()
    waiting: list[Node] = list(_ground(place, system, paths))
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, str):
            waiting += [system.disk(node), *system.slaves(node), *_peers(node, groups)]
            if node in loops:
                waiting += _ground(loops[node], system, paths)
    return seen


def _ground(path: str, system: System, seen: set[str]) -> Iterator[Node]:
    """The node of ``path`` and those that the file system around it is mounted from."""
    path = _nearest(path, system)
    if path in seen:
        return
    seen.add(path)
    node = _node(path, system)
    if node is not None:
        yield node
    if isinstance(node, str):
        return
    info = system.status(path)
    if info is not None:
        yield number_of(info.st_dev)
    mount = _mount_around(path, system)
    if mount is not None:
        yield from _below_mount(mount, system, seen)


def _below_mount(mount: Mount, system: System, seen: set[str]) -> Iterator[Node]:
    yield mount.number
    if mount.source.startswith("/dev/"):
        # bcachefs joins its devices with colons
        yield from _only_numbers(system.number(part) for part in mount.source.split(":"))
    elif mount.fstype.startswith("fuse") and mount.source.startswith("/"):
        yield from _ground(mount.source, system, seen)
    for option in mount.options:
        if mount.fstype == "overlay" and option.startswith("upperdir="):
            yield from _ground(option.partition("=")[2], system, seen)


def _mount_around(path: str, system: System) -> Mount | None:
    """The mount ``path`` is in: the longest mount point above it, the last one of equals."""
    best: Mount | None = None
    for mount in system.mounts():
        point = mount.mountpoint.rstrip("/")
        inside = path == point or path.startswith(point + "/")
        if inside and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best


def _nearest(path: str, system: System) -> str:
    """``path`` without symbolic links, or the nearest folder above it that exists."""
    path = os.path.realpath(path)
    while system.status(path) is None and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


# -- nodes ----------------------------------------------------------------------------------------


def _node(path: str, system: System) -> Node | None:
    info = system.status(path)
    if info is None:
        return None
    if stat.S_ISBLK(info.st_mode):
        return number_of(info.st_rdev)
    return (info.st_dev, info.st_ino)


def _only_numbers(nodes: Iterable[Node | None]) -> list[str]:
    return [node for node in nodes if isinstance(node, str)]
