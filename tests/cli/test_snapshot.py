"""Sources in use: captured as of one moment, or as they are and marked, or not at all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.block.devices import open_source
from imagefs.block.snapshot import open_snapshot, take_snapshot
from imagefs.interfaces import NoProgress, Progress
from imagefs.ops.capture import capture
from imagefs.ops.plan import CaptureOptions
from imagefs.store import LocalStore
from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.oracles import need_tool, root_only, run_tool, tool_text


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on XFS, where files can be cloned."""
    need_tool("mkfs.xfs", "mount", "umount")
    image, place = tmp_path / "fs.img", tmp_path / "xfs"
    run_tool(["truncate", "-s", "600M", image])
    run_tool(["mkfs.xfs", "-q", image])
    place.mkdir()
    run_tool(["mount", "-o", "loop", image, place])
    try:
        yield place
    finally:
        run_tool(["umount", place])


@root_only
def test_a_disk_of_a_running_machine(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """An ext4 file system is mounted from the disk and written to: the image holds one moment of it, clean."""
    need_tool("mke2fs", "e2fsck")
    disk, place = folder / "disk.raw", tmp_path / "inner"
    run_tool(["truncate", "-s", "64M", disk])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", disk])
    place.mkdir()
    run_tool(["mount", "-o", "loop", disk, place])
    try:
        (place / "before").write_bytes(noise(3_000_000))
        refused = cli("capture", str(disk), "set", "--snapshot", "none")
        assert refused.code == 10
        made = cli("capture", str(disk), "set", "--json")
        (place / "after").write_bytes(b"later")
        os.sync()
    finally:
        run_tool(["umount", place])
    assert made.code == 0, made.err
    assert made.document["mode"] == "used"
    assert made.document["volumes"][0]["whole"] == "", "held still, its map can be believed"
    assert cli("info", "set", "--json").document["consistency"] == "snapshot"
    assert cli("verify", "set", "--json").document["consistency"] == {made.document["id"]: "snapshot"}
    assert "snapshot" in cli("list", "set").text
    assert [each.name for each in folder.iterdir()] == ["disk.raw"], "the clone left nothing"
    assert cli("restore", "set", "restored.raw").code == 0
    run_tool(["e2fsck", "-f", "-n", tmp_path / "restored.raw"])
    assert "after" not in tool_text("debugfs", "-R", "ls -p /", tmp_path / "restored.raw")
    assert cli("cat", "set", "/p0/before").out == noise(3_000_000)
    resumed = cli("capture", str(disk), "set", "--resume")
    assert resumed.code == 2


@root_only
def test_what_could_not_be_held_still_is_taken_whole(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """NTFS through FUSE cannot be frozen, and says of itself that all is clean: its map is not believed."""
    need_tool("mkntfs", "ntfs-3g")
    disk, place = folder / "disk.raw", tmp_path / "inner"
    run_tool(["truncate", "-s", "20M", disk])
    run_tool(["mkntfs", "-q", "-F", "-f", disk])
    place.mkdir()
    run_tool(["ntfs-3g", disk, place])
    try:
        (place / "before").write_bytes(noise(300_000))
        made = cli("capture", str(disk), "set", "--json")
    finally:
        run_tool(["umount", place])
    assert made.code == 0, made.err
    (row,) = made.document["volumes"]
    assert (row["used"], "held still" in row["whole"]) == (disk.stat().st_size, True)
    assert "as after a power cut" in made.err
    assert cli("info", "set", "--json").document["consistency"] == "snapshot"
    assert cli("capture", str(disk), "set", "--json").document["volumes"][0]["whole"] == ""


@root_only
def test_where_nothing_can_be_cloned(cli: Cli, tmp_path: Path) -> None:
    """A device that is mounted and is no logical volume: refused with the way out, taken with it."""
    need_tool("mke2fs", "losetup")
    disk, place = tmp_path / "disk.raw", tmp_path / "inner"
    run_tool(["truncate", "-s", "20M", disk])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", disk])
    place.mkdir()
    device = run_tool(["losetup", "--find", "--show", disk]).stdout.decode().strip()
    try:
        run_tool(["mount", device, place])
        try:
            refused = cli("capture", device, "set")
            assert (refused.code, "--snapshot live" in refused.err) == (10, True)
            for wish, code in (("lvm", 2), ("reflink", 2)):
                assert cli("capture", device, "set", "--snapshot", wish).code == code
            made = cli("capture", device, "set", "--snapshot", "live", "--json")
        finally:
            run_tool(["umount", place])
    finally:
        run_tool(["losetup", "--detach", device])
    assert made.code == 0, made.err
    assert "may change" in made.document["volumes"][0]["whole"]
    assert cli("info", "set", "--json").document["consistency"] == "none"
    assert "nobody vouches" in cli("verify", "set").text


class Writes(NoProgress):
    """A progress that writes to the source between the two passes."""

    def __init__(self, path: Path, *changes: tuple[int, bytes]) -> None:
        self.path, self.changes = path, changes
        self.labels: list[str] = []

    def start(self, label: str, total: int | None, /) -> None:
        self.labels.append(label)
        if label == "changes":
            with self.path.open("r+b") as out:
                for at, data in self.changes:
                    out.seek(at)
                    out.write(data)


def live(path: Path, store: LocalStore, progress: Progress, **more: object) -> object:
    source = open_source(str(path))
    try:
        options = CaptureOptions(live=True, threads=2, chunk_size=65536, **more)  # type: ignore[arg-type]
        return capture(source, store, options, progress)
    finally:
        source.close()


@pytest.mark.parametrize("child", [False, True])
def test_what_changed_while_it_was_read_is_read_again(cli: Cli, tmp_path: Path, child: bool) -> None:
    """Stored, zero and inherited chunks that become something else; all else is kept as it was written."""
    path, store = tmp_path / "disk.raw", LocalStore(str(tmp_path / "set"), suffix=".imagefs")
    before = bytearray(noise(3_000_000) + bytes(2_000_000) + noise(1_000_077, 5))
    path.write_bytes(before)
    store.make()
    if child:
        assert cli("capture", "disk.raw", "set", "--chunk-size", "64K").code == 0
        before[100_000:100_010] = b"x" * 10
        path.write_bytes(before)
    changes = [(1_000_000, b"changed"), (2_000_000, bytes(200_000)), (4_000_000, b"not zero any more")]
    progress = Writes(path, *changes, (len(before) - 3, b"end"))
    made = live(path, store, progress, hashes=("sha256",))
    after = path.read_bytes()
    assert after != before
    assert progress.labels.count("changes") == 1
    facts = made.info.summary.facts  # type: ignore[attr-defined]
    assert facts["changed_chunks"] in range(4, 9)
    assert cli("verify", "set", "--against", "disk.raw").code == 0
    assert cli("restore", "set", "restored.raw").code == 0
    assert (tmp_path / "restored.raw").read_bytes() == after
    told = cli("info", "set", "--json").document
    assert told["consistency"] == "none"
    assert told["digests"]["sha256"] == tool_text("sha256sum", path).split()[0]
    assert cli("list", "set", "--json").document["partials"] == []


def test_a_source_that_never_stands_still(cli: Cli, tmp_path: Path) -> None:
    """A file that is written to all the time is refused, and taken with ``live``, whole and verified."""
    path = tmp_path / "disk.raw"
    path.write_bytes(noise(40_000_000))
    end = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as out:
            number = 0
            while not end.is_set():
                number += 1
                os.pwrite(out.fileno(), number.to_bytes(8, "little") * 512, number * 8192 % 39_000_000)
                time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        usual = cli("capture", "disk.raw", "set")
        refused = cli("capture", "disk.raw", "set", "--snapshot", "none")
        made = cli("capture", "disk.raw", "set", "--snapshot", "live", "--json")
    finally:
        end.set()
        thread.join()
    assert (refused.code, "was written to" in refused.err) == (10, True)
    assert (usual.code, "open for writing" in usual.err, "--snapshot live" in usual.err) == (10, True, True)
    assert made.code == 0, made.err
    assert cli("verify", "set").code == 0


def test_a_live_capture_that_is_killed_in_its_second_pass_is_resumed(cli: Cli, tmp_path: Path) -> None:
    path, store = tmp_path / "disk.raw", LocalStore(str(tmp_path / "set"), suffix=".imagefs")
    path.write_bytes(noise(30_000_000))
    store.make()

    class Stop(Writes):
        def advance(self, count: int, /) -> None:
            if "changes" in self.labels:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(path, store, Stop(path))
    assert len(cli("list", "set", "--json").document["partials"]) == 1
    assert cli("capture", "disk.raw", "set", "--resume", "--snapshot", "live").code == 0
    assert cli("verify", "set", "--against", "disk.raw").code == 0


@root_only
def test_a_snapshot_that_was_stopped_leaves_nothing_to_go_on_with(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    disk, store = folder / "disk.raw", LocalStore(str(tmp_path / "set"), suffix=".imagefs")
    disk.write_bytes(noise(30_000_000))
    store.make()

    class Stop(Writes):
        def advance(self, count: int, /) -> None:
            raise KeyboardInterrupt

    taken = take_snapshot(str(disk), "reflink")
    assert taken is not None
    source = open_snapshot(taken)
    with pytest.raises(KeyboardInterrupt):
        capture(source, store, CaptureOptions(threads=2), Stop(disk))
    source.close()
    assert taken.remove() == []
    assert cli("list", "set", "--json").document["partials"] == []
