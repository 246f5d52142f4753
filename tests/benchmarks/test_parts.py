"""The parts of the benchmarks that could make a wrong figure look right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bare
from benchmarks.chunks import Cell, tables
from benchmarks.disk import REGION, build_changed, change_step, copy_disk, used_units
from benchmarks.figures import GROUPS
from benchmarks.measure import BenchError, interleave, run_timed
from benchmarks.mounts import choose_offsets
from benchmarks.report import document, markdown
from benchmarks.rows import Figure, LeftOut, Row
from benchmarks.run import main
from fixtures.content import write_sample
from fixtures.sparse import make_sparse
from tests.support.oracles import need_tool

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """20 MiB in which the first, the sixth and the last MiB hold noise, but for a hole in each."""
    path = tmp_path / "disk.raw"
    make_sparse(path, 20 * MIB)
    noise = write_sample(tmp_path / "noise", size=MIB, seed="noise").read_bytes()
    with path.open("r+b") as stream:
        for place in (0, 5, 19):
            stream.seek(place * MIB)
            stream.write(noise[: MIB // 2] + bytes(4096) + noise[MIB // 2 + 4096 :])
    return path


@given(data=st.data())
def test_used_units_are_those_that_hold_something(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("units") / "disk"
    pages = data.draw(st.integers(1, 3000))
    used = data.draw(st.sets(st.integers(0, pages - 1), max_size=20))
    unit = data.draw(st.sampled_from([4096, 65536]))
    make_sparse(path, pages * 4096)
    with path.open("r+b") as stream:
        for page in used:
            stream.seek(page * 4096 + 77)
            stream.write(b"x")
    expected = sorted({page * 4096 // unit * unit for page in used})
    assert used_units(path, unit).tolist() == expected


def test_used_units_of_a_part(disk: Path) -> None:
    found = used_units(disk, 65536, start=4 * MIB, stop=8 * MIB)
    assert found.tolist() == list(range(5 * MIB, 6 * MIB, 65536))


def test_changed_disk_differs_in_the_share_that_was_asked_for(disk: Path) -> None:
    changed = build_changed(disk, share=0.25)
    assert changed.stat().st_size == disk.stat().st_size
    assert changed.stat().st_blocks <= disk.stat().st_blocks + 64
    used = used_units(disk, REGION)
    different = _different(disk, changed, REGION)
    assert different < set(used.tolist())
    assert len(different) == round(len(used) * 0.25)


def test_change_steps_differ_and_repeat(disk: Path) -> None:
    blocks = used_units(disk, 65536)
    copies = [disk.with_suffix(f".{number}") for number in range(3)]
    for copy in copies:
        copy_disk(disk, copy)
    change_step(copies[0], blocks, 1, count=4)
    change_step(copies[1], blocks, 1, count=4)
    change_step(copies[2], blocks, 2, count=4)
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert _different(copies[0], copies[2], 65536)
    assert 0 < len(_different(disk, copies[0], 65536)) <= 4


def test_bare_loops_touch_every_chunk_once(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = used_units(disk, 65536).tolist()
    data = disk.read_bytes()
    hashed: list[bytes] = []

    def spy(plain: bytes) -> blake3:
        hashed.append(plain)
        return blake3(plain)

    monkeypatch.setattr(bare, "blake3", spy)
    expected = sorted(data[at : at + 65536] for at in offsets)
    bare.read_hash_time(disk, offsets, chunk=65536)
    assert sorted(hashed) == expected
    hashed.clear()
    bare.decode_hash_time(disk, offsets, chunk=65536, level=1)
    assert sorted(hashed) == expected


def test_run_timed_tells_memory_of_the_command_alone(tmp_path: Path) -> None:
    need_tool("time")
    ballast = np.ones(40 * MIB, np.uint8)
    run = run_timed(["sh", "-c", f"echo out; echo hello > {tmp_path}/made"], sync=[tmp_path])
    assert run.output == "out\n"
    assert run.peak < 20 * MIB < ballast.nbytes
    big = run_timed(["python3", "-c", f"x = bytearray({100 * MIB})"])
    assert big.peak > 100 * MIB


def test_run_timed_says_what_failed() -> None:
    need_tool("time")
    with pytest.raises(BenchError, match=r"code 3: oops"):
        run_timed(["sh", "-c", "echo oops >&2; exit 3"])
    with pytest.raises(BenchError, match="failed with code -9"):
        run_timed(["sleep", "30"], timeout=0.2)


def test_interleave_takes_turns() -> None:
    order: list[str] = []

    def note(name: str) -> float:
        order.append(name)
        return len(order)

    values = interleave(3, a=lambda: note("a"), b=lambda: note("b"))
    assert order == ["a", "b"] * 3
    assert values == {"a": [1, 3, 5], "b": [2, 4, 6]}


def figure(ours: float, theirs: float, wanted: float, *, at_least: bool = False) -> Figure:
    return Figure("g", "a | b", "peer", "s", (9 * ours, ours, 0), (theirs,) * 3, wanted, at_least)


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (figure(5, 10, 0.5), True),
        (figure(5.1, 10, 0.5), False),
        (figure(12, 10, 1.2, at_least=True), True),
        (figure(11.9, 10, 1.2, at_least=True), False),
    ],
)
def test_a_figure_is_the_ratio_of_medians(row: Figure, reached: bool) -> None:
    assert row.ratio == pytest.approx(row.ours[1] / 10)
    assert row.reached is reached


def test_report_says_yes_no_and_left_out() -> None:
    rows: list[Row] = [figure(5, 10, 0.5), figure(9, 10, 0.5), LeftOut("g", "third", "no fuse | here")]
    text = markdown(rows, {"machine": "m"})
    body = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(body) == 3
    assert all(line.replace("\\|", "").count("|") == 8 for line in body)
    assert body[0].endswith("| 0.50 | ≤ 0.5 | yes |")
    assert body[1].endswith("| **no** |")
    assert "left out: no fuse" in body[2]
    assert "1 of 3 rows reached" in text
    said = json.loads(json.dumps(document(rows, {})))
    assert [row["reached"] for row in said["figures"]] == [True, False]
    assert said["left_out"][0]["reason"] == "no fuse | here"


def test_chunk_tables_have_a_cell_for_each_choice() -> None:
    cells = [Cell(chunk, level, chunk + level, 1.5, 250) for chunk in (64, 32) for level in (1, 2)]
    size = tables(cells).split("\n\n")[0].splitlines()
    assert size[0] == "| Image size, MB | level 1 | level 2 |"
    assert size[2:] == ["| 32 KiB | 33 | 34 |", "| 64 KiB | 65 | 66 |"]


def test_offsets_are_different_and_the_same_for_everybody() -> None:
    pages = list(range(0, 4096 * 1000, 4096))
    chosen = choose_offsets(pages, 300, seed=1)
    assert len(set(chosen)) == 300
    assert chosen == choose_offsets(pages, 300, seed=1) != choose_offsets(pages, 300, seed=2)
    assert sorted(choose_offsets(pages, 5000, seed=1)) == pages


def test_missing_peers_are_named_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.peers.tool_path", lambda name: None if name == "borg" else "/bin/true")
    assert main(["--cache", str(tmp_path / "cache"), "--quick"]) == 1
    assert "apt-get install borgbackup" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_every_group_of_the_issue_is_there() -> None:
    capture = ["capture", "incremental", "used", "again", "forensic"]
    reads = ["read", "chain", "trees", "tar", "get", "past", "scale"]
    assert list(GROUPS) == [*capture, "verify", "restore", *reads, "memory"]


def _different(one: Path, other: Path, unit: int) -> set[int]:
    left, right = one.read_bytes(), other.read_bytes()
    return {at for at in range(0, len(left), unit) if left[at : at + unit] != right[at : at + unit]}
