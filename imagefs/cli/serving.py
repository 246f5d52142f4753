"""Serving a mount: from IMAGE to what mounter shows. The other half of ``imagefs mount``, which alone
needs all that reads images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from imagefs.block.views import SliceReader, WritableSlice
from imagefs.cli.command import Terminated
from imagefs.cli.console import Console, log_line
from imagefs.cli.facts import image_document
from imagefs.cli.mount import Wishes, log_path, state_dir
from imagefs.cli.text import time_json
from imagefs.cli.unlock import secrets_of
from imagefs.cli.wiring import choose_image, open_disk, parse_volume, prepare_worker, shown_disk
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader, Volume, Writable
from imagefs.ops.diskimage import DiskImage
from imagefs.volume.probe import probe
from mounter.background import Readiness
from mounter.mounttable import resolve
from mounter.native import NativeWish
from mounter.session import MountOptions, run_foreground
from mounter.tree import MountSpec, MountTree, VolumeSpec


def mount_spec(image: DiskImage, folder: str, *, unreadable: str = "zeros", overlay: str = "") -> MountSpec:
    """What a mount of ``image`` shows; ``folder`` is its set's. ``unreadable`` is zeros or eio.

    ``overlay`` is a file for what is written to the raw files; the trees go on showing the image, and so do the
    volumes inside others.
    """
    reader = shown_disk(image, unreadable=unreadable)
    facts = json.dumps(image_document(image, folder), indent=2, ensure_ascii=False) + "\n"
    label = f"{os.path.basename(os.path.abspath(folder))}@{time_json(image.info.created // 10**9 * 10**9)}"
    inner = [(volume, part) for volume, part in image.readable_volumes() if volume.inside]
    if overlay:
        from imagefs.block.overlay import open_overlay  # which most mounts do without

        view, number = image.info.summary.view, image.info.uuid.bytes
        reader = open_overlay(reader, overlay, view=view, image=number)
    shown = [(volume, _slice(reader, volume)) for volume in image.volumes] + inner
    volumes = tuple(
        VolumeSpec(volume.id, part, partial(image.filesystem, volume.id), later=bool(volume.moment))
        for volume, part in shown
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
        volume = image.volume(parse_volume(text))
        image.volume_reader(volume)  # or why there is none
        name = volume.id
        found.append(NativeWish(name, directory, probe(readers[name]).kind, wishes.native_rw))
    return tuple(found)


def serve_unseen(console: Console, image: str, directory: str, wishes: Wishes, readiness: Readiness) -> int:
    """``serve`` in a process that nobody sees: what goes wrong before the mount is ready is told to
    ``readiness``, all else to the log of the mount. The exit code."""
    console.speak_to_log()
    try:
        return serve(console, image, directory, wishes, readiness)
    except ImagefsError as error:
        readiness.failed(error)
        console.fail(error)
    except Terminated as stop:
        console.interrupted(stop.number)
    return console.exit_code


def serve(
    console: Console, image: str, directory: str, wishes: Wishes, readiness: Readiness | None = None
) -> int:
    """Mount in this process until it ends; the exit code. ``readiness``: who waits until it is ready."""
    work = _serve_set if wishes.history else _serve_image
    number = work(console, image, resolve(directory), wishes, readiness)
    return 128 + number if number else 0


def _serve_image(console: Console, image: str, path: str, wishes: Wishes, readiness: Readiness | None) -> int:
    notes: list[str] = []
    wishes = replace(wishes, natives=tuple((name, resolve(place)) for name, place in wishes.natives))
    catalog, info = choose_image(console, image, note=notes.append if readiness else None)
    file = os.path.join(catalog.store.url, info.name)
    with open_disk(catalog, info, console=console) as disk:
        spec = mount_spec(disk, catalog.store.url, unreadable=wishes.unreadable, overlay=wishes.overlay)
        _leave_folder(readiness)

        def ready() -> None:
            if readiness is not None:
                readiness.ready(file, notes)
            prepare_worker()  # no sooner: it would take its time from this mount's start

        with taken_back_unused(spec.disk):
            options = replace(
                _options(spec.fsname, path, wishes, background=readiness is not None),
                overlay=wishes.overlay,
                natives=native_wishes(spec, disk, wishes),
            )
            tree = MountTree(spec, log=log_line)
            return run_foreground(tree, spec.fsname, path, options, log=log_line, on_ready=ready)


def _serve_set(console: Console, text: str, path: str, wishes: Wishes, readiness: Readiness | None) -> int:
    from imagefs.cli.points import Points, set_of  # which need this module
    from mounter.historytree import HistoryTree
    from mounter.points import HistorySpec

    store = set_of(text)
    _leave_folder(readiness)
    secrets = secrets_of(console.unlocks)
    points = Points(store, fat_zone=console.fat_zone, unreadable=wishes.unreadable, secrets=secrets)
    spec = HistorySpec(points, f"{os.path.basename(store.url)}@history")
    options = _options(spec.fsname, path, wishes, background=readiness is not None)
    ready = partial(readiness.ready, store.url) if readiness else lambda: None
    tree = HistoryTree(spec, log=log_line)
    return run_foreground(tree, spec.fsname, path, options, log=log_line, on_ready=ready)


def _leave_folder(readiness: Readiness | None) -> None:
    """A mount in the background must not keep anyone's folder busy."""
    if readiness is not None:
        os.chdir("/")


@contextmanager
def taken_back_unused(disk: Reader) -> Iterator[None]:
    """A mount that comes to nothing leaves no new overlay file behind."""
    try:
        yield
    except ImagefsError:
        from imagefs.block.overlay import Overlay

        if isinstance(disk, Overlay):
            disk.take_back()
        raise


def _options(shown: str, path: str, wishes: Wishes, *, background: bool) -> MountOptions:
    return MountOptions(
        image=shown,
        allow_other=wishes.allow_other,
        state_dir=state_dir(),
        log=str(log_path(path)) if background else "",
    )
