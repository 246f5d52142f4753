"""``imagefs://``: paths, links, ranges, chaining, errors, threads, processes."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from imagefs.spec import opened
from imagefs.spec.filesystem import ImageFileSystem
from tests.mounter.conftest import wait_until
from tests.spec.conftest import BIG, add_image, make_disk, workers_of


@pytest.fixture
def fs(backups: Path) -> ImageFileSystem:
    return ImageFileSystem(fo=str(backups), image="latest~1")


def test_registered_by_its_entry_point(backups: Path) -> None:
    assert isinstance(fsspec.filesystem("imagefs", fo=str(backups)), ImageFileSystem)


def test_listing(fs: ImageFileSystem) -> None:
    assert fs.ls("", detail=False) == fs.ls("imagefs://", detail=False) == ["p0"]
    assert sorted(fs.ls("p0", detail=False)) == sorted(
        f"p0/{name}"
        for name in (
            *(
                "abs",
                "caf\udce9",
                "folder",
                "link",
                "loop",
                "lost+found",
                "nowhere",
                "report.txt",
                "sub",
                "up",
            ),
            "ünïcode",
        )
    )
    (row,) = fs.ls("p0/report.txt")
    assert row == fs.info("imagefs://p0/report.txt")
    assert (row["size"], row["type"], row["islink"], row["mode"]) == (11, "file", False, 0o100644)
    types = {row["name"]: row["type"] for row in fs.ls("p0")}
    assert (types["p0/sub"], types["p0/link"], types["p0/folder"]) == ("directory", "link", "link")
    assert fs.find("p0/sub") == ["p0/sub/big", "p0/sub/deep/leaf"]
    assert fs.glob("p0/**/l*") == [
        *("p0/abs/leaf", "p0/link", "p0/loop", "p0/lost+found", "p0/sub/deep/leaf"),
    ]
    assert [names for _, names, _ in fs.walk("p0/sub")] == [["deep"], []]
    assert fs.du("p0/sub") == len(BIG) + 5
    assert fs.cat("p0/caf\udce9") == b"latin\n"
    assert fs.isdir("")
    assert fs.isdir("p0")
    assert fs.exists("p0/sub/")
    assert not fs.exists("p1")


def test_links_lead_where_they_would_in_the_volume(fs: ImageFileSystem) -> None:
    info = fs.info("p0/link")
    assert (info["type"], info["size"], info["islink"]) == ("file", len(BIG), True)
    assert info["destination"] == "sub/big"
    assert fs.cat("p0/up") == fs.cat("p0/link") == BIG
    assert fs.isdir("p0/folder")
    assert fs.ls("p0/folder", detail=False) == ["p0/folder/leaf"]
    assert fs.cat("p0/folder/leaf") == fs.cat("p0/abs/leaf") == b"leaf\n"
    assert not fs.exists("p0/nowhere")
    with pytest.raises(OSError) as raised:
        fs.info("p0/loop")
    assert raised.value.errno == errno.ELOOP


def test_reading(fs: ImageFileSystem) -> None:
    with fs.open("p0/sub/big") as file:
        assert file.seekable()
        assert file.readable()
        assert not file.writable()
        assert file.size == len(BIG)
        for offset in (1_000_000, 5, 400_000):
            file.seek(offset)
            assert file.read(1000) == BIG[offset : offset + 1000]
        assert file.seek(-3, 2) == len(BIG) - 3
        assert file.read() == BIG[-3:]
    with fs.open("p0/report.txt", "rt") as lines:
        assert list(lines) == ["the report\n"]
    with fs.open("p0/sub/big", block_size=4096, cache_type="blockcache") as file:
        assert file.read() == BIG
    again = pickle.loads(pickle.dumps(fs.open("p0/sub/big")))
    assert again.read(300) == BIG[:300]
    slices = [(None, None), (5, 9), (-4, None), (0, -1), (10, 5), (len(BIG) - 2, len(BIG) + 10)]
    for start, end in slices:
        assert fs.cat_file("p0/sub/big", start, end) == BIG[start:end]
    ranges = fs.cat_ranges(["p0/sub/big"] * len(slices), [s for s, _ in slices], [e for _, e in slices])
    assert ranges == [BIG[start:end] for start, end in slices]
    mixed = fs.cat_ranges(["p0/report.txt", "p0/none"], 0, 3)
    assert mixed[0] == b"the"
    assert isinstance(mixed[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["p0/none"], 0, 3, on_error="raise")
    assert fs.cat(["p0/report.txt", "p0/sub/deep/leaf"]) == {
        "p0/report.txt": b"the report\n",
        "p0/sub/deep/leaf": b"leaf\n",
    }
    assert fs.head("p0/report.txt", 3) + fs.tail("p0/report.txt", 4) == b"theort\n"


def test_times(fs: ImageFileSystem, backups: Path) -> None:
    real = (backups.parent / "files/report.txt").stat().st_mtime
    assert fs.modified("p0/report.txt") == datetime.fromtimestamp(int(real), tz=UTC)
    assert fs.created("p0/report.txt") == datetime.fromtimestamp(
        1_700_000_000, tz=UTC
    )  # when mke2fs thinks it is
    with pytest.raises(NotImplementedError):
        fs.created("p0")


def test_chained_urls(backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sorted(backups.glob("*.imagefs"))
    for url, options in (
        (f"imagefs://p0/report.txt::file://{images[0]}", {}),
        (f"imagefs://p0/report.txt::{images[0]}", {}),
        (f"imagefs://p0/report.txt::{backups}@latest~1", {}),
        (f"imagefs://p0/report.txt::file://{backups}", {"imagefs": {"image": "@latest~1"}}),
        (f"simplecache::imagefs://p0/report.txt::{images[0]}", {}),
    ):
        with fsspec.open(url, **options) as file:
            assert file.read() == b"the report\n", url
    with fsspec.open(f"imagefs://p0/new.txt::file://{backups}") as file:
        assert file.read() == b"the report\n"
    monkeypatch.chdir(backups.parent)
    fs = ImageFileSystem(fo="set@latest~1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(fs)).cat("p0/report.txt") == b"the report\n"


def test_an_image_stays_the_one_it_was_when_newer_ones_come(backups: Path, tmp_path: Path) -> None:
    shutil.copytree(backups, tmp_path / "set", copy_function=shutil.copy2)
    taken = sorted((tmp_path / "set").glob("*.imagefs"))[-1]
    taken.rename(tmp_path / "aside")
    fs = ImageFileSystem(fo=str(tmp_path / "set"), skip_instance_cache=True)
    kept = pickle.dumps(fs)
    (tmp_path / "aside").rename(taken)
    newer = ImageFileSystem(fo=str(tmp_path / "set"), skip_instance_cache=True)
    assert newer.exists("p0/new.txt")
    again = pickle.loads(kept)
    assert again.exists("p0/report.txt")
    assert not again.exists("p0/new.txt")
    assert again == fs != newer
    assert hash(again) == hash(fs)
    assert fs.ukey("p0/sub/big") == again.ukey("p0/sub/big") != newer.ukey("p0/sub/big")


@pytest.mark.parametrize("work", [
    lambda fs: fs.open("p0/x", "wb"), lambda fs: fs.open("p0/report.txt", "ab"), lambda fs: fs.mkdir("p0/x"),
    lambda fs: fs.makedirs("p0/x", exist_ok=True), lambda fs: fs.rmdir("p0/sub"), lambda fs: fs.touch("p0/x"),
    lambda fs: fs.rm("p0/report.txt"), lambda fs: fs.rm_file("p0/report.txt"), lambda fs: fs.pipe("p0/x", b"1"),
    lambda fs: fs.put(__file__, "p0/x"), lambda fs: fs.copy("p0/report.txt", "p0/x"),
    lambda fs: fs.mv("p0/report.txt", "p0/x"), lambda fs: fs.open("p0/x", "xb"),
])  # fmt: skip
def test_nothing_can_be_changed(fs: ImageFileSystem, work) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotImplementedError, match="read-only"):
        work(fs)


def test_errors_are_those_of_file_systems(fs: ImageFileSystem, backups: Path, tmp_path: Path) -> None:
    for path in ("p0/none", "p7/x", "nonsense/x", "p0/report.txt/below"):
        for work in (fs.info, fs.ls, fs.cat_file, fs.open):
            with pytest.raises(FileNotFoundError):
                work(path)
    for work in (fs.cat_file, fs.open):
        with pytest.raises(IsADirectoryError):
            work("p0/sub")
    with pytest.raises(ValueError, match="fo="):
        ImageFileSystem()
    with pytest.raises(FileNotFoundError):
        ImageFileSystem(fo=str(tmp_path / "none@latest"))
    with pytest.raises(ValueError, match="goes back too far"):
        ImageFileSystem(fo=str(backups), image="latest~9")
    with pytest.raises(ValueError, match="leave image= out"):
        ImageFileSystem(fo=f"{backups}@latest", image="latest~1")
    (tmp_path / "no.imagefs").write_bytes(b"no image" * 100)
    with pytest.raises(OSError, match=r"no\.imagefs"):
        ImageFileSystem(fo=str(tmp_path / "no.imagefs"))
    child = sorted(backups.glob("*.imagefs"))[1]
    shutil.copy(child, tmp_path / "alone.imagefs")
    with pytest.raises(OSError, match="is not in the set"):
        ImageFileSystem(fo=str(tmp_path / "alone.imagefs"))


def test_a_damaged_chunk_is_an_error_of_that_file(backups: Path, tmp_path: Path) -> None:
    import imagefs

    path = tmp_path / "damaged.imagefs"
    path.write_bytes(sorted(backups.glob("*.imagefs"))[0].read_bytes())
    with imagefs.open(path) as disk:
        system = disk.filesystem(0)
        place = max(system.places(system.lookup(b"/sub/big")), key=lambda each: each.end - each.first)
        number = (place.first + place.end) // 2 // disk.disk.chunk_size
        run = disk.disk.run_of(number)
        rows, at = disk.disk.chain.leaf.locate(run.row + number - run.first)
        offset = rows.offset.item(at) + 100
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    fs = ImageFileSystem(fo=str(path))
    with pytest.raises(OSError, match="damaged") as raised:
        fs.cat("p0/sub/big")
    assert raised.value.errno == errno.EIO
    assert fs.cat("p0/report.txt") == b"the report\n"


def test_a_volume_without_a_file_system(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(os.urandom(1 << 20))
    add_image(tmp_path / "set", tmp_path / "raw")
    fs = ImageFileSystem(fo=str(tmp_path / "set"))
    assert fs.ls("", detail=False) == ["p0"]
    with pytest.raises(OSError, match="file system"):
        fs.ls("p0")
    assert fs.find("") == []


def test_threads_share_one_image(backups: Path) -> None:
    fs = ImageFileSystem(fo=str(backups), image="latest~1")
    before = workers_of(os.getpid())
    errors: list[object] = []

    def read(number: int) -> None:
        own = fsspec.filesystem(
            "imagefs", fo=str(backups), image="latest~1"
        )  # another instance in each thread
        for each in (own, fs):
            with each.open("p0/sub/big") as file:
                file.seek(number * 1000)
                if (
                    file.read(5000) != BIG[number * 1000 : number * 1000 + 5000]
                    or len(each.find("p0/sub")) != 2
                ):
                    errors.append(number)
        assert own.opened is fs.opened

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(40)))
    assert errors == []
    assert workers_of(os.getpid()) <= before + 1


def test_what_is_not_used_any_more_is_closed(backups: Path) -> None:
    before = workers_of(os.getpid())
    fs = ImageFileSystem(fo=str(backups))
    fs.ls("p0")
    assert workers_of(os.getpid()) == before + 1
    disk = fs.opened.image.disk
    del fs
    ImageFileSystem.clear_instance_cache()
    wait_until(lambda: workers_of(os.getpid()) == before)
    assert disk._closed


def test_two_points_of_a_set_share_what_is_equal(backups: Path) -> None:
    older, newer = (ImageFileSystem(fo=str(backups), image=word) for word in ("latest~1", "latest"))
    assert older.opened is not newer.opened
    assert older.opened.image.disk._cache is newer.opened.image.disk._cache
    assert older.opened.image.disk.chain.leaf is newer.opened.image.disk.chain.layers[0]


def test_a_forked_process_opens_its_own_and_leaves_ours(fs: ImageFileSystem) -> None:
    fs.ls("p0")
    child = os.fork()
    if child == 0:  # no assertion may get out of here
        code = 1
        try:
            right = fs.cat("p0/report.txt") == b"the report\n"
            code = 0 if right and fs._opened.process == os.getpid() else 2
            ImageFileSystem.clear_instance_cache()
            opened._process.close()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert fs.cat("p0/sub/deep/leaf") == b"leaf\n"  # our worker was left alone


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_the_interpreter(backups: Path, ending: str) -> None:
    code = (
        "import fsspec, subprocess, os\n"
        f"fs = fsspec.filesystem('imagefs', fo={str(backups)!r})\n"
        "file = fs.open('p0/sub/big')\nfs.ls('p0')\n"
        "print(subprocess.run(['pgrep', '-P', str(os.getpid())], capture_output=True, text=True).stdout, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stderr == ""
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) >= 1
    wait_until(lambda: not any(_is_ours(worker) for worker in workers))


def _is_ours(process: int) -> bool:
    try:
        return b"imagefs.browse.worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_worker_that_dies_costs_one_request(fs: ImageFileSystem) -> None:
    fs.ls("p0")
    worker = fs.opened.filesystem("p0")._worker  # type: ignore[attr-defined]
    worker._process.kill()
    with pytest.raises(OSError, match="was killed"):
        fs.info("p0/report.txt")
    assert fs.cat("p0/report.txt") == b"the report\n"


def test_what_is_listed_is_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"files/d{number}").mkdir(parents=True)
        (tmp_path / f"files/d{number}/x").touch()
    add_image(tmp_path / "set", make_disk(tmp_path / "files", tmp_path / "disk"))
    monkeypatch.setattr(opened, "KEPT_ENTRIES", 30)
    fs = ImageFileSystem(fo=str(tmp_path / "set"))
    assert len(fs.find("p0")) == 20
    assert fs.opened.listings.bytes <= 30
    assert fs.ls("p0") == fs.ls("p0", refresh=True)
    none = ImageFileSystem(fo=str(tmp_path / "set"), use_listings_cache=False)
    kept = fs.opened.listings.bytes
    assert len(none.find("p0")) == 20
    assert fs.opened.listings.bytes == kept
