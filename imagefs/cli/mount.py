"""``imagefs mount`` and ``imagefs umount``: starting and ending mounts, and telling of them.

Knows nothing of images, so that it is quick; what is served is made in cli/serving.py, by a process of its
own unless it is to stay here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from imagefs.cli.command import common, fat_zone_option, unreadable_option
from imagefs.cli.console import Console, state_folder
from imagefs.cli.text import time_json
from imagefs.cli.unlock import unlock_option
from imagefs.errors import MountError, UsageError
from mounter.background import Readiness, mount_background
from mounter.mounttable import resolve
from mounter.state import MountRecord, MountStates
from mounter.unmount import list_mounts, unmount


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
    history: bool = False


@click.command()
@click.argument("image", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--foreground", is_flag=True, help="Stay here and serve until interrupted.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as modes permit.")
@unreadable_option
@fat_zone_option
@unlock_option
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
@click.option("--history", is_flag=True, help="Show all images of a SET, each as a folder named by its time.")
@common
def mount(
    console: Console,
    image: str | None,
    directory: str | None,
    foreground: bool,
    **options: Any,
) -> None:
    """Show IMAGE in DIR, read-only: disk.raw, p1.raw …, p1/…, image.json.

    DIR is made when missing and must be empty otherwise. Comes back when the mount is ready. FILE is
    made when missing; mount again with it to go on, delete it to throw the changes away. With --history
    IMAGE is a SET: DIR shows 20261120T030000Z/disk.raw, …/p1/… for each image and a link called latest.
    Without arguments: list the mounts.
    """
    wishes = _wishes(**options)
    if image is None:
        show_mounts(console)
    elif directory is None:
        raise UsageError("mount needs an IMAGE and a DIR", hint=f"imagefs mount {image} DIR")
    elif foreground:
        from imagefs.cli.serving import serve  # and all that reads images

        console.exit_code = serve(console, image, directory, wishes)
    else:
        start(console, image, directory, wishes)


def _wishes(*, overlay: str, native_rw: bool, history: bool, **others: Any) -> Wishes:
    if history and (overlay or others["natives"] or native_rw):
        raise UsageError(
            "--history shows many images, and --overlay and --native are for one of them",
            hint="mount that image without --history: imagefs mount SET@2026-11-17 DIR",
        )
    if native_rw and not overlay:
        raise UsageError("--native-rw needs --overlay, which takes what is written", hint="--overlay FILE")
    if overlay.endswith(".imagefs"):
        raise UsageError(f"{overlay} would look like an image", hint="name a file without .imagefs")
    overlay = overlay and os.path.abspath(overlay)
    return Wishes(overlay=overlay, native_rw=native_rw, history=history, **others)


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--lazy", is_flag=True, help="Detach a mount in use; it ends with its last user.")
@common
def umount(console: Console, directory: str, lazy: bool) -> None:
    """Unmount DIR and come back when nothing of the mount is left."""
    unmount(directory, lazy=lazy, state_dir=state_dir())
    console.document({"directory": directory, "unmounted": True})


def start(console: Console, image: str, directory: str, wishes: Wishes) -> None:
    """Mount in the background. The image is chosen there, and what is wrong with it found; both are said here."""

    def serve_there(readiness: Readiness) -> int:
        from imagefs.cli.serving import serve_unseen

        return serve_unseen(console, image, directory, wishes, readiness)

    ready = mount_background(serve_there, log=log_path(resolve(directory)))
    for note in ready.notes:
        console.note(note)
    facts = {"directory": resolve(directory), "image": ready.image, "pid": ready.pid}
    console.document(facts | {"history": wishes.history})


def log_path(directory: str) -> Path:
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
        "since": time_json(record.since_ns // 10**9 * 10**9),
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
