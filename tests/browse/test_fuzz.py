"""Volumes with bytes changed at random: never a crash, a traceback or an endless walk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: In a process of its own, so that a crash of the C library is a failure here and not the end.
FUZZ = """
import random, sys
from pathlib import Path
from imagefs.block.views import BytesReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
source, first, count = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), int(sys.argv[3])
used = [at for at in range(0, len(source), 512) if any(source[at:at + 512])]
def ignore(error):
    pass
def damaged(seed):
    dice, data = random.Random(seed), bytearray(source)
    for _ in range(dice.choice((1, 5, 40, 200))):
        at = dice.choice(used[:400] if dice.random() < 0.7 else used) + dice.randrange(512)
        if at < len(data):
            data[at] = dice.choice((0, 255, data[at] ^ 1 << dice.randrange(8), dice.randrange(256)))
    return bytes(data)
def visit(data):
    fs = open_filesystem(BytesReader(data))
    fs.label, fs.used_bytes
    for count, entry in enumerate(walk(fs, fs.root(), onerror=ignore)):
        if count > 3000:
            break
        try:
            if entry.type == "file":
                reader = fs.open(entry)
                assert len(reader.read_at(0, 1 << 18)) == min(reader.size, 1 << 18)
            elif entry.type == "symlink":
                fs.readlink(entry)
        except ImagefsError:
            pass
for seed in range(first, first + count):
    print(seed, flush=True)
    try:
        visit(damaged(seed))
    except ImagefsError:
        pass
print("done")
"""


def fuzz(volume: Path, first: int, count: int, *, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, volume, str(first), str(count)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    lines = done.stdout.decode().split()
    assert lines[-1:] == ["done"], f"seed {lines[-1:]}: {done.returncode} {done.stderr.decode()[-2000:]}"


@pytest.mark.parametrize("name", ["ext4", "ext2", "ntfs"])
def test_a_few_damaged_volumes(name: str, request: pytest.FixtureRequest) -> None:
    fuzz(request.getfixturevalue(name), 1, 5, timeout=600)


def test_a_few_damaged_fat_volumes(fat: Path) -> None:
    fuzz(fat, 1, 3, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ext4", "ext2", "ntfs"])
def test_many_damaged_volumes(name: str, request: pytest.FixtureRequest) -> None:
    fuzz(request.getfixturevalue(name), 1000, 300, timeout=1500)


@pytest.mark.slow
def test_many_damaged_fat_volumes(fat: Path) -> None:
    fuzz(fat, 1000, 100, timeout=1500)
