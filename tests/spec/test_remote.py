"""Images that are not on a local disk: in memory, behind an HTTP server that lists its folders and knows ranges."""

from __future__ import annotations

import gc
import http.server
import os
import pickle
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from imagefs.errors import StoreError
from imagefs.spec.filesystem import ImageFileSystem
from imagefs.store.remote import BLOCK, RemoteStore
from tests.spec.conftest import BIG
from tests.support.images import noise
from tests.support.reader_contract import check_reader


@pytest.fixture
def memory(backups: Path) -> Iterator[str]:
    """The set of ``backups`` in fsspec's memory."""
    fs = fsspec.filesystem("memory")
    for path in backups.glob("*.imagefs"):
        fs.pipe(f"/set/{path.name}", path.read_bytes())
    yield "memory://set"
    fs.rm("/set", recursive=True)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """The standard library's server with ``Range: bytes=first-last``."""

    asked: list[str]
    knows_ranges = True

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        self.asked.append(f"{self.path} {self.headers.get('Range', '')}")
        if not (wanted and self.knows_ranges and os.path.isfile(path)):
            return super().do_GET()
        first, last = int(wanted[1]), min(int(wanted[2]), os.path.getsize(path) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{os.path.getsize(path)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))
        return None

    def log_message(self, *_: Any) -> None:
        pass


def serve(folder: Path, handler: type[_Ranges]) -> http.server.ThreadingHTTPServer:
    handler.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def web(backups: Path) -> Iterator[str]:
    server = serve(backups.parent, _Ranges)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_set_in_memory(memory: str) -> None:
    assert fsspec.open(f"imagefs://p0/new.txt::{memory}").open().read() == b"the report\n"
    for url, options in ((f"{memory}@latest~1", {}), (memory, {"image": "latest~1"})):
        fs = ImageFileSystem(fo=url, **options)
        again = pickle.loads(pickle.dumps(fs))
        for each in (fs, again):
            assert each.cat("p0/report.txt") == b"the report\n"
            assert each.cat("p0/link") == BIG
    same = ImageFileSystem(fo="/set@latest~1", target_protocol="memory")
    assert same.opened is fs.opened
    with pytest.raises(FileNotFoundError, match="no images"):
        ImageFileSystem(fo="memory://elsewhere")


def test_a_single_image_in_memory(memory: str, backups: Path) -> None:
    full, child = sorted(path.name for path in backups.glob("*.imagefs"))
    with fsspec.open(f"imagefs://p0/report.txt::{memory}/{full}") as file:
        assert file.read() == b"the report\n"
    with fsspec.open(f"imagefs://p0/new.txt::{memory}/{child}") as file:  # its parent lies beside it
        assert file.read() == b"the report\n"
    del file
    ImageFileSystem.clear_instance_cache()  # what is open stays so
    gc.collect()  # what tracebacks of earlier tests hold
    fsspec.filesystem("memory").rm(f"/set/{full}")
    with pytest.raises(OSError, match="not in the set"):
        ImageFileSystem(fo=f"{memory}/{child}")


def test_over_http(web: str, backups: Path) -> None:
    full = min(backups.glob("*.imagefs"))
    assert full.stat().st_size > 2 * BLOCK
    with fsspec.open(f"imagefs://p0/report.txt::{web}/set/{full.name}") as file:
        assert file.read() == b"the report\n"
    fs = ImageFileSystem(fo=f"{web}/set")
    assert fs.cat("p0/new.txt") == b"the report\n"
    assert sorted(fs.find("p0/sub")) == ["p0/sub/big", "p0/sub/deep/leaf"]
    whole = [line for line in _Ranges.asked if full.name in line and "bytes=" not in line]
    assert whole == []  # never all of it


def test_a_server_without_ranges_is_found_out(backups: Path) -> None:
    class Plain(_Ranges):
        knows_ranges = False

    server = serve(backups.parent, Plain)
    try:
        full = min(backups.glob("*.imagefs"))
        with pytest.raises(OSError, match=rf"{full.name} gave \d+ bytes where"):
            ImageFileSystem(fo=f"http://127.0.0.1:{server.server_port}/set/{full.name}")
    finally:
        server.shutdown()
        server.server_close()


def test_the_reader_keeps_the_contract_of_readers() -> None:
    data = noise(3 * BLOCK + 777)
    fs = fsspec.filesystem("memory")
    fs.pipe("/objects/one", data)
    check_reader(RemoteStore(fs, "/objects", url="memory://objects").open("one"), data, rounds=100)


def test_small_reads_cost_one_request_a_block() -> None:
    asked: list[tuple[int, int]] = []

    class Counting:
        def info(self, path: str) -> dict[str, Any]:
            return {"size": 10 * BLOCK}

        def cat_file(self, path: str, start: int, end: int) -> bytes:
            asked.append((start, end))
            return bytes(end - start)

    reader = RemoteStore(Counting(), "x", url="x").open("one")  # type: ignore[arg-type]
    for offset in range(0, 2 * BLOCK, 1000):
        reader.read_at(offset, 1000)
    assert asked == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 3 * BLOCK)]
    reader.read_at(5 * BLOCK + 1, 3 * BLOCK)
    assert asked[3:] == [(5 * BLOCK + 1, 8 * BLOCK + 1)]


@pytest.mark.parametrize("failing", ["ls", "info", "cat_file"])
def test_what_the_client_raises_is_a_store_error(failing: str) -> None:
    class Broken:
        def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
            return self._may_fail("ls", [{"name": "x/one"}])

        def info(self, path: str) -> dict[str, Any]:
            return self._may_fail("info", {"size": 10})

        def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            return self._may_fail("cat_file", bytes(10))

        def _may_fail(self, name: str, value: Any) -> Any:
            if name == failing:
                raise RuntimeError("the bucket is on fire")
            return value

    store = RemoteStore(Broken(), "x", url="fire://x")
    with pytest.raises(StoreError, match="on fire"):
        for found in store.list():
            store.open(found.name).read_at(0, 10)


def test_nothing_is_written() -> None:
    store = RemoteStore(fsspec.filesystem("memory"), "/x", url="memory://x")
    for work in (
        *(lambda: store.create("a"), lambda: store.delete("a"), lambda: store.reopen("a", 1)),
        *(store.lock, lambda: store.open_partial("a")),
    ):
        with pytest.raises(StoreError, match="only read"):
            work()
    assert list(store.partials()) == []
    assert store.free_bytes() is None
