"""``imagefs nbd``: from words on the command line to a server's exports and sockets.

It stays in the foreground, as nbdkit -f and qemu-nbd do: whoever wants it elsewhere has ``&`` and systemd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import click

from imagefs.cli.command import Terminated, common, unreadable_option
from imagefs.cli.console import Console, log_line
from imagefs.cli.text import one_line, size_text
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk, parse_volume, shown_disk
from imagefs.errors import ServeError, UsageError
from imagefs.interfaces import Reader, Volume
from imagefs.nbd.exports import Export
from imagefs.nbd.listening import Listener, listen_tcp, listen_unix
from imagefs.nbd.server import Server
from imagefs.ops.diskimage import DiskImage


@click.command()
@click.argument("image")
@click.option("--socket", "path", metavar="PATH", help="Default: a new one of your own, printed.")
@click.option("--listen", metavar="HOST:PORT", help="TCP instead; on localhost only.")
@click.option("--allow-remote", is_flag=True, help="Let --listen be reached from other machines.")
@click.option("--partition", metavar="N", help="Serve volume N alone; 3.1 is one inside p3.")
@unreadable_option
@unlock_option
@common
def nbd(
    console: Console,
    image: str,
    path: str | None,
    listen: str | None,
    allow_remote: bool,
    partition: str | None,
    unreadable: str,
) -> None:
    """Serve IMAGE as a read-only network block device until interrupted.

    The whole disk is the default export and is called disk; volumes are p1, p2, … For qemu-img, nbdcopy,
    nbdinfo and nbdfuse. There is no password: a socket is for its owner, a port for everybody.
    """
    if allow_remote and not listen:
        raise UsageError("--allow-remote goes with --listen", hint="--listen 0.0.0.0:10809 --allow-remote")
    wanted = parse_volume(partition) if partition else None
    catalog, info = choose_image(console, image)
    with open_disk(catalog, info, console=console) as disk, serving(disk, unreadable) as exports:
        if wanted is not None:
            disk.volume_reader(disk.volume(wanted))  # or why there is none
            exports = [export for export in exports if export.name == wanted]
        with listening(path, listen, remote=allow_remote) as listeners:
            server = Server(exports, listeners, log=log_line)
            run(console, server, exports, listeners)


@contextlib.contextmanager
def serving(disk: DiskImage, unreadable: str = "zeros") -> Iterator[list[Export]]:
    """The exports of a disk, the whole of it first; closed behind."""
    reader = shown_disk(disk, unreadable=unreadable)
    size = disk.disk.chunk_size
    try:
        yield [
            Export("disk", reader, "the whole disk", size),
            *(_volume(volume, reader, size) for volume, reader in disk.readable_volumes()),
        ]
    finally:
        reader.close()


def _volume(volume: Volume, reader: Reader, block_size: int) -> Export:
    words = [volume.id, volume.role, volume.name]
    return Export(volume.id, reader, one_line(" ".join(filter(None, words))), block_size)


@contextlib.contextmanager
def listening(path: str | None, listen: str | None, *, remote: bool) -> Iterator[list[Listener]]:
    """What the words ask for, or a socket in a folder of its own that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        found = []
        if listen:
            found.append(listen_tcp(listen, remote=remote))
            stack.callback(found[-1].close)
        if path or not listen:
            place = path or os.path.join(stack.enter_context(own_folder()), "nbd.sock")
            found.append(listen_unix(place))
            stack.callback(found[-1].close)
        yield found


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """A folder for sockets that nobody else may enter, in ``XDG_RUNTIME_DIR`` or that of temporary files."""
    base = os.environ.get("XDG_RUNTIME_DIR") or None
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="imagefs-nbd-", dir=base if base and os.path.isdir(base) else None
        )
    except OSError as error:
        raise ServeError(
            f"no folder for a socket: {error.strerror}", hint="name one with --socket"
        ) from error
    with folder as made:
        yield made


def run(console: Console, server: Server, exports: list[Export], listeners: list[Listener]) -> None:
    """Serve until a signal ends it, which is the way to end it."""
    try:
        server.start()
        announce(console, exports, listeners)
        server.wait()
    except KeyboardInterrupt:
        console.exit_code = 128 + signal.SIGINT
    except Terminated as stop:
        console.exit_code = 128 + stop.number
    finally:
        server.close()


def announce(console: Console, exports: list[Export], listeners: list[Listener]) -> None:
    """Say where it can be found, now that it can be; whoever reads the URI may end it at once."""
    names = ", ".join(f"{each.name} ({size_text(each.reader.size)})" for each in exports)
    console.note(f"imagefs: serving {names}; Ctrl-C ends it")
    rows = [
        {"name": each.name, "size": each.reader.size, "uris": [at.uri(each.name) for at in listeners]}
        for each in exports
    ]
    uris = [each.uri() for each in listeners]
    path = next((each.path for each in listeners if each.path), None)
    console.document({"uri": uris[0], "uris": uris, "socket": path, "pid": os.getpid(), "exports": rows})
    for uri in uris:
        console.line(uri)
    sys.stdout.flush()
