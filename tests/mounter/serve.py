"""A mount in a process of its own, for the tests: ``python -m tests.mounter.serve DIR JSON``.

JSON may hold: kind, state_dir, log, allow_other, threads, binding, path (a file to show as p1.raw, or
the overlay).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagefs.block.devices import open_source
from imagefs.block.overlay import open_overlay
from imagefs.block.views import BytesReader, WritableSlice
from imagefs.browse import workers
from imagefs.browse.apart import open_apart
from imagefs.browse.opening import open_filesystem
from imagefs.browse.workers import Limits
from imagefs.errors import ImagefsError
from mounter import nodes, requests
from mounter.background import Readiness, mount_background
from mounter.session import MountOptions, run_foreground
from mounter.state import MountStates
from mounter.tree import MountSpec, MountTree, VolumeSpec
from tests.browse.hostile_parser import hostile_start
from tests.mounter.fakes import (
    BadReader,
    FakeFileSystem,
    ShortReader,
    SlowReader,
    file,
    no_filesystem,
    noise,
    small_filesystem,
    sparse_reader,
    spec_of,
    usual_spec,
)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def many_files() -> FakeFileSystem:
    return FakeFileSystem([file(b"/file-%06d" % at, at, inode=str(100 + at)) for at in range(5000)])


def threaded() -> MountSpec:
    """With threads that take signals while the main thread is made not to."""
    for _ in range(4):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    return usual_spec()


def build(settings: dict[str, Any]) -> MountSpec:
    kinds: dict[str, Callable[[], MountSpec]] = {
        "usual": usual_spec,
        "threaded": threaded,
        "sparse": lambda: spec_of(sparse_reader()),
        "hostile": lambda: _hostile_spec(Path(settings["path"])),
        "ext4": lambda: _ext4_spec(Path(settings["path"])),
        "bad": lambda: spec_of(BadReader(noise(1 << 20), range(300_000, 365_536))),
        "short": lambda: spec_of(ShortReader(noise(1 << 20))),
        "slow": lambda: spec_of(SlowReader(noise(8 << 20))),
        "many": lambda: spec_of(BytesReader(b""), VolumeSpec("p1", BytesReader(b""), many_files)),
        "named": lambda: spec_of(BytesReader(noise(5000)), fsname='a, "b" \\c\n ü'),
        "overlay": lambda: _overlay_spec(settings["path"]),
        "file": lambda: _file_spec(Path(settings["path"])),
    }
    return kinds[settings.get("kind", "usual")]()


def _file_spec(path: Path) -> MountSpec:
    data = path.read_bytes()
    return spec_of(BytesReader(data), VolumeSpec("p1", BytesReader(data), no_filesystem))


def _overlay_spec(path: str) -> MountSpec:
    disk = open_overlay(BytesReader(noise(4 << 20)), path, view=bytes(32), image=bytes(16))
    part = WritableSlice(disk, 1 << 20, 1_000_003)
    return spec_of(disk, VolumeSpec("p1", part, small_filesystem))


def _hostile_spec(path: Path) -> MountSpec:
    """The same volume twice, each with a parser that names in it can crash."""
    reader = open_source(str(path))
    workers._START = hostile_start()
    volumes = [
        VolumeSpec(name, BytesReader(b""), lambda: open_apart(reader, limits=Limits(cpu=1)))
        for name in ("p1", "p2")
    ]
    return spec_of(reader, *volumes)


def _ext4_spec(path: Path) -> MountSpec:
    reader = open_source(str(path))
    return spec_of(reader, VolumeSpec("p1", BytesReader(b""), lambda: open_filesystem(reader)))


class WatchedNodes(nodes.Nodes):
    """Says when the kernel has forgotten nearly all that it was asked to."""

    asked = 0

    def oldest(self) -> tuple[int, bytes] | None:
        found = super().oldest()
        self.asked += found is not None
        return found

    def forget(self, node: int, count: int) -> None:
        super().forget(node, count)
        if self.asked > 1000 and len(self) < 2 * self._kept:
            say(f"few again after {self.asked}")
            self.asked = 0


def keep_few_nodes(kept: int) -> None:
    """Have the kernel asked to forget files beyond ``kept``, and few given with their names."""
    requests.Nodes = lambda: WatchedNodes(kept)  # type: ignore[assignment,misc]
    requests.MAX_PLUS = 100


def background(directory: Path, settings: dict[str, Any]) -> Path:
    """The same mount, by a fork of this process; what it says is in the log that is given."""
    log = MountStates(Path(settings["state_dir"])).log_path(str(directory))

    def serve(readiness: Readiness) -> int:
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not what pytest has put there
        return serve_until_end(str(directory), settings | {"log": str(log)}, readiness)

    mount_background(serve, log=log)
    return log


def main(argv: list[str]) -> int:
    return serve_until_end(argv[0], json.loads(argv[1]))


def serve_until_end(directory: str, settings: dict[str, Any], ready: Readiness | None = None) -> int:

    def announce() -> None:
        say("ready")
        if ready:
            ready.ready("test image")

    if "kept" in settings:
        keep_few_nodes(settings["kept"])
    options = MountOptions(
        image="test image",
        allow_other=settings.get("allow_other", False),
        threads=settings.get("threads", 0),
        binding=settings.get("binding", ""),
        state_dir=Path(settings["state_dir"]) if "state_dir" in settings else None,
        log=settings.get("log", ""),
    )
    try:
        spec = build(settings)
        number = run_foreground(
            MountTree(spec, log=lambda line: say(f"log: {line}")),
            spec.fsname,
            directory,
            options,
            log=lambda line: say(f"log: {line}"),
            on_ready=announce,
        )
    except ImagefsError as error:
        say(f"error: {error.message} | {error.hint}")
        if ready:
            ready.failed(error)
        return error.exit_code
    return 128 + number if number else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
