"""``imagefs nbd`` from end to end: what it says, how it ends, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.nbdserver import nbd_server
from tests.support.oracles import need_tool, run_tool, tool_text


@pytest.fixture
def shop(cli: Cli, disk: Path, tmp_path: Path) -> Path:
    """A set with one image of the small disk."""
    made = cli("capture", "disk.raw", "set", "--mode", "all")
    assert made.code == 0, made.err
    return tmp_path


def test_ready_is_one_document_and_the_socket_is_ones_own(shop: Path) -> None:
    runtime = shop / "run"
    runtime.mkdir()
    with nbd_server(shop, "set", env={"XDG_RUNTIME_DIR": str(runtime)}) as served:
        told = served.document
        assert set(told) == {"uri", "uris", "socket", "pid", "exports"}
        assert told["uris"] == [f"nbd+unix:///?socket={told['socket']}"]
        assert told["pid"] == served.process.pid
        assert [(row["name"], row["size"]) for row in told["exports"]] == [
            ("disk", 4_000_777),
            ("p0", 4_000_777),
        ]
        path = Path(told["socket"])
        assert path.is_relative_to(runtime)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    assert list(runtime.iterdir()) == []


def test_text_is_the_uri_and_what_is_served(shop: Path) -> None:
    command = [sys.executable, "-P", "-m", "imagefs", "nbd", "set", "--socket", "s"]
    with subprocess.Popen(command, cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode() == f"nbd+unix:///?socket={shop}/s\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (130, b"")
        assert "serving disk (3.8 MiB), p0 (3.8 MiB); Ctrl-C ends it" in err.decode()
    assert not (shop / "s").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [(), ("--socket", "s"), ("--listen", "127.0.0.1:0")])
def test_a_signal_ends_it_with_its_code_and_nothing_is_left(
    shop: Path, number: signal.Signals, words: tuple[str, ...]
) -> None:
    before = sorted(shop.iterdir())
    with nbd_server(shop, "set", *words) as served:
        assert served.end(number) == 128 + number
    (shop / "nbd.log").unlink()
    assert sorted(shop.iterdir()) == before


def test_a_killed_server_is_followed_by_another(shop: Path) -> None:
    with nbd_server(shop, "set", "--socket", "s") as served:
        served.end(signal.SIGKILL)
    assert (shop / "s").exists()
    with nbd_server(shop, "set", "--socket", "s") as served:
        need_tool("nbdinfo")
        assert tool_text("nbdinfo", "--size", served.uri) == "4000777\n"
    assert not (shop / "s").exists()


def test_tcp_and_socket_side_by_side(shop: Path) -> None:
    need_tool("nbdinfo")
    with nbd_server(shop, "set", "--listen", "localhost:0", "--socket", "s") as served:
        assert [uri.split(":")[0] for uri in served.document["uris"]] == ["nbd", "nbd+unix"]
        for uri in served.document["uris"]:
            assert tool_text("nbdinfo", "--size", uri) == "4000777\n"


def test_refusals_have_their_exit_codes(cli: Cli, shop: Path) -> None:
    (shop / "file").write_text("mine")
    for words, code, message in (
        (("set", "--listen", "0.0.0.0:0"), 2, "--allow-remote"),
        (("set", "--allow-remote"), 2, "--listen"),
        (("set", "--listen", "nonsense:x"), 2, "HOST:PORT"),
        (("set", "--partition", "x"), 2, "not a volume"),
        (("set", "--partition", "3"), 40, "no volume p3"),
        (("set", "--socket", "file"), 50, "not a socket"),
        (("set", "--socket", "none/s"), 50, "cannot make the socket"),
        (("nothing",), 30, "nothing"),
        (("file",), 20, "file"),
    ):
        done = cli("nbd", *words)
        assert (done.code, done.out) == (code, b""), (words, done.err)
        assert message in done.err
    failed = cli("nbd", "set", "--socket", "file", "--json")
    assert failed.document["error"]["code"] == "serve"
    assert (shop / "file").read_text() == "mine"


def test_bad_sectors_are_zeros_or_errors(cli: Cli, tmp_path: Path) -> None:
    """Sectors 9 to 11 and 64 KiB among zeros were unreadable: refused with --unreadable eio, and never a hole."""
    need_tool("qemu-io", "nbdinfo")
    data = bytearray(noise(1 << 20))
    data[9 * 512 : 12 * 512] = bytes(3 * 512)
    data[512 * 1024 :] = bytes(512 * 1024)
    (tmp_path / "rescued").write_bytes(data)
    rows = ["0x0 0x1200 +", "0x1200 0x600 -", "0x1800 0xBE800 +", "0xC0000 0x10000 -", "0xD0000 0x30000 +"]
    (tmp_path / "map").write_text("\n".join(["0x0 + 1", *rows, ""]))
    assert cli("capture", "rescued", "set", "--mapfile", "map").code == 3
    for how, codes in (("zeros", [0, 0, 0, 0, 0]), ("eio", [0, 1, 0, 0, 1])):
        with nbd_server(tmp_path, "set", "--unreadable", how) as served:
            read = ["qemu-io", "-r", "-f", "raw", served.uri]
            for at, code in zip((0, 4608, 6144, 0xB0000, 0xC0000), codes, strict=True):
                done = run_tool([*read, "-c", f"read {at} 1536"], ok=(0, 1))
                assert done.returncode == code, (how, at, done.stderr)
            found = json.loads(tool_text("nbdinfo", "--map", "--json", served.uri))
            assert [(row["offset"], row["type"]) for row in found] == [
                (0, 0), (0x80000, 3), (0xC0000, 0), (0xD0000, 3),
            ]  # fmt: skip
            assert ("could not be read" in served.log.read_text()) is (how == "eio")
