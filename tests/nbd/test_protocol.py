"""Bytes and values of the protocol, held against doc/proto.md: numbers written out by hand."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.nbd import protocol
from imagefs.nbd.protocol import ChunkType, Error, Invalid, Rep, Request, StatusFlag, Violation
from tests.nbd.client import info, meta


def test_the_greeting() -> None:
    assert protocol.greeting().hex() == "4e42444d41474943" + "49484156454f5054" + "0003"


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_a_client_flag_nobody_offered_ends_it(flags: int) -> None:
    with pytest.raises(Violation):
        protocol.parse_client_flags(struct.pack(">I", flags))


def test_an_option_header() -> None:
    header = protocol.parse_option_header(bytes.fromhex("49484156454f5054 00000007 00000006"))
    assert (header.option, header.length) == (7, 6)
    for wrong in ("49484156454f5055 00000007 00000006", "49484156454f5054 00000007 00010001"):
        with pytest.raises(Violation):
            protocol.parse_option_header(bytes.fromhex(wrong))


def test_a_request() -> None:
    data = bytes.fromhex("25609513 0008 0007 0102030405060708 0000000100000000 00001000")
    assert protocol.parse_request(data) == Request(8, 7, 0x0102030405060708, 2**32, 4096)
    with pytest.raises(Violation):
        protocol.parse_request(b"\0" * 28)


def test_replies() -> None:
    assert (
        protocol.option_reply(3, Rep.ACK).hex() == "0003e889045565a9" + "00000003" + "00000001" + "00000000"
    )
    assert protocol.option_reply(99, Rep.ERR_UNSUP, b"no")[12:].hex() == "80000001" + "00000002" + "6e6f"
    assert protocol.server_data("p1").hex() == "00000002" + "7031"
    assert (
        protocol.export_data(0x1000, protocol.ExportFlag(0x183)).hex() == "0000" + "0000000000001000" + "0183"
    )
    assert protocol.block_size_data(1, 65536, 2**25).hex() == "0003" + "00000001" + "00010000" + "02000000"
    assert protocol.simple_reply(5, 22).hex() == "67446698" + "00000016" + "0000000000000005"
    hole = protocol.chunk(5, ChunkType.OFFSET_HOLE, protocol.hole_payload(512, 4096), done=True)
    assert hole.hex() == "668e33ef 0001 0002 0000000000000005 0000000c 0000000000000200 00001000".replace(
        " ", ""
    )
    error = protocol.error_payload(Error.IO, "é", 512)
    assert error.hex() == "00000005" + "0002" + "c3a9" + "0000000000000200"
    rows = [(4096, StatusFlag(0)), (512, StatusFlag.HOLE | StatusFlag.ZERO)]
    assert (
        protocol.status_payload(1, rows).hex()
        == "00000001" + "00001000" + "00000000" + "00000200" + "00000003"
    )
    assert len(protocol.export_name_data(1, protocol.ExportFlag(3), zeroes=True)) == 134
    assert len(protocol.export_name_data(1, protocol.ExportFlag(3), zeroes=False)) == 10


def test_a_long_message_is_cut_between_characters() -> None:
    payload = protocol.error_payload(Error.IO, "é" * 5000)
    (length,) = struct.unpack_from(">H", payload, 4)
    assert length <= 4096
    assert payload[6:].decode() == "é" * (length // 2)


def test_what_a_client_asks() -> None:
    assert protocol.parse_info(info("disk", 3, 1)) == protocol.InfoRequest("disk", (3, 1))
    asked = protocol.parse_meta(meta("", "base:", "base:allocation"))
    assert asked == protocol.MetaRequest("", ("base:", "base:allocation"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        info("disk")[:-1],
        info("disk", 3) + b"\0",
        struct.pack(">I", 2**32 - 1) + b"disk\0\0",
        info("x" * 4097),
        struct.pack(">I", 2) + b"\xff\xfe" + b"\0\0",
    ],
)
def test_an_option_that_makes_no_sense(data: bytes) -> None:
    with pytest.raises(Invalid):
        protocol.parse_info(data)


def test_a_count_of_queries_promises_nothing() -> None:
    with pytest.raises(Invalid):
        protocol.parse_meta(struct.pack(">II", 0, 2**32 - 1))


@given(st.binary(max_size=200))
def test_options_of_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (protocol.parse_info, protocol.parse_meta, protocol.parse_name):
        with contextlib.suppress(Invalid):
            parse(data)
