"""Requests of the kernel and the nodes it holds. What the bytes must be, the live tests ask the kernel itself."""

from __future__ import annotations

import errno
import stat
import struct

import pytest

from imagefs.block.views import BytesReader
from imagefs.interfaces import Entry
from mounter import requests
from mounter.nodes import ROOT, Nodes
from mounter.operations import MountOperations
from mounter.requests import MAX_PLUS, Requests
from mounter.tree import MountTree, VolumeSpec
from tests.mounter.fakes import FakeFileSystem, directory, file, spec_of

_ATTR = 128 - 88  # where a fuse_attr begins in a fuse_entry_out


def requests_over(entries: list[Entry]) -> Requests:
    volume = VolumeSpec("p1", BytesReader(b""), lambda: FakeFileSystem(entries))
    tree = MountTree(spec_of(BytesReader(b"some disk"), volume), log=[].append)
    return Requests(MountOperations(tree, log=[].append))


def ask(over: Requests, opcode: int, node: int, body: bytes = b"") -> bytes:
    answer = over.answer(opcode, node, memoryview(body))
    assert answer is not None
    return answer


def look_up(over: Requests, *names: bytes) -> int:
    node = ROOT
    for name in names:
        (node,) = struct.unpack_from("<Q", ask(over, requests.LOOKUP, node, name + b"\0"))
    return node


def listed(over: Requests, node: int, *, room: int = 4096) -> list[tuple[int, bytes]]:
    """(node id, name) of everything in a folder, by READDIRPLUS."""
    (handle,) = struct.unpack_from("<Q", ask(over, requests.OPENDIR, node, bytes(8)))
    out, position = [], 0
    while data := ask(over, requests.READDIRPLUS, node, struct.pack("<QQII", handle, position, room, 0)):
        assert len(data) <= room
        at = 0
        while at < len(data):
            (given,) = struct.unpack_from("<Q", data, at)
            _, position, length, _ = struct.unpack_from("<QQII", data, at + 128)
            out.append((given, data[at + 152 : at + 152 + length]))
            at += 152 + (length + 7 & ~7)
    ask(over, requests.RELEASEDIR, node, struct.pack("<QQQ", handle, 0, 0))
    return out


def test_a_node_is_held_until_it_was_forgotten_as_often_as_it_was_given() -> None:
    nodes = Nodes()
    first = nodes.give(b"/a", is_file=True)
    assert nodes.give(b"/b", is_file=True) != first
    assert [nodes.give(b"/a", is_file=True) for _ in range(4)] == [first] * 4
    nodes.forget(first, 2)
    nodes.forget(first, 2)
    assert nodes.path(first) == b"/a"
    nodes.forget(first, 1)
    with pytest.raises(OSError) as caught:
        nodes.path(first)
    assert caught.value.errno == errno.ESTALE
    assert nodes.give(b"/a", is_file=True) not in (first, ROOT)
    nodes.forget(ROOT, 7)
    assert nodes.path(ROOT) == b"/"
    nodes.forget(12345, 1)


def test_of_many_files_the_oldest_are_to_be_forgotten() -> None:
    nodes = Nodes(kept=3)
    nodes.give(b"/disk.raw", is_file=True)
    folder = nodes.give(b"/p1", is_file=False)
    given = [nodes.give(b"/p1/%d" % n, is_file=True) for n in range(6)]
    assert nodes.too_many
    nodes.forget(given[0], 1)
    assert [nodes.oldest() for _ in range(3)] == [(folder, b"1"), (folder, b"2"), None]
    assert not nodes.too_many


def test_nothing_is_held_of_what_the_kernel_forgot() -> None:
    over = requests_over(
        [directory(b"/d", inode="9"), *(file(b"/d/%d" % n, 1, inode=str(20 + n)) for n in range(200))]
    )
    folder = look_up(over, b"p1", b"d")
    given = [node for node, name in listed(over, folder) if node]
    assert len(set(given)) == 200
    look_up(over, b"p1", b"d", b"7")
    held = len(over.nodes)
    assert held == 203
    many = b"".join(struct.pack("<QQ", node, 1) for node in given)
    assert over.answer(requests.BATCH_FORGET, 0, memoryview(struct.pack("<II", 200, 0) + many)) is None
    assert len(over.nodes) == 4, "one was given twice"


def test_an_answer_that_is_taken_back_holds_nothing() -> None:
    over = requests_over([file(b"/%d" % n, 1, inode=str(20 + n)) for n in range(20)])
    node = look_up(over, b"p1")
    handle = ask(over, requests.OPENDIR, node, bytes(8))[:8]
    data = ask(over, requests.READDIRPLUS, node, handle + struct.pack("<QII", 0, 4096, 0))
    assert len(over.nodes) > 10
    over.take_back(requests.READDIRPLUS, data)
    assert len(over.nodes) == 2
    over.take_back(requests.LOOKUP, ask(over, requests.LOOKUP, node, b"7\0"))
    over.take_back(requests.LOOKUP, ask(over, requests.LOOKUP, node, b"nothing\0"))
    assert len(over.nodes) == 2


def test_a_buffer_of_any_size_gives_every_name_once() -> None:
    names = sorted(b"x" * (n % 200) + b"%d" % n for n in range(300))
    over = requests_over([file(b"/" + name, 1, inode=str(20 + n)) for n, name in enumerate(names)])
    node = look_up(over, b"p1")
    for room in (512, 4096, 1 << 20):
        assert sorted(name for _, name in listed(over, node, room=room)) == sorted([b".", b"..", *names])


def test_a_huge_folder_gives_names_alone_after_its_first_entries() -> None:
    over = requests_over([file(b"/%d" % n, 1, inode=str(20 + n)) for n in range(MAX_PLUS + 50)])
    found = listed(over, look_up(over, b"p1"), room=1 << 20)
    assert len(found) == MAX_PLUS + 52
    assert sum(1 for node, _ in found if node) == MAX_PLUS - 2
    assert len(over.nodes) == MAX_PLUS


def test_what_is_not_there_is_remembered_as_that() -> None:
    over = requests_over([])
    assert look_up(over, b"nothing") == 0
    assert len(over.nodes) == 1


def test_a_file_server_may_ask_for_dots() -> None:
    over = requests_over([directory(b"/d", inode="9")])
    folder = look_up(over, b"p1", b"d")
    assert look_up(over, b"p1", b"d", b".") == folder
    assert look_up(over, b"p1", b"d", b"..") == look_up(over, b"p1")
    assert look_up(over, b"p1", b"..") == ROOT


@pytest.mark.parametrize("opcode", [requests.SETATTR, requests.WRITE, requests.MKDIR, 39, 4096])
def test_what_is_not_known_is_said_once_and_for_all(opcode: int) -> None:
    with pytest.raises(OSError) as caught:
        requests_over([]).answer(opcode, ROOT, memoryview(bytes(64)))
    assert caught.value.errno == errno.ENOSYS


def test_attributes_do_not_fit_everywhere() -> None:
    over = requests_over([])
    node = look_up(over, b"disk.raw")
    names = ask(over, requests.LISTXATTR, node, struct.pack("<II", 1000, 0))
    assert struct.unpack("<II", ask(over, requests.LISTXATTR, node, bytes(8))) == (len(names), 0)
    with pytest.raises(OSError) as caught:
        ask(over, requests.LISTXATTR, node, struct.pack("<II", len(names) - 1, 0))
    assert caught.value.errno == errno.ERANGE


def test_times_before_1970_and_device_numbers() -> None:
    device = file(b"/d", 0, inode="9")._replace(mtime_ns=-5, rdev=(0xABC, 0x12345))
    packed = requests.pack_attributes(requests_over([device]).operations.attributes(b"/p1/d"))
    (modified,) = struct.unpack_from("<q", packed, 32)
    (nanoseconds,) = struct.unpack_from("<I", packed, 52)
    assert (modified, nanoseconds) == (-1, 999_999_995)
    assert struct.unpack_from("<I", packed, 76) == (0x45 | 0xABC << 8 | 0x12300 << 12,)
    assert stat.S_ISREG(struct.unpack_from("<I", packed, 60)[0])
