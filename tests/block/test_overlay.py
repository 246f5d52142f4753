"""The overlay: held against a bytearray, killed at every write, refused where it does not belong."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagefs.block import linux, overlay, overlayfile
from imagefs.block.overlay import Overlay, open_overlay
from imagefs.block.overlayfile import (
    PAGE_BLOCKS,
    SLOT,
    OverlayHeader,
    block_size_for,
    decode_header,
    decode_slot,
    encode_header,
    encode_slot,
)
from imagefs.block.views import BytesReader, WritableSlice, extents_of
from imagefs.errors import ChainError, FormatError, ImagefsError, IntegrityError, SourceError, TargetError
from imagefs.interfaces import State, Writable
from tests.mounter.fakes import SparseReader
from tests.support.faults import PowerCut
from tests.support.reader_contract import check_reader

VIEW, IMAGE = b"v" * 32, bytes(range(16))
BLOCK = 4096
SIZE = 21 * BLOCK + 1234  # the last block is short
DATA = {2 * BLOCK + 100: random.Random(3).randbytes(7 * BLOCK), 15 * BLOCK: random.Random(4).randbytes(5000)}


def base() -> SparseReader:
    return SparseReader(SIZE, DATA)


def opened(path: Path, reader: Any = None, *, view: bytes = VIEW) -> Overlay:
    return open_overlay(reader or base(), str(path), view=view, image=IMAGE)


def content(disk: Overlay) -> bytes:
    return disk.read_at(0, disk.size)


# -- as a Reader ----------------------------------------------------------------------------------


def test_an_overlay_is_a_reader_and_writable(tmp_path: Path) -> None:
    disk = opened(tmp_path / "o")
    assert isinstance(disk, Writable)
    expected = bytearray(base().read_at(0, SIZE))
    for offset, length in ((0, 1), (5000, 9000), (15 * BLOCK, 4096), (SIZE - 7, 7)):
        piece = random.Random(offset).randbytes(length)
        disk.write_at(offset, piece)
        expected[offset : offset + length] = piece
    disk.zero_at(2 * BLOCK, 3 * BLOCK)
    expected[2 * BLOCK : 5 * BLOCK] = bytes(3 * BLOCK)
    check_reader(disk, bytes(expected))


def test_a_range_across_many_pages_of_the_map(tmp_path: Path) -> None:
    """256 MiB of zeros: three pages."""
    size = 2 * PAGE_BLOCKS * BLOCK + (1 << 20)
    disk = opened(tmp_path / "o", _Zeros(size))
    border = PAGE_BLOCKS * BLOCK
    disk.write_at(border - 10_000, b"x" * 20_000)
    disk.write_at(2 * border - 1, b"yz")
    disk.close()
    disk = opened(tmp_path / "o", _Zeros(size))
    assert disk.read_at(border - 10_001, 20_002) == b"\0" + b"x" * 20_000 + b"\0"
    assert disk.read_at(2 * border - 2, 4) == b"\0yz\0"
    stored = [(e.offset, e.length) for e in disk.extents(0, size) if e.state is State.STORED]
    assert stored == [(border - 3 * BLOCK, 6 * BLOCK), (2 * border - BLOCK, 2 * BLOCK)]
    disk.close()


class _Zeros:
    """Any number of zeros that says it may hold data."""

    def __init__(self, size: int, state: State = State.ZERO) -> None:
        self.size, self.state = size, state

    def read_at(self, offset: int, length: int, /) -> bytes:
        return bytes(max(0, min(length, self.size - offset)))

    def extents(self, offset: int, length: int, /) -> Any:
        from imagefs.interfaces import Extent

        count = max(0, min(length, self.size - offset))
        if count:
            yield Extent(self.state, offset, count)

    def close(self) -> None:
        pass


def test_zeroing_a_disk_of_8_tib_costs_little(tmp_path: Path) -> None:
    size = 8 << 40
    for state, limit in ((State.ZERO, 1 << 20), (State.STORED, 300 << 20)):
        disk = opened(tmp_path / state.name, _Zeros(size, state))
        disk.zero_at(0, size)
        disk.sync()
        assert disk.read_at(size - 5, 9) == bytes(5)
        assert [(e.state, e.length) for e in disk.extents(0, size)] == [(State.ZERO, size)]
        assert os.stat(tmp_path / state.name).st_blocks * 512 < limit
        disk.close()
    with pytest.raises(TargetError, match="too large"):
        block_size_for(1 << 50)


def test_zeroing_gives_the_space_back(tmp_path: Path) -> None:
    disk = opened(tmp_path / "o", BytesReader(b"d" * (8 << 20)))
    disk.write_at(0, random.Random(1).randbytes(8 << 20))
    disk.sync()
    full = os.stat(tmp_path / "o").st_blocks
    disk.zero_at(1000, (8 << 20) - 2000)
    disk.sync()
    assert os.stat(tmp_path / "o").st_blocks < full // 10
    assert disk.read_at(1000, 7 << 20) == bytes(7 << 20)
    disk.close()


def test_where_holes_cannot_be_punched_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(linux, "punch_hole", unsupported)
    disk = opened(tmp_path / "o")
    disk.write_at(3 * BLOCK, b"\xff" * BLOCK)
    disk.zero_at(0, SIZE)
    disk.close()
    disk = opened(tmp_path / "o")
    assert content(disk) == bytes(SIZE)
    disk.close()


def test_what_is_past_the_end_is_refused(tmp_path: Path) -> None:
    disk = opened(tmp_path / "o")
    part = WritableSlice(disk, BLOCK, BLOCK)
    for target, size in ((disk, SIZE), (part, BLOCK)):
        for call in (lambda at, t=target: t.write_at(at, b"12"), lambda at, t=target: t.zero_at(at, 2)):
            with pytest.raises(TargetError) as caught:
                call(size - 1)
            assert caught.value.data["errno"] == errno.ENOSPC
            with pytest.raises(ValueError):
                call(-1)
    part.write_at(0, b"in")
    assert disk.read_at(BLOCK, 2) == b"in" == part.read_at(0, 2)
    part.close()
    with pytest.raises(TargetError):
        part.write_at(0, b"closed")
    disk.close()
    with pytest.raises(TargetError):
        disk.write_at(0, b"closed")


def test_what_cannot_be_read_below_cannot_be_filled_up(tmp_path: Path) -> None:
    """A write of a part of a block needs the rest; whole blocks need nothing."""

    class Bad(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            if length and offset < 2 * BLOCK and offset + length > BLOCK:
                raise SourceError("a bad place")
            return super().read_at(offset, length)

    disk = opened(tmp_path / "o", Bad(bytes(4 * BLOCK)))
    with pytest.raises(SourceError):
        disk.write_at(BLOCK + 512, b"x" * 512)
    disk.write_at(BLOCK, b"y" * BLOCK)
    disk.write_at(BLOCK + 512, b"x" * 512)
    assert disk.read_at(0, 4 * BLOCK)[BLOCK + 511 : BLOCK + 513] == b"yx"
    disk.close()


# -- whose file it is -----------------------------------------------------------------------------


def test_it_is_kept_resumed_and_belongs_to_one_disk(tmp_path: Path) -> None:
    path = tmp_path / "o"
    first = opened(path)
    first.write_at(7, b"kept")
    with pytest.raises(TargetError, match="in use by another mount"):
        opened(path)
    first.close()
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()[:SLOT]
    with pytest.raises(ChainError) as caught:
        opened(path, view=b"w" * 32)
    assert IMAGE.hex() in caught.value.message
    with pytest.raises(ChainError):
        opened(path, BytesReader(bytes(SIZE + 1)))
    again = opened(path)
    assert again.read_at(6, 6) == b"\0kept\0"
    again.close()
    assert path.read_bytes()[:SLOT] == before


@pytest.mark.parametrize("data", [b"x", b"\x89imgfs\r\n" + bytes(5000), bytes(10_000), b"QFI\xfb" * 5000])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "o"
    path.write_bytes(data)
    with pytest.raises(TargetError, match="not an overlay"):
        opened(path)
    assert path.read_bytes() == data


def test_what_can_be_no_overlay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name, words in (("fifo", "not an overlay"), (".", "Is a directory"), ("no/where", "No such")):
        with pytest.raises(TargetError, match=words):
            opened(tmp_path / name)
    opened(tmp_path / "empty").close()  # nothing to lose there
    assert (tmp_path / "empty").stat().st_size > SIZE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "fifo"]


def test_an_unused_new_file_can_be_taken_back(tmp_path: Path) -> None:
    disk = opened(tmp_path / "o")
    disk.take_back()
    assert not (tmp_path / "o").exists()
    disk = opened(tmp_path / "o")
    disk.write_at(0, b"x")
    disk.take_back()
    assert (tmp_path / "o").exists()


def test_every_byte_of_the_header_counts(tmp_path: Path) -> None:
    data = encode_header(OverlayHeader(SIZE, VIEW, IMAGE, 5, BLOCK))
    for at in range(SLOT):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ImagefsError):
            decode_header(damaged, "o")
    for changes in (
        {"block_size": 1024},
        {"block_size": 5000},
        {"block_size": 2 << 20},
        {"disk_size": 1 << 63},
    ):
        fields: dict[str, Any] = {"disk_size": SIZE, "block_size": BLOCK, **changes}
        with pytest.raises(FormatError):
            decode_header(encode_header(OverlayHeader(view=VIEW, image=IMAGE, made_ns=5, **fields)), "o")


def test_damage_of_the_map_is_told_and_a_cut_file_too(tmp_path: Path) -> None:
    path = tmp_path / "o"
    disk = opened(path)
    for value in (b"1", b"2", b"3"):
        disk.write_at(int(value) * BLOCK, value)
        disk.sync()
    disk.close()
    whole = path.read_bytes()
    for slots in ((0,), (1,), (0, 1)):
        damaged = bytearray(whole)
        for slot in slots:
            damaged[SLOT + slot * SLOT + 40] ^= 1
        path.write_bytes(damaged)
        if len(slots) == 2:
            with pytest.raises(IntegrityError, match="both copies"):
                opened(path)
            continue
        disk = opened(path)
        assert disk.read_at(2 * BLOCK, 1) == b"2"
        disk.close()
    path.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match="cut"):
        opened(path)


def test_the_bytes_of_the_document() -> None:
    """The two vectors in the docstring of overlayfile.py, decoded and encoded again."""
    told = re.findall(r"^ +(\d+) +((?:[0-9a-f]{2} ?)+)$", str(overlayfile.__doc__), re.MULTILINE)
    header, slot = bytearray(), bytearray()
    for offset, digits in told:
        vector = slot if header[SLOT - 4 :] else header
        vector.extend(bytes(int(offset) - len(vector)) + bytes.fromhex(digits))
    found = decode_header(bytes(header), "o")
    assert found == OverlayHeader(8 << 40, b"\xab" * 32, bytes(range(16)), 1_700_000_000_000_000_000, 16384)
    assert encode_header(found) == header
    slot.extend(bytes(SLOT - len(slot)))
    assert decode_slot(bytes(slot), 3) == (5, 0b10_0000_0011)
    assert encode_slot(3, 5, 0b10_0000_0011) == slot
    for odd in (encode_slot(4, 5, 1), encode_slot(3, 1 << 63, 1), b"OMAQ" + slot[4:]):
        assert decode_slot(odd, 3) is None
    assert found.slot_offset(3, 5) == SLOT + 6 * SLOT
    assert (found.blocks, found.pages) == (1 << 29, -(-(1 << 29) // PAGE_BLOCKS))


# -- full disks and disks that fail ---------------------------------------------------------------


class Machine:
    """The ``os`` and ``linux`` of overlay.py, on a machine whose power can be cut.

    ``fuse(n)``: the n-th write, punch or sync from now fails with ``error``, or kills everything where that
    is None. ``power_cut`` makes of the file what a disk may hold then: each change since the last sync
    was written, or not, or in part.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left, self.error, self.dead = 0, 0, False
        self.durable: dict[int, bytes] = {}
        self.log: list[tuple[int, bytes]] = []
        self.calls = 0

    def __enter__(self) -> Machine:
        overlay.os, overlay.linux = self, self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        overlay.os, overlay.linux = os, linux  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(linux, name) if hasattr(linux, name) else getattr(os, name)

    def fuse(self, left: int, error: int = 0) -> None:
        self.left, self.error = left, error

    def _count(self) -> None:
        if self.dead:
            raise PowerCut
        self.calls += 1
        self.left -= 1
        if self.left == 0:
            self.dead = not self.error
            raise OSError(self.error, os.strerror(self.error)) if self.error else PowerCut

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self._count()
        self.log.append((offset, bytes(data)))
        return os.pwrite(fd, data, offset)

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        self._count()
        self.log.append((offset, bytes(length)))
        linux.punch_hole(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        self._count()
        self.remember()

    def remember(self) -> None:
        self.durable = {0: self.path.read_bytes()}
        self.log.clear()

    def reborn(self) -> None:
        self.dead, self.left = False, 0

    def power_cut(self, dice: random.Random) -> None:
        disk = bytearray(self.durable[0])
        for offset, data in self.log:
            data = data[: dice.choice((0, len(data), dice.randrange(len(data) // 512 + 1) * 512))]
            disk[offset : offset + len(data)] = data
        self.path.write_bytes(disk)
        self.remember()


def one_of(found: bytes, states: list[bytes]) -> bool:
    """Whether each byte is what one of the states has there."""
    rows = numpy.array([numpy.frombuffer(state, numpy.uint8) for state in (found, *states)])
    return bool((rows[1:] == rows[0]).any(axis=0).all())


class OverlayMachine(RuleBasedStateMachine):
    """Writes, zeros, syncs, clean ends, kills and power cuts against a bytearray.

    ``past`` holds every content since the last sync: after a power cut each byte is one of these.
    """

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "o"
        self.machine = Machine(self.path)
        self.machine.__enter__()
        self.dice = random.Random(seed)
        self.now = bytearray(base().read_at(0, SIZE))
        self.past = [bytes(self.now)]
        self.disk = opened(self.path)
        self.machine.remember()

    def teardown(self) -> None:
        self.machine.reborn()
        self.machine.__exit__()
        if self.disk is not None:
            self.disk.close()
        self.folder.cleanup()

    ranges = st.tuples(st.integers(0, SIZE - 1), st.sampled_from((1, 512, 4000, BLOCK, 5 * BLOCK, SIZE)))

    def _change(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        self.past.append(bytes(self.now))

    @rule(place=ranges)
    def write(self, place: tuple[int, int]) -> None:
        data = self.dice.randbytes(min(place[1], SIZE - place[0]))
        self._change(place[0], data)
        self.disk.write_at(place[0], data)

    @rule(place=ranges)
    def zero(self, place: tuple[int, int]) -> None:
        length = min(place[1], SIZE - place[0])
        self._change(place[0], bytes(length))
        self.disk.zero_at(place[0], length)

    @rule()
    def sync(self) -> None:
        self.disk.sync()
        self.past = [bytes(self.now)]

    @rule()
    def end_and_resume(self) -> None:
        self.disk.close()
        self.disk = opened(self.path)
        self.past = [bytes(self.now)]

    @rule(at=st.integers(1, 8), place=ranges, what=st.sampled_from(("write", "zero", "sync")))
    def fill_the_disk(self, at: int, place: tuple[int, int], what: str) -> None:
        self.machine.fuse(at, errno.ENOSPC)
        length = min(place[1], SIZE - place[0])
        data = bytes(length) if what == "zero" else self.dice.randbytes(length)
        try:
            if what == "sync":
                self.machine.fuse(at + 1, errno.ENOSPC)  # not the sync of the data: that poisons it
                self.disk.sync()
            else:
                self.past.append(bytes(self.now[: place[0]]) + data + bytes(self.now[place[0] + length :]))
                (
                    self.disk.zero_at(place[0], length)
                    if what == "zero"
                    else self.disk.write_at(place[0], data)
                )
        except TargetError as error:
            full = error.data["errno"] == errno.ENOSPC
            assert full
        self.machine.fuse(0)
        if self.disk._failed is not None:
            self.disk.close()
            self.disk = opened(self.path)
        found = content(self.disk)
        assert one_of(found, self.past)
        self.now = bytearray(found)

    @rule(
        at=st.integers(0, 6),
        place=ranges,
        what=st.sampled_from(("write", "zero", "sync")),
        power=st.booleans(),
    )
    def die(self, at: int, place: tuple[int, int], what: str, power: bool) -> None:
        """At the at-th call of an operation, or between two (0)."""
        self.machine.fuse(at)
        length = min(place[1], SIZE - place[0])
        try:
            if at and what == "sync":
                self.disk.sync()
            elif at:
                data = bytes(length) if what == "zero" else self.dice.randbytes(length)
                self.past.append(bytes(self.now[: place[0]]) + data + bytes(self.now[place[0] + length :]))
                (
                    self.disk.zero_at(place[0], length)
                    if what == "zero"
                    else self.disk.write_at(place[0], data)
                )
        except PowerCut:
            pass
        os.close(self.disk._fd)
        self.disk._fd = -1
        self.machine.reborn()
        if power:
            self.machine.power_cut(self.dice)
        self.disk = opened(self.path)
        found = content(self.disk)
        assert one_of(found, self.past)
        self.now = bytearray(found)
        self.past = [found] if power else [*self.past, found]

    @invariant()
    def holds_what_was_written(self) -> None:
        if getattr(self, "disk", None) is None:
            return
        assert content(self.disk) == self.now
        position = 0
        for extent in extents_of(self.disk, 0, SIZE):
            assert extent.offset == position
            position += extent.length
            if extent.state is not State.STORED:
                assert not any(self.now[extent.offset : position])
        assert position == SIZE


TestOverlayMachine = OverlayMachine.TestCase
TestOverlayMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def script(disk: Overlay, done: Callable[[int], None]) -> None:
    """Each step changes the whole disk to bytes of its own number; every second one is synced."""
    for step in range(1, 7):
        for at in range(0, SIZE, 5 * BLOCK):
            disk.write_at(at, bytes([step]) * min(5 * BLOCK, SIZE - at))
        if step == 4:
            disk.zero_at(BLOCK, 9 * BLOCK)
        if step % 2 == 0:
            disk.sync()
            done(step)


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_dying_at_the_nth_write(tmp_path: Path, seed: int | None) -> None:
    """Killed (None) or with the power cut, at N = 1, 2, 3 …: what was synced is there, nothing else is."""
    for count in range(1, 1000):
        path = tmp_path / f"o{count}"
        synced = [0]
        with Machine(path) as machine:
            disk = opened(path)
            machine.remember()
            machine.fuse(count)
            with contextlib.suppress(PowerCut):
                script(disk, synced.append)
            survived = not machine.dead
            os.close(disk._fd)
            machine.reborn()
            if seed is not None:
                machine.power_cut(random.Random(seed * 1000 + count))
            disk = opened(path)
            found, last = content(disk), synced[-1]
            disk.close()
        before = base().read_at(0, SIZE) if last == 0 else state_after(last)
        states = [before, *(bytes([step]) * SIZE for step in range(last + 1, min(last + 3, 7)))]
        assert one_of(found, [*states, bytes(SIZE)] if last < 4 else states), count
        path.unlink()
        if survived:
            assert found == state_after(6)
            return
    raise AssertionError("the script never ended")


def state_after(step: int) -> bytes:
    whole = bytearray(bytes([step]) * SIZE)
    if step == 4:
        whole[BLOCK : 10 * BLOCK] = bytes(9 * BLOCK)
    return bytes(whole)


def test_a_sync_that_failed_is_the_end_of_writing(tmp_path: Path) -> None:
    with Machine(tmp_path / "o") as machine:
        disk = opened(tmp_path / "o")
        disk.write_at(0, b"first")
        disk.sync()
        disk.write_at(0, b"later")
        machine.fuse(1, errno.EIO)
        with pytest.raises(TargetError):
            disk.sync()
        for call in (disk.sync, lambda: disk.write_at(0, b"x"), lambda: disk.zero_at(0, 1)):
            with pytest.raises(TargetError, match="no more writes"):
                call()
        assert disk.read_at(0, 5) == b"later"
        disk.close()


def test_much_written_is_synced_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_SYNC_BYTES", 8 * BLOCK)
    disk = opened(tmp_path / "o")
    disk.write_at(0, b"x" * 10 * BLOCK)
    os.close(disk._fd)  # as a kill does
    disk = opened(tmp_path / "o")
    assert disk.read_at(0, 10 * BLOCK) == b"x" * 10 * BLOCK
    disk.close()
