"""Sockets: made, refused, replaced, taken away."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from imagefs.errors import ServeError, UsageError
from imagefs.nbd.listening import listen_tcp, listen_unix, parse_address


def test_a_socket_is_its_owners_and_goes_away(tmp_path: Path) -> None:
    made = listen_unix(str(tmp_path / "a b,c?.sock"))
    mode = os.lstat(made.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert made.uri("p1") == f"nbd+unix:///p1?socket={tmp_path}/a%20b%2Cc%3F.sock"
    made.close()
    assert list(tmp_path.iterdir()) == []
    made.close()


def test_what_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    listen_unix(str(tmp_path / "s")).close()


def test_what_is_in_use_or_no_socket_is_left_alone(tmp_path: Path) -> None:
    first = listen_unix(str(tmp_path / "s"))
    with pytest.raises(ServeError, match="listens at"):
        listen_unix(first.path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ServeError, match="not a socket"):
        listen_unix(str(tmp_path / "file"))
    with pytest.raises(ServeError, match="cannot make the socket"):
        listen_unix(str(tmp_path / "no" / "s"))
    with pytest.raises(ServeError, match="too long"):
        listen_unix(str(tmp_path / ("x" * 108)))
    assert (tmp_path / "file").read_text() == "mine"
    first.close()


def test_a_socket_that_somebody_else_made_there_stays(tmp_path: Path) -> None:
    made = listen_unix(str(tmp_path / "s"))
    other = listen_unix(str(tmp_path / "t"))
    os.rename(other.path, made.path)
    made.close()
    assert (tmp_path / "s").is_socket()
    other.close()


def test_addresses() -> None:
    assert parse_address("localhost") == ("localhost", 10809)
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_address("[::1]:5") == ("::1", 5)
    assert parse_address("[::1]") == ("::1", 10809)
    for wrong in ("", ":5", "::1", "::1:5", "a:", "a:b", "a:65536", "a:-1", "a:１", "[::1]:"):
        with pytest.raises(UsageError):
            parse_address(wrong)


def test_tcp_stays_on_this_machine_unless_asked() -> None:
    for far in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(UsageError, match="other machines"):
            listen_tcp(far, remote=False)
    listen_tcp("0.0.0.0:0", remote=True).close()
    near = listen_tcp("127.0.0.1:0", remote=False)
    port = near.socket.getsockname()[1]
    assert near.uri() == f"nbd://127.0.0.1:{port}/"
    with pytest.raises(ServeError, match="in use"):
        listen_tcp(f"127.0.0.1:{port}", remote=False)
    near.close()
    with pytest.raises(ServeError, match="not known"):
        listen_tcp("nowhere.invalid:0", remote=False)
