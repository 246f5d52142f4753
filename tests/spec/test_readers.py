"""pandas, pyarrow and DuckDB read straight out of an image."""

from __future__ import annotations

from pathlib import Path

import duckdb
import fsspec
import pandas
import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest

from imagefs.spec.filesystem import ImageFileSystem
from tests.spec.conftest import add_image, make_disk

ROWS = 20_000


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose one image has /table.csv, /table.parquet in several row groups, /parts/year=…/part.parquet."""
    folder = tmp_path_factory.mktemp("tables")
    files = folder / "files"
    table = pandas.DataFrame({"n": range(ROWS), "word": [f"word {n % 7}" for n in range(ROWS)]})
    files.mkdir()
    table.to_csv(files / "table.csv", index=False)
    table.to_parquet(files / "table.parquet", row_group_size=1000)
    for year in (2025, 2026):
        (files / f"parts/year={year}").mkdir(parents=True)
        table.head(year).to_parquet(files / f"parts/year={year}/part.parquet")
    add_image(folder / "set", make_disk(files, folder / "disk"))
    return folder / "set"


def test_pandas(tables: Path) -> None:
    for url, options in (
        (f"imagefs://p0/table.csv::file://{tables}", None),
        ("imagefs://p0/table.csv", {"fo": str(tables), "image": "latest"}),
    ):
        frame = pandas.read_csv(url, storage_options=options)
        assert len(frame) == ROWS
        assert frame["n"].sum() == ROWS * (ROWS - 1) // 2
    frame = pandas.read_parquet(f"imagefs://p0/table.parquet::{tables}", columns=["n"])
    assert list(frame["n"]) == list(range(ROWS))


def test_pyarrow(tables: Path) -> None:
    fs = fsspec.filesystem("imagefs", fo=str(tables))
    parts = pyarrow.dataset.dataset("p0/parts", filesystem=fs, partitioning="hive")
    assert parts.count_rows() == 2025 + 2026
    assert parts.to_table(filter=pyarrow.dataset.field("year") == 2025).num_rows == 2025
    handler = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    selector = pyarrow.fs.FileSelector("p0/parts", recursive=True)
    files = {each.path: each for each in handler.get_file_info(selector)}
    assert files["p0/parts/year=2025"].type == pyarrow.fs.FileType.Directory
    assert files["p0/parts/year=2026/part.parquet"].size == fs.size("p0/parts/year=2026/part.parquet")
    assert handler.get_file_info("p0/none").type == pyarrow.fs.FileType.NotFound
    table = pyarrow.parquet.read_table("p0/table.parquet", filesystem=handler, filters=[("n", "<", 10)])
    assert table["n"].to_pylist() == list(range(10))


def test_duckdb(tables: Path) -> None:
    with duckdb.connect() as base:
        base.register_filesystem(ImageFileSystem(fo=str(tables)))
        answer = base.execute("SELECT count(*), sum(n) FROM read_csv('imagefs://p0/table.csv')").fetchone()
        assert answer == (ROWS, ROWS * (ROWS - 1) // 2)
        query = "SELECT year, count(*) FROM read_parquet('imagefs://p0/parts/*/part.parquet') GROUP BY 1 ORDER BY 1"
        assert base.execute(query).fetchall() == [(2025, 2025), (2026, 2026)]
