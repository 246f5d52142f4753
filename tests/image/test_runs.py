"""Tables of runs against a model that knows one layer and one row for every chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.errors import FormatError
from imagefs.format.extents import make_runs
from imagefs.image.runs import RunFinder, RunTable, child_table, covers, crop, full_table, overlay_all
from imagefs.interfaces import State

CHUNKS = 60
Said = tuple[int, int, int]  # state, layer, row
LAYER = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4]), min_size=CHUNKS, max_size=CHUNKS)


def table_of(states: list[int], layer: int) -> tuple[RunTable, dict[int, Said]]:
    """A child's table and what it says of each chunk."""
    extents = [(i, 1, state) for i, state in enumerate(states) if state > 1]
    stored = [i for i, state in enumerate(states) if state == State.STORED]
    rows = {chunk_no: row for row, chunk_no in enumerate(stored)}
    said = {i: (state, layer, rows.get(i, -1)) for i, state in enumerate(states) if state}
    return child_table(make_runs(extents), np.array(stored, np.int64), CHUNKS, layer), said


def unrolled(table: RunTable) -> dict[int, Said]:
    """What a table says of each chunk; it must be sorted and disjoint."""
    found: dict[int, Said] = {}
    end = -1
    for i in range(len(table)):
        run = table.run(i)
        assert run.first >= end
        assert run.count > 0
        end = run.first + run.count
        for k in range(run.count):
            row = run.row + k if run.state is State.STORED else -1
            found[run.first + k] = (int(run.state), run.layer, row)
    return found


@given(st.lists(LAYER, min_size=1, max_size=9))
@settings(max_examples=50)
def test_layers_over_each_other(layers: list[list[int]]) -> None:
    tables, model = [], {}
    for number, states in enumerate(layers):
        table, said = table_of(states, number)
        tables.append(table)
        assert unrolled(table) == said
        model |= said
    assert unrolled(overlay_all(tables)) == model


@given(st.lists(LAYER, min_size=1, max_size=4), st.integers(0, CHUNKS), st.integers(0, CHUNKS))
def test_looking_up(layers: list[list[int]], first: int, end: int) -> None:
    table = overlay_all([table_of(states, number)[0] for number, states in enumerate(layers)])
    model = unrolled(table)
    for chunk_no in range(CHUNKS):
        i = table.find(chunk_no)
        assert (i >= 0) == (chunk_no in model)
    parts = list(table.between(first, end))
    cut: dict[int, Said] = {}
    for run in parts:
        for k in range(run.count):
            cut[run.first + k] = (int(run.state), run.layer, run.row + k if run.row >= 0 else -1)
    assert cut == {chunk_no: said for chunk_no, said in model.items() if first <= chunk_no < end}
    assert covers(table, first, end) == all(chunk_no in model for chunk_no in range(first, end))
    assert unrolled(crop(table, end)) == {n: said for n, said in model.items() if n < end}
    for state in State:
        assert table.chunks_in(state) == sum(said[0] == state for said in model.values())


@given(st.lists(st.sampled_from([1, 1, 2, 3, 4]), max_size=CHUNKS))
def test_full_images_store_what_no_extent_lists(states: list[int]) -> None:
    extents = make_runs([(i, 1, state) for i, state in enumerate(states) if state != 1])
    table = full_table(extents, len(states))
    found = unrolled(table)
    row = 0
    for chunk_no, state in enumerate(states):
        assert found[chunk_no] == (state, 0, row if state == 1 else -1)
        row += state == 1
    assert len(found) == len(states)
    if states:
        finder = RunFinder(table)
        for chunk_no in range(len(states)):
            run = finder.find(chunk_no)
            assert run.first <= chunk_no < run.first + run.count


def test_neighbours_that_say_the_same_are_joined() -> None:
    one, _ = table_of([1] * 10 + [0] * 50, 0)
    two, _ = table_of([2] * 3 + [0] * 57, 1)
    three, _ = table_of([0, 0, 0, 2, 2] + [0] * 55, 1)
    table = overlay_all([one, two, three])
    assert [(run.first, run.count, run.state) for run in table.between(0, CHUNKS)] == [
        (0, 5, State.ZERO),
        (5, 5, State.STORED),
    ]


@pytest.mark.parametrize(
    ("extents", "stored"),
    [([(0, 2, 2)], [1]), ([(5, 3, 2)], [7]), ([(5, 3, 2)], [4, 5]), ([], [3, 3]), ([(0, 60, 2)], [0])],
)
def test_two_answers_for_one_chunk_are_refused(
    extents: list[tuple[int, int, int]], stored: list[int]
) -> None:
    with pytest.raises(FormatError):
        child_table(make_runs(extents), np.array(stored, np.int64), CHUNKS, 0)


def test_a_row_past_the_end_is_refused() -> None:
    with pytest.raises(FormatError, match="past the end"):
        child_table(make_runs([]), np.array([60], np.int64), CHUNKS, 0)


def test_many_layers_over_a_big_table() -> None:
    """One chunk in a hundred is new in every layer."""
    chunks, dice = 20_000, np.random.default_rng(3)
    tables, model = [full_table(make_runs([]), chunks)], np.zeros(chunks, np.int64)
    for layer in range(1, 100):
        picked = np.unique(dice.integers(0, chunks, chunks // 100))
        tables.append(child_table(make_runs([]), picked, chunks, layer))
        model[picked] = layer
    table = overlay_all(tables)
    assert covers(table, 0, chunks)
    assert np.array_equal(np.repeat(table.layer, table.count), model)
