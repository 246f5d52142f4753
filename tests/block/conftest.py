"""Loop devices to write to, and small file systems that are soon full. Both need root."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.oracles import ToolError, run_tool, tool_text

MakeLoop = Callable[..., str]


def attach(path: Path, *words: str) -> str:
    """A loop device over ``path``. Another process may take the free one first: try again."""
    for _ in range(5):
        with contextlib.suppress(ToolError):
            return tool_text("losetup", "--find", "--show", *words, path).strip()
    return tool_text("losetup", "--find", "--show", *words, path).strip()


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """``make_loop(path, *losetup_words)`` gives a device that is detached after the test."""
    made: list[str] = []

    def make(path: Path, *words: str) -> str:
        made.append(attach(path, *words))
        return made[-1]

    yield make
    for device in reversed(made):
        run_tool(["losetup", "--detach", device])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    run_tool(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder])
    yield folder
    run_tool(["umount", folder])


@pytest.fixture
def mounted_ext4(tmp_path: Path, make_loop: MakeLoop) -> Iterator[Callable[[str], tuple[str, Path, Path]]]:
    """``mounted_ext4(options)`` gives a loop device, its backing file and where it is mounted."""
    mounted: list[Path] = []

    def mount(options: str) -> tuple[str, Path, Path]:
        backing, place = tmp_path / "mounted.img", tmp_path / "mount here"
        backing.write_bytes(bytes(4 << 20))
        run_tool(["mke2fs", "-q", "-F", "-t", "ext4", backing])
        place.mkdir()
        device = make_loop(backing)
        run_tool(["mount", "-t", "ext4", "-o", options, device, place])
        mounted.append(place)
        return device, backing, place

    yield mount
    for place in mounted:
        run_tool(["umount", place])
