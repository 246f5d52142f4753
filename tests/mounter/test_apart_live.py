"""A mount whose parsers die: one EIO for what killed one, and everything else goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.browse.disks import make_ext
from tests.browse.test_apart import children_of
from tests.mounter.conftest import Mount


@pytest.fixture
def mined(tmp_path: Path) -> Path:
    for word in ("segfault", "loop", "good"):
        (tmp_path / "tree" / word).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "tree" / word / f"file-{number}").write_bytes(b"x" * number)
    return make_ext(tmp_path / "ext4", tmp_path / "tree")


def test_a_mount_outlives_its_parsers(mined: Path, mount: Mount) -> None:
    served = mount(kind="hostile", path=str(mined))
    root = served.directory
    for volume in ("p1", "p2"):
        for word in ("segfault", "loop") if volume == "p1" else ("segfault",):
            with pytest.raises(OSError) as caught:
                os.listdir(root / volume / word)
            assert caught.value.errno == errno.EIO
            assert len(os.listdir(root / "p2" / "good")) == 40
        assert (root / volume / "good/file-7").read_bytes() == b"x" * 7
    found = subprocess.run(["find", root, "-ls"], capture_output=True, check=False)
    assert found.stdout.count(b"/good/file-") == 80
    assert served.process.poll() is None


def test_workers_killed_in_the_middle_of_a_walk(mined: Path, mount: Mount) -> None:
    """At most one EIO for each; the walk after it is whole."""
    served = mount(kind="hostile", path=str(mined))
    good = served.directory / "p1/good"
    for _ in range(5):
        assert len(os.listdir(good)) == 40
        for worker in children_of(served.process.pid):
            os.kill(worker, signal.SIGKILL)
        failures: list[int | None] = []
        for number in range(40):
            try:
                assert (good / f"file-{number}").read_bytes() == b"x" * number
            except OSError as error:
                failures.append(error.errno)
        assert failures in ([], [errno.EIO])
    assert len(children_of(served.process.pid)) <= 2
