"""``imagefs mount`` and ``umount`` from end to end: capture, mount, compare, unmount; exit codes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounter.conftest import clear, is_mounted, need, wait_until

pytestmark = pytest.mark.timeout(1200)


class Shop:
    """A set with one image of a 5 MB disk, and ``imagefs`` run against a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = random.Random(5).randbytes(5_000_192)
        (folder / "disk").write_bytes(self.disk)
        self.directory = folder / "mnt"

    def command(self, *words: str | Path) -> tuple[list[str], dict[str, str]]:
        state = str(self.folder / "state")
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "XDG_STATE_HOME": state, "PYTHONPATH": root}
        return [sys.executable, "-P", "-m", "imagefs", *map(str, words)], environment

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(*words)
        return subprocess.run(
            command,
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def mounts(self) -> list[dict[str, object]]:
        listed = self.run("mount", "--json")
        assert listed.returncode == 0, listed.stderr
        found: list[dict[str, object]] = json.loads(listed.stdout)["mounts"]
        return found


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    need(os.path.exists("/dev/fuse"), "/dev/fuse")
    shop = Shop(tmp_path)
    captured = shop.run("capture", "disk", "set", "--mode", "all")
    assert captured.returncode == 0, captured.stderr
    yield shop
    clear(shop.directory)


def test_mount_list_compare_unmount(shop: Shop) -> None:
    mounted = shop.run("mount", "set", "mnt")
    assert mounted.returncode == 0, mounted.stderr
    assert mounted.stdout == ""
    subprocess.run(["cmp", shop.folder / "disk", shop.directory / "disk.raw"], check=True, timeout=600)
    facts = json.loads((shop.directory / "image.json").read_bytes())
    (listed,) = shop.mounts()
    assert listed["directory"] == str(shop.directory)
    assert facts["id"]
    assert (listed["errors"], listed["alive"]) == (0, True)
    assert Path(str(listed["log"])).read_text().count("mounted") == 1
    text = shop.run("mount").stdout
    assert str(shop.directory) in text
    assert "0 errors" in text
    unmounted = shop.run("umount", "mnt")
    assert (unmounted.returncode, unmounted.stdout) == (0, "")
    assert not shop.directory.exists()
    assert shop.mounts() == []


def test_refusals_have_their_exit_codes(shop: Shop) -> None:
    (shop.folder / "full").mkdir()
    (shop.folder / "full" / "x").write_bytes(b"")
    for words, code, message in (
        (("mount", "set", "full"), 50, "is not empty"),
        (("mount", "set", "none/mnt"), 50, "does not exist"),
        (("umount", "full"), 50, "is not a mount of imagefs"),
        (("mount", "set"), 2, "DIR"),
        (("mount", "nothing", "mnt"), 30, "nothing"),
        (("mount", "disk", "mnt"), 20, "disk"),
    ):
        done = shop.run(*words)
        assert done.returncode == code, (words, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, "a sentence, after the image that was chosen"
    assert not shop.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_foreground_ends_by_signal_and_cleans_up(shop: Shop, number: signal.Signals) -> None:
    command, environment = shop.command("mount", "set", "mnt", "--foreground")
    process = subprocess.Popen(command, env=environment, cwd=shop.folder, stderr=subprocess.PIPE)
    wait_until(lambda: is_mounted(shop.directory) or process.poll() is not None)
    wait_until(lambda: shop.mounts() or process.poll() is not None)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 128 + number, said
    assert not shop.directory.exists()


def test_the_mount_outlives_a_terminal_that_hangs_up(shop: Shop) -> None:
    command, environment = shop.command("mount", "set", "mnt")
    script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=environment, cwd=shop.folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    time.sleep(0.2)
    assert (shop.directory / "disk.raw").read_bytes() == shop.disk
    (listed,) = shop.mounts()
    assert os.getsid(int(str(listed["pid"]))) == listed["pid"]
    assert shop.run("umount", "mnt").returncode == 0


def test_damage_is_eio_a_log_line_and_a_count(shop: Shop) -> None:
    (image,) = (shop.folder / "set").glob("*.imagefs")
    content = bytearray(image.read_bytes())
    at = content.find(shop.disk[2_000_000:2_000_032])
    assert at > 0, "random bytes are stored as they are"
    content[at] ^= 1
    image.chmod(0o600)
    image.write_bytes(content)
    assert shop.run("mount", "set", "mnt").returncode == 0
    with pytest.raises(OSError):
        (shop.directory / "disk.raw").read_bytes()
    copied = subprocess.run(
        ["cat", shop.directory / "disk.raw"], capture_output=True, timeout=600, check=False
    )
    assert copied.returncode != 0
    assert shop.disk.startswith(copied.stdout)
    wait_until(lambda: int(str(shop.mounts()[0]["errors"])) > 0)
    log = Path(str(shop.mounts()[0]["log"])).read_text()
    assert "integrity" in log
    assert "chunk=" in log
    assert shop.run("umount", "mnt").returncode == 0
