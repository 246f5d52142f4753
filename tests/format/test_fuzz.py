"""Decoders against anything: only an ImagefsError may come out; and values come back as they went in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import FormatError, ImagefsError
from imagefs.format.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from imagefs.format.codec import compress, decode_frame_header, decompress, digest_of, make_frame
from imagefs.format.extents import ViewHasher, decode_runs, encode_runs, make_runs
from imagefs.format.fields import decode_facts, encode_facts
from imagefs.format.header import Header, Kind, Mode, decode_header, encode_header, header_length
from imagefs.format.index import DirectoryEntry, decode_block, decode_directory, encode_block, make_rows
from imagefs.format.trailer import (
    SUMMARY,
    Section,
    Summary,
    decode_footer,
    decode_stands_for,
    decode_summary,
    decode_table,
    encode_summary,
    encode_table,
)
from imagefs.interfaces import State
from tests.format.vectors import plain, vectors

DECODERS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    "header": ("header-full", decode_header),
    "header_length": ("header-full", header_length),
    "frame": ("frame-zstd", decode_frame_header),
    "block": ("index", lambda data: decode_block(data, DirectoryEntry(3, 0, len(data), 3, digest_of(data)))),
    "directory": ("directory", lambda data: decode_directory(data, 2**20)),
    "extents": ("extents", lambda data: decode_runs(data, limit=2**50)),
    "summary": ("summary", decode_summary),
    "stands-for": ("stands-for", decode_stands_for),
    "table": ("table", lambda data: decode_table(data, 2**20)),
    "footer": ("footer", lambda data: decode_footer(data, 1441)),
    "checkpoint": ("checkpoint", lambda data: decode_checkpoint(data, offset=2**20)),
    "facts": ("header-full", decode_facts),
    "zstd": ("frame-zstd", lambda data: decompress(1, data, 16384)),
}


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=400))
@settings(max_examples=50)
def test_anything(name: str, data: bytes) -> None:
    with contextlib.suppress(ImagefsError):
        DECODERS[name][1](data)


@pytest.mark.parametrize("name", DECODERS)
@given(
    edits=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=9)), max_size=3),
    cut=st.integers(0, 60),
    more=st.binary(max_size=60),
)
@settings(max_examples=50)
def test_vectors_with_a_few_bytes_changed(
    name: str, edits: list[tuple[int, bytes]], cut: int, more: bytes
) -> None:
    vector, decode = DECODERS[name]
    data = bytearray(vectors()[vector])
    for at, piece in edits:
        data[at : at + len(piece)] = piece
    with contextlib.suppress(ImagefsError):
        decode(bytes(data[: max(0, len(data) - cut)]) + more)


RUNS = st.lists(
    st.tuples(st.integers(1, 2**40), st.integers(0, 2**40), st.sampled_from([2, 3, 4])), max_size=20
)


def spaced(steps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Sorted, disjoint runs from (count, gap, state)."""
    at, rows = 0, []
    for count, gap, state in steps:
        rows.append((at + gap, count, state))
        at += gap + count
    return rows


@given(RUNS)
def test_runs_come_back(steps: list[tuple[int, int, int]]) -> None:
    runs = make_runs(spaced(steps))
    assert plain(decode_runs(encode_runs(runs), limit=2**62)) == plain(runs)


@given(
    st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2, st.integers(0, 255)), max_size=8),
    st.integers(0, 2**63 - 1),
)
def test_runs_that_are_let_through_hold(rows: list[tuple[int, int, int]], limit: int) -> None:
    """Whatever numbers, wrapping ones too: what is accepted is sorted, disjoint and inside."""
    data = b"".join(
        (
            np.array([row[0] for row in rows], "<u8").tobytes(),
            np.array([row[1] for row in rows], "<u8").tobytes(),
            bytes(row[2] for row in rows),
        )
    )
    try:
        runs = decode_runs(data, limit=limit)
    except FormatError:
        return
    end = 0
    for first, count, state in zip(
        runs.first.tolist(), runs.count.tolist(), runs.state.tolist(), strict=True
    ):
        assert first >= end
        assert count > 0
        assert state in (2, 3, 4)
        end = first + count
    assert end <= limit


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FACTS = st.dictionaries(st.text(max_size=10), JSON, max_size=5)
U64 = st.integers(0, 2**64 - 1)
B32 = st.binary(min_size=32, max_size=32)
SOME_UUID = st.integers(1, 2**128 - 1).map(lambda n: UUID(int=n))


@given(FACTS)
@settings(max_examples=50)
def test_facts_come_back(facts: dict[str, Any]) -> None:
    assert decode_facts(encode_facts(facts)) == facts


@given(
    image=SOME_UUID,
    parent=st.none() | SOME_UUID,
    created=U64,
    chunk=st.integers(14, 22),
    sector=st.integers(9, 16),
    mode=st.sampled_from(Mode),
    level=st.integers(0, 255),
    compatible=U64,
    seals=st.tuples(B32, B32),
    facts=FACTS,
)
@settings(max_examples=40)
def test_headers_come_back(
    image: UUID,
    parent: UUID | None,
    created: int,
    chunk: int,
    sector: int,
    mode: Mode,
    level: int,
    compatible: int,
    seals: tuple[bytes, bytes],
    facts: dict[str, Any],
) -> None:
    kind = Kind.FULL if parent is None else Kind.DIFFERENTIAL
    header = Header(
        image, image, kind, created, 1 << chunk, 1 << sector, parent, *seals,
        mode=mode, level=level, compatible=compatible, facts=facts,
    )  # fmt: skip
    data = encode_header(header)
    assert len(data) % 8 == 0
    assert decode_header(data) == header
    assert header_length(data[:32]) == len(data)


@given(size=st.integers(0, 2**63 - 1), numbers=st.lists(U64, min_size=9, max_size=9), view=B32, facts=FACTS)
@settings(max_examples=40)
def test_summaries_come_back(size: int, numbers: list[int], view: bytes, facts: dict[str, Any]) -> None:
    summary = Summary(size, *numbers[:2], view, *numbers[2:], consistency=numbers[0] % 256, facts=facts)
    data = encode_summary(summary)
    assert decode_summary(data) == summary
    assert len(data) == SUMMARY.size + len(encode_facts(facts))


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), B32), max_size=20))
def test_section_tables_come_back(rows: list[tuple[int, int, bytes]]) -> None:
    sections = [
        Section(b"X%03d" % i, offset, length, digest, 0) for i, (offset, length, digest) in enumerate(rows)
    ]
    assert decode_table(encode_table(sections), 2**41) == sections
    if sections:
        with pytest.raises(FormatError, match="twice"):
            decode_table(encode_table([*sections, sections[0]]), 2**41)


@given(
    st.lists(st.integers(0, 2**48), min_size=1, max_size=50, unique=True), st.randoms(use_true_random=False)
)
def test_blocks_come_back(numbers: list[int], dice: Any) -> None:
    numbers.sort()
    n = len(numbers)
    rows = make_rows(
        numbers,
        [dice.getrandbits(63) for _ in numbers],
        [dice.getrandbits(32) for _ in numbers],
        bytes(dice.getrandbits(1) for _ in numbers),
        dice.randbytes(32 * n),
    )
    data = encode_block(rows)
    entry = DirectoryEntry(numbers[0], 0, len(data), n, digest_of(data))
    assert plain(decode_block(data, entry)) == plain(rows)
    point = Checkpoint(1, 0, 2**40, (), rows, make_runs([]), make_runs([]))
    assert plain(decode_checkpoint(encode_checkpoint(point), offset=0)) == plain(point)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 19), st.integers(0, 2**63))
@settings(max_examples=100)
def test_a_chunk_comes_back(data: bytes, level: int, number: int) -> None:
    codec, stored = compress(data, level)
    assert len(stored) <= len(data)
    assert decompress(codec, stored, len(data)) == data
    with pytest.raises(ImagefsError):
        decompress(codec, stored, len(data) + 1)
    codec, frame = make_frame(number, data, digest_of(data), level)
    header = decode_frame_header(frame)
    assert (header.chunk_no, header.codec, header.plain_length) == (number, codec, len(data))
    assert header.digest == digest_of(data)
    assert header.stored_length == len(frame) - 64


@given(
    states=st.lists(
        st.sampled_from([State.STORED, State.ZERO, State.SKIPPED, State.UNREADABLE]), max_size=40
    ),
    cuts=st.sets(st.integers(0, 40)),
)
def test_the_view_digest_does_not_depend_on_how_it_is_fed(states: list[State], cuts: set[int]) -> None:
    digests = [digest_of(bytes([i])) for i in range(len(states))]
    one, other = ViewHasher(65536), ViewHasher(65536)
    for i, state in enumerate(states):
        one.add(state, i, 1, digests[i] if state is State.STORED else b"")
    first = 0
    for i in range(1, len(states) + 1):
        if i == len(states) or states[i] is not states[first] or i in cuts:
            stored = states[first] is State.STORED
            other.add(states[first], first, i - first, b"".join(digests[first:i]) if stored else b"")
            first = i
    assert one.digest(123) == other.digest(123)


def test_long_stored_runs_stream_through_the_view_digest() -> None:
    """More digests than are collected at once, fed one by one and all together."""
    digests = [digest_of(i.to_bytes(2, "big")) for i in range(5000)]
    one, other = ViewHasher(16384), ViewHasher(16384)
    for i, digest in enumerate(digests):
        one.add(State.STORED, i, 1, digest)
    other.add(State.STORED, 0, 5000, b"".join(digests))
    assert one.digest(5000 * 16384) == other.digest(5000 * 16384)
