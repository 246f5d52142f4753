"""``imagefs mount`` and ``imagefs umount``: from words on the command line to mounter's calls.

What is served is made here; how, is mounter's matter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from imagefs.block.readahead import ReadAhead
from imagefs.block.views import MarkedReader, RefusingReader
from imagefs.cli.command import common
from imagefs.cli.console import Console, state_folder
from imagefs.cli.facts import image_document, unreadable_ranges
from imagefs.cli.wiring import choose_image, open_disk
from imagefs.errors import ImagefsError, MountError, UsageError
from imagefs.interfaces import Reader, State
from imagefs.ops.diskimage import DiskImage
from mounter.background import Readiness, mount_background
from mounter.mounttable import resolve
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


def mount_spec(image: DiskImage, folder: str, *, unreadable: str = "zeros") -> MountSpec:
    """What a mount of ``image`` shows; ``folder`` is its set's. ``unreadable`` is zeros or eio."""
    lost = unreadable_ranges(image)
    first, end = [row["offset"] for row in lost], [row["offset"] + row["length"] for row in lost]
    reader: Reader = ReadAhead(image.disk)
    if unreadable == "eio":
        reader = RefusingReader(reader, first, end, "could not be read from the source")
    elif lost:
        reader = MarkedReader(reader, first, end, State.UNREADABLE)
    image.read_through(reader)
    volumes = tuple(
        VolumeSpec(volume.id, image.volume_reader(volume), partial(image.filesystem, volume.number))
        for volume in image.volumes
    )
    facts = json.dumps(image_document(image, folder), indent=2, ensure_ascii=False) + "\n"
    label = f"{os.path.basename(os.path.abspath(folder))}@{_utc(image.info.created)}"
    return MountSpec(reader, volumes, facts.encode("utf-8", "replace"), label, image.info.created)


@click.command()
@click.argument("image", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--foreground", is_flag=True, help="Stay here and serve until interrupted.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as modes permit.")
@click.option(
    "--unreadable",
    type=click.Choice(["zeros", "eio"]),
    default="zeros",
    show_default=True,
    help="What reads of bad sectors of the source give: zeros, or an I/O error.",
)
@click.option(READY_OPTION, "ready_fd", type=int, hidden=True)
@common
def mount(
    console: Console,
    image: str | None,
    directory: str | None,
    foreground: bool,
    allow_other: bool,
    unreadable: str,
    ready_fd: int | None,
) -> None:
    """Show IMAGE in DIR, read-only: disk.raw, p1.raw …, p1/…, image.json.

    DIR is made when missing and must be empty otherwise. Comes back when the mount is ready.
    Without arguments: list the mounts.
    """
    if image is None:
        show_mounts(console)
    elif directory is None:
        raise UsageError("mount needs an IMAGE and a DIR", hint=f"imagefs mount {image} DIR")
    elif foreground:
        console.exit_code = serve(
            console, image, directory, allow_other=allow_other, unreadable=unreadable, ready_fd=ready_fd
        )
    else:
        start(console, image, directory, allow_other=allow_other, unreadable=unreadable)


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--lazy", is_flag=True, help="Detach a mount in use; it ends with its last user.")
@common
def umount(console: Console, directory: str, lazy: bool) -> None:
    """Unmount DIR and come back when nothing of the mount is left."""
    unmount(directory, lazy=lazy, state_dir=state_dir())
    console.document({"directory": directory, "unmounted": True})


def serve(
    console: Console,
    image: str,
    directory: str,
    *,
    allow_other: bool,
    unreadable: str = "zeros",
    ready_fd: int | None = None,
) -> int:
    """Mount in this process until it ends; the exit code. ``ready_fd`` is where ``start`` listens."""
    readiness = Readiness(ready_fd) if ready_fd is not None else None
    try:
        path = resolve(directory)
        catalog, info = choose_image(console, image)
        with open_disk(catalog, info) as disk:
            spec = mount_spec(disk, catalog.store.url, unreadable=unreadable)
            if readiness is not None:
                os.chdir("/")  # a mount in the background must not keep anyone's folder busy
            return _serve(spec, path, allow_other=allow_other, readiness=readiness)
    except ImagefsError as error:
        if readiness is not None:
            readiness.failed(error)
        raise


def _serve(spec: MountSpec, path: str, *, allow_other: bool, readiness: Readiness | None) -> int:
    log = "" if readiness is None else str(_log_path(path))
    options = MountOptions(image=spec.fsname, allow_other=allow_other, state_dir=state_dir(), log=log)
    ready = readiness.ready if readiness else lambda: None
    number = run_foreground(spec, path, options, log=_log, on_ready=ready)
    return 128 + number if number else 0


def start(console: Console, image: str, directory: str, *, allow_other: bool, unreadable: str) -> None:
    """Mount in the background. The image is opened here first: what is wrong with it is said here."""
    catalog, info = choose_image(console, image)
    open_disk(catalog, info).close()
    # The very image chosen now is mounted, even if a newer one appears meanwhile.
    chosen = os.path.join(catalog.store.url, info.name)
    options = [f"--unreadable={unreadable}", *(["--allow-other"] if allow_other else [])]

    def command(descriptor: int) -> list[str]:
        words = ["mount", "--foreground", *options, READY_OPTION, str(descriptor)]
        return [*SELF, *words, "--", chosen, directory]

    pid = mount_background(command, log=_log_path(resolve(directory)))
    console.document({"directory": resolve(directory), "image": chosen, "pid": pid})


def _log_path(directory: str) -> Path:
    try:
        return MountStates(state_dir()).log_path(directory)
    except MountError:  # a log is worth less than the mount
        return Path(os.devnull)


def _log(line: str) -> None:
    """One line on standard error, which is the log of a mount in the background."""
    click.echo(f"{_utc(time.time_ns())} {line.encode('utf-8', 'backslashreplace').decode()}", err=True)


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
    }


def _line(record: MountRecord) -> str:
    since = datetime.fromtimestamp(record.since_ns // 10**9).astimezone()
    errors = f"{record.errors} error{'' if record.errors == 1 else 's'}"
    state = "" if record.alive() else f"  dead: clear it with imagefs umount {record.directory}"
    log = f"  log {record.log}" if record.log else ""
    return f"{record.directory}  {record.image}  since {since.isoformat(' ')}  {errors}{log}{state}"


def _utc(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
