"""The tools we are measured against, each called as its manual says and synced as we sync.

A peer's repository is made anew outside the measured time.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.measure import Run, run_timed
from fixtures.tools import run_tool, tool_path

#: Tool -> the arguments that make it tell its version.
VERSIONS = {
    "qemu-img": "--version",
    "qemu-storage-daemon": "--version",
    "borg": "--version",
    "restic": "version",
    "zstd": "--version",
    "fio": "--version",
}


def versions() -> dict[str, str]:
    """First line of what each peer says of itself; ToolError for one that is missing."""
    return {
        tool: run_tool([tool, word]).stdout.decode().splitlines()[0].strip()
        for tool, word in VERSIONS.items()
    }


def missing() -> list[str]:
    return [tool for tool in (*VERSIONS, "setpriv", "time") if tool_path(tool) is None]


def qemu_compress(disk: Path, target: Path) -> Run:
    """The whole disk as a compressed qcow2 with zstd clusters."""
    target.unlink(missing_ok=True)
    words = ["qemu-img", "convert", "-c", "-m", "2", "-f", "raw", "-O", "qcow2"]
    return run_timed([*words, "-o", "compression_type=zstd", disk, target], sync=[target])


def qemu_restore(image: Path, target: Path) -> Run:
    """The compressed qcow2 back to a sparse raw file."""
    target.unlink(missing_ok=True)
    return run_timed(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, target], sync=[target])


def ewf(disk: Path, target: Path) -> Path:
    """The whole disk as one E01, with ewfacquire's fast compression."""
    words: list[str | Path] = [
        "ewfacquire",
        "-u",
        "-q",
        "-c",
        "deflate:fast",
        "-S",
        "1EiB",
        "-t",
        target,
        disk,
    ]
    run_timed(words)
    return target.with_suffix(".E01")


def zstd(disk: Path, target: Path, *, level: int) -> Run:
    words: list[str | Path] = ["zstd", "-q", "-f", "-T2", f"-{level}", disk, "-o", target]
    return run_timed(words, sync=[target])


def partclone(part: Path, target: Path) -> Run:
    """The used blocks of an ext4 partition, packed: two programs in a pipe."""
    target.unlink(missing_ok=True)
    line = 'partclone.ext4 -c -L "$3" -s "$1" -o - | zstd -q -f -3 -T2 -o "$2"'
    log = target.with_suffix(".log")
    return run_timed(["bash", "-o", "pipefail", "-c", line, "bash", part, target, log], sync=[target])


def borg(disk: Path, repository: Path) -> Run:
    """A first backup of the disk file into a new, unencrypted repository with a cache of its own."""
    env = borg_environment(repository)
    for folder in (repository, env["BORG_BASE_DIR"]):
        shutil.rmtree(folder, ignore_errors=True)
    run_timed(["borg", "init", "--encryption", "none", repository], env=env)
    words: list[str | Path] = ["borg", "create", "--compression", "zstd,3", f"{repository}::disk", disk]
    return run_timed(words, env=env, sync=[repository])


def borg_environment(repository: Path) -> dict[str, str]:
    home = repository.with_suffix(".home")
    return {"BORG_BASE_DIR": os.fspath(home), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


def casync(disk: Path, folder: Path) -> Path:
    """An archive, packed with zstd, of a folder with the disk in it as ``disk.raw``; its index."""
    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / "tree"
    tree.mkdir(parents=True)
    os.link(disk, tree / "disk.raw")
    index = folder / "disk.caidx"
    run_timed(["casync", "make", "--compression=zstd", f"--store={folder / 'store'}", index, tree])
    return index


_RESTIC = {"RESTIC_PASSWORD": "benchmark"}


def restic_backup(disk: Path, repository: Path) -> None:
    shutil.rmtree(repository, ignore_errors=True)
    run_timed(["restic", "-q", "--no-cache", "-r", repository, "init"], env=_RESTIC)
    run_timed(["restic", "-q", "--no-cache", "-r", repository, "backup", disk], env=_RESTIC)


def restic_check(repository: Path) -> Run:
    return run_timed(["restic", "-q", "--no-cache", "-r", repository, "check", "--read-data"], env=_RESTIC)
