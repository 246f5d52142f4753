"""``imagefs mount`` and ``imagefs umount``: from words on the command line to mounter's calls.

What is served is made here; how, is mounter's matter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from imagefs.block.overlay import Overlay, open_overlay
from imagefs.block.views import SliceReader, WritableSlice
from imagefs.cli.command import common, unreadable_option
from imagefs.cli.console import Console, log_line, state_folder
from imagefs.cli.facts import image_document
from imagefs.cli.wiring import choose_image, open_disk, parse_volume, shown_disk
from imagefs.errors import ImagefsError, MountError, UsageError
from imagefs.image.catalog import SUFFIX
from imagefs.interfaces import Reader, Volume, Writable
from imagefs.ops.diskimage import DiskImage
from imagefs.volume.probe import probe
from mounter.background import Readiness, mount_background
from mounter.mounttable import resolve
from mounter.native import NativeWish
from mounter.session import MountOptions, run_foreground
from mounter.state import MountRecord, MountStates
from mounter.tree import MountSpec, VolumeSpec
from mounter.unmount import list_mounts, unmount

READY_OPTION = "--ready-fd"
#: -P: a folder called imagefs in the current directory is not us.
SELF = (sys.executable, "-P", "-m", "imagefs")


def state_dir() -> Path:
    """Where mounts are remembered: ``$XDG_STATE_HOME/imagefs/mounts``."""
    return state_folder() / "mounts"


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a mount was asked for; ``overlay`` is an absolute path, ``natives`` pairs of volume and folder."""

    allow_other: bool = False
    unreadable: str = "zeros"
    overlay: str = ""
    natives: tuple[tuple[str, str], ...] = ()
    native_rw: bool = False

    def words(self) -> list[str]:
        """The same as options of the command line, for the process that will serve the mount."""
        words = [f"--unreadable={self.unreadable}", *(["--allow-other"] if self.allow_other else [])]
        words += [f"--overlay={self.overlay}"] if self.overlay else []
        words += ["--native-rw"] if self.native_rw else []
        return words + [word for pair in self.natives for word in ("--native", *pair)]


def mount_spec(image: DiskImage, folder: str, *, unreadable: str = "zeros", overlay: str = "") -> MountSpec:
    """What a mount of ``image`` shows; ``folder`` is its set's. ``unreadable`` is zeros or eio.

    ``overlay`` is a file for what is written to the raw files; the trees go on showing the image.
    """
    reader = shown_disk(image, unreadable=unreadable)
    facts = json.dumps(image_document(image, folder), indent=2, ensure_ascii=False) + "\n"
    label = f"{os.path.basename(os.path.abspath(folder))}@{_utc(image.info.created)}"
    opens = {volume.number: partial(image.filesystem, volume.number) for volume in image.volumes}
    if overlay:
        view, number = image.info.summary.view, image.info.uuid.bytes
        reader = open_overlay(reader, overlay, view=view, image=number)
    volumes = tuple(
        VolumeSpec(volume.id, _slice(reader, volume), opens[volume.number]) for volume in image.volumes
    )
    return MountSpec(reader, volumes, facts.encode("utf-8", "replace"), label, image.info.created)


def _slice(disk: Reader, volume: Volume) -> Reader:
    if isinstance(disk, Writable):
        return WritableSlice(disk, volume.start, volume.length)
    return SliceReader(disk, volume.start, volume.length)


def native_wishes(spec: MountSpec, image: DiskImage, wishes: Wishes) -> tuple[NativeWish, ...]:
    """What is to be mounted natively, with the file systems as they are now, changes included."""
    readers = {volume.id: volume.reader for volume in spec.volumes}
    found = []
    for text, directory in wishes.natives:
        name = image.volume(parse_volume(text)).id
        found.append(NativeWish(name, directory, probe(readers[name]).kind, wishes.native_rw))
    return tuple(found)


@click.command()
@click.argument("image", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--foreground", is_flag=True, help="Stay here and serve until interrupted.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as modes permit.")
@unreadable_option
@click.option(
    "--overlay",
    metavar="FILE",
    default="",
    help="Make disk.raw and pN.raw writable; changes go to FILE only.",
)
@click.option(
    "--native",
    "natives",
    metavar="pN DIR2",
    nargs=2,
    multiple=True,
    help="Mount volume pN with its own driver on DIR2 as well (root; repeatable).",
)
@click.option("--native-rw", is_flag=True, help="With --overlay: let --native write, and replay journals.")
@click.option(READY_OPTION, "ready_fd", type=int, hidden=True)
@common
def mount(
    console: Console,
    image: str | None,
    directory: str | None,
    foreground: bool,
    ready_fd: int | None,
    **options: Any,
) -> None:
    """Show IMAGE in DIR, read-only: disk.raw, p1.raw …, p1/…, image.json.

    DIR is made when missing and must be empty otherwise. Comes back when the mount is ready. FILE is
    made when missing; mount again with it to go on, delete it to throw the changes away. Without
    arguments: list the mounts.
    """
    wishes = _wishes(**options)
    if image is None:
        show_mounts(console)
    elif directory is None:
        raise UsageError("mount needs an IMAGE and a DIR", hint=f"imagefs mount {image} DIR")
    elif foreground:
        console.exit_code = serve(console, image, directory, wishes, ready_fd=ready_fd)
    else:
        start(console, image, directory, wishes)


def _wishes(*, overlay: str, native_rw: bool, **others: Any) -> Wishes:
    if native_rw and not overlay:
        raise UsageError("--native-rw needs --overlay, which takes what is written", hint="--overlay FILE")
    if overlay.endswith(SUFFIX):
        raise UsageError(f"{overlay} would look like an image", hint=f"name a file without {SUFFIX}")
    return Wishes(overlay=overlay and os.path.abspath(overlay), native_rw=native_rw, **others)


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--lazy", is_flag=True, help="Detach a mount in use; it ends with its last user.")
@common
def umount(console: Console, directory: str, lazy: bool) -> None:
    """Unmount DIR and come back when nothing of the mount is left."""
    unmount(directory, lazy=lazy, state_dir=state_dir())
    console.document({"directory": directory, "unmounted": True})


def serve(
    console: Console, image: str, directory: str, wishes: Wishes, *, ready_fd: int | None = None
) -> int:
    """Mount in this process until it ends; the exit code. ``ready_fd`` is where ``start`` listens."""
    readiness = Readiness(ready_fd) if ready_fd is not None else None
    try:
        path = resolve(directory)
        wishes = replace(wishes, natives=tuple((name, resolve(place)) for name, place in wishes.natives))
        catalog, info = choose_image(console, image)
        with open_disk(catalog, info) as disk:
            spec = mount_spec(disk, catalog.store.url, unreadable=wishes.unreadable, overlay=wishes.overlay)
            if readiness is not None:
                os.chdir("/")  # a mount in the background must not keep anyone's folder busy
            with taken_back_unused(spec.disk):
                options = _options(spec, disk, path, wishes, background=readiness is not None)
                ready = readiness.ready if readiness else lambda: None
                number = run_foreground(spec, path, options, log=log_line, on_ready=ready)
            return 128 + number if number else 0
    except ImagefsError as error:
        if readiness is not None:
            readiness.failed(error)
        raise


@contextmanager
def taken_back_unused(disk: Reader) -> Iterator[None]:
    """A mount that comes to nothing leaves no new overlay file behind."""
    try:
        yield
    except ImagefsError:
        if isinstance(disk, Overlay):
            disk.take_back()
        raise


def _options(
    spec: MountSpec, image: DiskImage, path: str, wishes: Wishes, *, background: bool
) -> MountOptions:
    return MountOptions(
        image=spec.fsname,
        allow_other=wishes.allow_other,
        state_dir=state_dir(),
        log=str(_log_path(path)) if background else "",
        overlay=wishes.overlay,
        natives=native_wishes(spec, image, wishes),
    )


def start(console: Console, image: str, directory: str, wishes: Wishes) -> None:
    """Mount in the background. What is wrong with the image is found there, and said here."""
    chosen = _choose(console, image)

    def command(descriptor: int) -> list[str]:
        words = ["mount", "--foreground", *wishes.words(), READY_OPTION, str(descriptor)]
        return [*SELF, *words, "--", chosen, directory]

    pid = mount_background(command, log=_log_path(resolve(directory)))
    console.document({"directory": resolve(directory), "image": chosen, "pid": pid})


def _choose(console: Console, image: str) -> str:
    """The file to mount. The very image chosen now is mounted, even if a newer one appears meanwhile."""
    if os.path.isfile(image):
        return image
    catalog, info = choose_image(console, image)
    return os.path.join(catalog.store.url, info.name)


def _log_path(directory: str) -> Path:
    try:
        return MountStates(state_dir()).log_path(directory)
    except MountError:  # a log is worth less than the mount
        return Path(os.devnull)


def show_mounts(console: Console) -> None:
    """Print the mounts of this user: one JSON document, or a line for each."""
    records = list_mounts(state_dir())
    console.document({"mounts": [_document(record) for record in records]})
    for record in records:
        console.line(_line(record))


def _document(record: MountRecord) -> dict[str, object]:
    return {
        "directory": record.directory,
        "image": record.image,
        "since": _utc(record.since_ns),
        "log": record.log or None,
        "errors": record.errors,
        "pid": record.pid,
        "alive": record.alive(),
        "overlay": record.overlay or None,
        "natives": [
            {"volume": native.volume, "directory": native.directory, "device": native.device}
            for native in record.natives
        ],
    }


def _line(record: MountRecord) -> str:
    since = datetime.fromtimestamp(record.since_ns // 10**9).astimezone()
    errors = f"{record.errors} error{'' if record.errors == 1 else 's'}"
    state = "" if record.alive() else f"  dead: clear it with imagefs umount {record.directory}"
    log = f"  log {record.log}" if record.log else ""
    writes = f"  changes in {record.overlay}" if record.overlay else ""
    natives = "".join(f"  {native.volume} on {native.directory}" for native in record.natives)
    head = f"{record.directory}  {record.image}  since {since.isoformat(' ')}"
    return f"{head}{writes}{natives}  {errors}{log}{state}"


def _utc(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
