"""Tools and disks that we did not write: finding them, running them, and being loud without them.

A missing tool or archive skips by name, but fails where ``CI=true``; a missing corpus always skips by name.
Root-only tests are marked with ``root_only`` and left out by name for everybody else.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import shlex
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

from fixtures.tools import ToolError, missing_sentence, run_tool, tool_path

__all__ = [
    "ToolError",
    "corpus_file",
    "corpus_folder",
    "failing_disk",
    "loop_device",
    "loop_mounted",
    "need_tool",
    "qemu_img",
    "root_only",
    "run_tool",
    "sdist_file",
    "source_file",
    "tool_text",
    "unpack",
    "unpacked_corpus_file",
]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: kernel mounts and loop devices")

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BLOCK = 1 << 20


def need_tool(*names: str) -> None:
    """Go on only if every tool is installed; otherwise skip by name, or fail in CI."""
    for name in names:
        if tool_path(name) is None:
            _lacking(missing_sentence(name))


def _lacking(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def qemu_img(*words: str | os.PathLike[str], cwd: Path | None = None) -> None:
    """Run qemu-img. To make a LUKS header it takes the time of its own computing (``crypto/pbkdf.c``), and gives up
    when the clock of that has not moved on a machine that is busy: then again."""
    need_tool("qemu-img")
    for left in reversed(range(20)):
        try:
            run_tool(["qemu-img", *words], cwd=cwd)
            return
        except ToolError as error:
            if not left or "accurate CPU usage" not in str(error):
                raise


def tool_text(*argv: str | os.PathLike[str], timeout: float = 60) -> str:
    """What a tool prints on stdout; the test is skipped, or failed in CI, when it is missing."""
    need_tool(os.fspath(argv[0]))
    return run_tool(argv, timeout=timeout).stdout.decode("utf-8", "surrogateescape")


def corpus_folder() -> Path:
    """The folder of third-party disks, named by ``IMAGEFS_CORPUS``."""
    place = os.environ.get("IMAGEFS_CORPUS")
    if not place:
        pytest.skip("the corpus of third-party disks is not here: IMAGEFS_CORPUS is not set")
    folder = Path(place)
    if not (folder / "MANIFEST.tsv").is_file():
        pytest.skip(f"the corpus of third-party disks is not in {folder}")
    return folder


def source_file(package: str, name: str, folder: Path) -> Path:
    """A file of a Debian source package that ``make setup`` fetched, unpacked into ``folder``."""
    return _from_archive(f"{package}_*.orig.tar.*", package, name, folder)


def sdist_file(package: str, name: str, folder: Path) -> Path:
    """A file of a Python source package that ``make setup`` fetched, unpacked into ``folder``."""
    return _from_archive(f"{package}-*.tar.gz", package, name, folder)


def _from_archive(pattern: str, package: str, name: str, folder: Path) -> Path:
    found = sorted((Path(__file__).parents[2] / ".cache/sources").glob(pattern))
    if not found:
        _lacking(f"the sources of {package} are not here: make setup fetches them")
    with tarfile.open(found[-1]) as archive:
        archive.extraction_filter = tarfile.data_filter
        member = next(each for each in archive if each.name.partition("/")[2] == name)
        member.name = Path(name).name
        archive.extract(member, folder)
    return folder / Path(name).name


def corpus_file(name: str) -> Path:
    """A file of the corpus, never to be written; it fails when the corpus is there and the file not."""
    path = corpus_folder() / name
    assert path.is_file(), f"{name} is not in the corpus"
    return path


def unpacked_corpus_file(name: str, folder: Path, *, member: str = "*") -> Path:
    """``corpus_file`` unpacked into ``folder``: the file inside, or the one that matches ``member``."""
    result = unpack(corpus_file(name), folder)
    if result.is_file():
        return result
    found = sorted(path for path in result.rglob(member) if path.is_file())
    assert len(found) == 1, f"{name} holds {len(found)} files like {member}"
    return found[0]


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a zip or tar into ``folder`` and give that, or a gz, xz, bz2 and give the one file.

    Any other file is copied. Long runs of zeros become holes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        return folder
    if path.suffix == ".tgz" or ".tar" in path.suffixes:
        with tarfile.open(path) as archive:
            # Debian 12's Python has no ``filter="data"`` yet, later ones want to be told something.
            archive.extraction_filter = lambda member, _: member
            archive.extractall(folder, members=_harmless(archive))
        return folder
    opener = _OPENERS.get(path.suffix)
    target = folder / (path.stem if opener else path.name)
    with opener(path, "rb") if opener else path.open("rb") as packed:
        _copy_sparse(packed, target)
    return target


def _harmless(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        inside = not os.path.isabs(member.name) and ".." not in Path(member.name).parts
        if not inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is not to be unpacked")
        yield member


def _copy_sparse(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as stream:
        while block := source.read(_BLOCK):
            if block.count(0) == len(block):
                stream.seek(len(block), os.SEEK_CUR)
            else:
                stream.write(block)
        stream.truncate(stream.tell())


@contextlib.contextmanager
def loop_device(
    path: Path, *, offset: int = 0, size: int | None = None, writable: bool = False
) -> Iterator[str]:
    """A loop device over ``path``, read-only unless ``writable``; root only."""
    words = ["losetup", *([] if writable else ["--read-only"]), "--find", "--show", f"--offset={offset}"]
    words += [f"--sizelimit={size}"] if size is not None else []
    device = tool_text(*words, path).strip()
    try:
        yield device
    finally:
        run_tool(["losetup", "--detach", device])


@contextlib.contextmanager
def loop_mounted(path: Path, folder: Path, *, fs_type: str, options: str = "ro") -> Iterator[Path]:
    """``path`` mounted by the kernel on ``folder``; root only. ext4 wants ``ro,noload`` for a dirty one."""
    need_tool("mount", "umount")
    folder.mkdir(parents=True, exist_ok=True)
    with loop_device(path, writable="rw" in options.split(",")) as device:
        run_tool(["mount", "-t", fs_type, "-o", options, device, folder])
        try:
            yield folder
        finally:
            run_tool(["umount", folder])


@contextlib.contextmanager
def failing_disk(content: Path, place: Path, bad: Sequence[int]) -> Iterator[Path]:
    """The file ``content`` at ``place``, with EIO for every read that touches one of the ``bad`` sectors
    of 512 bytes: a server of block devices shown as a file through FUSE."""
    need_tool("nbdkit", "nbdfuse", "fusermount3")
    size = content.stat().st_size
    script = (
        f"for b in {' '.join(str(sector * 512) for sector in bad)}; do "
        "if [ $4 -lt $((b+512)) ] && [ $(($4+$3)) -gt $b ]; then echo EIO bad sector >&2; exit 1; fi; done; "
        f"dd if={shlex.quote(str(content))} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"
    )
    place.touch()
    words = [
        "nbdfuse",
        place,
        "--command",
        "nbdkit",
        "-s",
        "eval",
        f"get_size=echo {size}",
        f"pread={script}",
    ]
    with subprocess.Popen([os.fspath(word) for word in words], stderr=subprocess.DEVNULL) as running:
        try:
            end = time.monotonic() + 300
            while place.stat().st_size != size:
                assert running.poll() is None, "nbdfuse ended"
                assert time.monotonic() < end, "nbdfuse shows nothing"
                time.sleep(0.02)
            yield place
        finally:
            subprocess.run(["fusermount3", "-u", os.fspath(place)], check=False)
            running.wait(timeout=600)
