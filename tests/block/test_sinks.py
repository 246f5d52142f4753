"""The Sink contract on files, devices and streams: what was written reads back, zeros are zeros."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.block import linux, sinks
from imagefs.block.sinks import FileSink, StreamSink
from imagefs.block.targets import open_target
from imagefs.errors import TargetError, UsageError
from imagefs.interfaces import State
from tests.block.conftest import MakeLoop
from tests.support.oracles import root_only, tool_text
from tests.support.reader_contract import check_reader

SIZE = 256 * 1024
NOISE = random.Random(4).randbytes(SIZE)

#: (offset, length, zero?) in any order and overlapping: the last one wins.
WRITES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE), st.booleans()),
    max_size=12,
)


def put(sink: sinks.DeviceSink | FileSink, model: bytearray, step: tuple[int, int, bool]) -> None:
    """One write or zeroing to both the sink and a bytearray."""
    offset, length, zero = step
    length = min(length, SIZE - offset)
    if zero:
        sink.zero_at(offset, length)
        model[offset : offset + length] = bytes(length)
    else:
        data = NOISE[: length or 0]
        sink.write_at(offset, memoryview(data))
        model[offset : offset + length] = data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(steps=WRITES, size=st.integers(0, SIZE))
def test_a_new_file_holds_what_was_written(
    tmp_path: Path, steps: list[tuple[int, int, bool]], size: int
) -> None:
    path = tmp_path / "disk.raw"
    sink = open_target(str(path), size, overwrite=True)
    assert isinstance(sink, FileSink)
    model = bytearray(SIZE)
    for step in steps:
        put(sink, model, step)
    sink.finish(size)
    sink.close()
    assert path.read_bytes() == model[:size]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(steps=WRITES, old=st.integers(1, SIZE), size=st.integers(0, SIZE), punches=st.booleans())
def test_a_file_changed_in_place_holds_what_was_written(
    tmp_path: Path, steps: list[tuple[int, int, bool]], old: int, size: int, punches: bool
) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(NOISE[:old])
    sink = open_target(str(path), size, overwrite=True, in_place=True)
    assert isinstance(sink, FileSink)
    sink._punches = punches
    model = bytearray(NOISE[:old] + bytes(SIZE - old))
    for step in steps:
        put(sink, model, step)
    sink.finish(size)
    sink.close()
    assert path.read_bytes() == model[:size]


@root_only
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("zeroes_out", [True, False])
def test_a_device_holds_what_was_written(
    tmp_path: Path, make_loop: MakeLoop, sector: int, zeroes_out: bool
) -> None:
    backing = tmp_path / "backing.raw"
    backing.write_bytes(NOISE)
    device = make_loop(backing, f"--sector-size={sector}")
    dice = random.Random(sector)
    model = bytearray(NOISE)
    sink = open_target(device, SIZE, overwrite=True)
    assert isinstance(sink, sinks.DeviceSink)
    sink._zeroes_out = zeroes_out
    for _ in range(60):
        offset = dice.randrange(SIZE)
        put(sink, model, (offset, dice.choice((1, 511, 5000, 70_000)), dice.random() < 0.5))
    sink.finish(SIZE)
    sink.close()
    sink.close()
    assert backing.read_bytes() == model


# -- holes ----------------------------------------------------------------------------------------


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_zeros_of_a_new_file_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    sink = open_target(str(path), 1 << 30, data_bytes=4096)
    sink.zero_at(0, 1 << 29)
    sink.write_at(1 << 29, b"x" * 4096)
    sink.zero_at((1 << 29) + 4096, (1 << 29) - 4096)
    sink.finish(1 << 30)
    sink.close()
    assert path.stat().st_size == 1 << 30
    assert blocks(path) < 1 << 20
    with path.open("rb") as file:
        file.seek(1 << 29)
        assert file.read(4097) == b"x" * 4096 + b"\0"


def test_zeros_over_data_are_punched_out(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    before = blocks(path)
    sink = open_target(str(path), 1 << 20, overwrite=True, in_place=True)
    sink.zero_at(4096, (1 << 20) - 8192)
    sink.finish(1 << 20)
    sink.close()
    assert path.read_bytes() == b"x" * 4096 + bytes((1 << 20) - 8192) + b"x" * 4096
    assert blocks(path) <= before - (1 << 19)


def test_where_holes_cannot_be_punched_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*args: object) -> None:
        tried.append(args)
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(linux, "punch_hole", refuse)
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 3_000_000)
    sink = open_target(str(path), 3_000_000, overwrite=True, in_place=True)
    sink.zero_at(10, 2_500_000)
    sink.zero_at(2_600_000, 10)
    sink.finish(3_000_000)
    sink.close()
    content = path.read_bytes()
    assert content[:10] == b"x" * 10
    assert not any(content[10:2_500_010])
    assert (content[2_500_010:2_600_000], any(content[2_600_000:2_600_010])) == (b"x" * 99_990, False)
    assert len(tried) == 1, "once refused, not asked again"


def test_punching_fails_with_the_errno_of_the_kernel(tmp_path: Path) -> None:
    with (tmp_path / "read-only").open("w+b") as file:
        file.write(b"x" * 8192)
        file.flush()
        linux.punch_hole(file.fileno(), 0, 4096)
    assert (tmp_path / "read-only").read_bytes() == bytes(4096) + b"x" * 4096
    with (tmp_path / "read-only").open("rb") as file, pytest.raises(OSError) as caught:
        linux.punch_hole(file.fileno(), 0, 4096)
    assert caught.value.errno == errno.EBADF


@root_only
def test_a_device_is_zeroed_by_the_kernel(
    tmp_path: Path, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unaligned ends are written, the sectors between them are zeroed out in steps."""
    asked: list[tuple[int, int]] = []
    zero_out = linux.zero_out

    def record(fd: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        zero_out(fd, offset, length)

    monkeypatch.setattr(linux, "zero_out", record)
    monkeypatch.setattr(sinks, "_ZERO_OUT_STEP", 65536)
    backing = tmp_path / "backing.raw"
    backing.write_bytes(b"\xaa" * SIZE)
    sink = open_target(make_loop(backing), SIZE, overwrite=True)
    sink.zero_at(100, 150_000)
    sink.finish(SIZE)
    sink.close()
    assert asked == [(512, 65536), (66048, 65536), (131584, 18432 // 512 * 512)]
    assert backing.read_bytes() == b"\xaa" * 100 + bytes(150_000) + b"\xaa" * (SIZE - 150_100)


@root_only
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EIO])
def test_a_device_that_cannot_zero_out_gets_zeros_but_an_io_error_is_one(
    tmp_path: Path, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(linux, "zero_out", refuse)
    backing = tmp_path / "backing.raw"
    backing.write_bytes(b"\xaa" * SIZE)
    sink = open_target(make_loop(backing), SIZE, overwrite=True)
    if code == errno.EIO:
        with pytest.raises(TargetError, match="Input/output error"):
            sink.zero_at(0, SIZE)
    else:
        sink.zero_at(0, SIZE)
        sink.finish(SIZE)
        assert backing.read_bytes() == bytes(SIZE)
    sink.close()


# -- reading back, threads, limits ----------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_can_be_read_back_before_and_after_it_is_finished(tmp_path: Path, finished: bool) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), SIZE + 5000)
    sink.write_at(0, NOISE)
    sink.zero_at(SIZE, 5000)
    if finished:
        sink.finish(SIZE + 5000)
    check_reader(sink.reader(), NOISE + bytes(5000), rounds=20)
    sink.close()


@root_only
def test_a_device_is_read_back_from_the_medium(tmp_path: Path, make_loop: MakeLoop) -> None:
    """What changes on the medium behind the cache is seen: the cache was dropped."""
    backing = tmp_path / "backing.raw"
    backing.write_bytes(bytes(SIZE))
    sink = open_target(make_loop(backing), SIZE, overwrite=True)
    sink.write_at(0, NOISE)
    sink.reader().close()
    with backing.open("r+b") as file:
        file.write(b"bad medium")
    reader = sink.reader()
    check_reader(reader, b"bad medium" + NOISE[10:], rounds=20)
    sink.close()


def test_reading_back_past_a_truncation_is_an_error_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(NOISE)
    sink = open_target(str(path), SIZE, overwrite=True, in_place=True)
    reader = sink.reader()
    os.truncate(path, 1000)
    with pytest.raises(TargetError, match="ended early"):
        reader.read_at(0, SIZE)
    reader.close()
    sink.close()


def test_many_threads_may_write(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    sink = open_target(str(path), SIZE)
    step = 4096

    def work(number: int) -> None:
        if number % 3 == 0:
            sink.write_at(number * step, b"junk" * 1024)
            sink.zero_at(number * step, step)
        else:
            sink.write_at(number * step, NOISE[number * step : (number + 1) * step])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(SIZE // step)))
    sink.finish(SIZE)
    sink.close()
    content = path.read_bytes()
    for number in range(SIZE // step):
        want = bytes(step) if number % 3 == 0 else NOISE[number * step : (number + 1) * step]
        assert content[number * step : (number + 1) * step] == want


@root_only
def test_nothing_is_written_past_the_end_of_a_device(tmp_path: Path, make_loop: MakeLoop) -> None:
    backing = tmp_path / "backing.raw"
    backing.write_bytes(bytes(8192))
    sink = open_target(make_loop(backing), None, overwrite=True)
    for act in (
        lambda: sink.write_at(8000, b"x" * 200),
        lambda: sink.zero_at(8000, 200),
        lambda: sink.finish(8193),
    ):
        with pytest.raises(TargetError, match="ends at byte 8192"):
            act()
    sink.close()
    assert backing.read_bytes() == bytes(8192)


def test_a_closed_sink_takes_nothing_and_negative_ranges_never(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), 10)
    for act in (
        lambda: sink.write_at(-1, b"x"),
        lambda: sink.zero_at(-1, 1),
        lambda: sink.zero_at(0, -1),
    ):
        with pytest.raises(ValueError):
            act()
    sink.close()
    for act in (
        lambda: sink.write_at(0, b"x"),
        lambda: sink.zero_at(0, 1),
        lambda: sink.finish(1),
        lambda: sink.reader(),
    ):
        with pytest.raises(TargetError, match="after it was closed"):
            act()


def test_an_error_at_the_end_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delayed writes fail in fsync: the file must then not get its name."""
    sink = open_target(str(tmp_path / "disk.raw"), 10)
    sink.write_at(0, b"0123456789")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(sinks.os, "fsync", fail)
    with pytest.raises(TargetError, match="Input/output error"):
        sink.finish(10)
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_of_the_kernel_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(sinks.os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:777], offset))
    sink = open_target(str(tmp_path / "disk.raw"), 20_000)
    sink.write_at(0, NOISE[:20_000])
    sink.finish(20_000)
    sink.close()
    assert (tmp_path / "disk.raw").read_bytes() == NOISE[:20_000]


# -- streams --------------------------------------------------------------------------------------


def collect(act: Callable[[StreamSink], None], *, blocking: bool = True) -> bytes:
    """What comes out of a pipe that ``act`` writes to."""
    into, out = os.pipe()
    os.set_blocking(out, blocking)
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(into, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        act(StreamSink(out))
    finally:
        os.close(out)
        thread.join()
    return got[0]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_stream_gets_data_and_zeros_in_order(blocking: bool) -> None:
    def act(sink: StreamSink) -> None:
        sink.write_at(0, NOISE)
        sink.zero_at(SIZE, 2_500_000)
        sink.write_at(SIZE + 2_500_000, memoryview(b"end"))
        sink.finish(SIZE + 2_500_003)
        sink.close()
        sink.close()

    assert collect(act, blocking=blocking) == NOISE + bytes(2_500_000) + b"end"


@pytest.mark.parametrize("offset", [0, 4, 6, 100])
def test_a_stream_cannot_go_back_or_leave_gaps(offset: int) -> None:
    def act(sink: StreamSink) -> None:
        sink.write_at(0, b"01234")
        with pytest.raises(TargetError, match="in order"):
            sink.write_at(offset, b"x")
        with pytest.raises(TargetError, match="in order"):
            sink.zero_at(offset, 1)
        with pytest.raises(TargetError, match="got 5 of 6 bytes"):
            sink.finish(6)

    assert collect(act) == b"01234"


def test_a_reader_that_went_away_is_named() -> None:
    into, out = os.pipe()
    os.close(into)
    with pytest.raises(TargetError) as caught:
        StreamSink(out).write_at(0, b"x")
    assert caught.value.data["errno"] == errno.EPIPE
    os.close(out)


def test_a_stream_cannot_be_read_back_nor_used_when_closed() -> None:
    into, out = os.pipe()
    sink = StreamSink(out)
    with pytest.raises(UsageError, match="cannot be read back"):
        sink.reader()
    with pytest.raises(ValueError):
        sink.zero_at(0, -1)
    sink.close()
    with pytest.raises(TargetError, match="after it was closed"):
        sink.write_at(0, b"x")
    os.close(into)
    os.close(out)


@root_only
def test_a_stream_into_a_full_disk_is_an_error(small_disk: Path) -> None:
    fd = os.open(small_disk / "out", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(TargetError, match="no space is left"):
        StreamSink(fd).zero_at(0, 4 << 20)
    os.close(fd)


def test_the_holes_of_a_target_are_seen_when_it_is_read_again(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), 1 << 30, data_bytes=4096)
    sink.write_at(1 << 20, b"x" * 65536)
    reader = sink.reader()
    extents = list(reader.extents(0, 1 << 30))  # type: ignore[attr-defined]
    assert extents[0].state is State.ZERO
    assert sum(extent.length for extent in extents) == 1 << 30
    reader.close()
    sink.close()
    assert tool_text("find", tmp_path, "-type", "f") == ""
