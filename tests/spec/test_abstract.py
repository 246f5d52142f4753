"""fsspec's own tests for file systems, those of them that only read.

They make what they need on the file system first; here that lies in an image, and making it again only checks
that it is there. Of the others (put, copy, pipe, mv, open for writing) all write.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.tests import abstract

from imagefs.spec.filesystem import ImageFileSystem
from tests.spec.conftest import add_image, make_disk

SCENARIOS = {
    "scenario": ["file1", "file2", "subdir/subfile1", "subdir/subfile2", "subdir/nesteddir/nestedfile"],
    "edges": [
        *("file1", "file2"),
        *(f"subdir{n}/{name}" for n in (0, 1) for name in ("subfile1", "subfile2", "nesteddir/nestedfile")),
    ],
    "prefix": ["subdir.txt", "subdir/subfile.txt"],
    "hashed": [f"{hashlib.md5(str(n).encode()).hexdigest()}.txt" for n in range(10)],
}


class MadeBefore(ImageFileSystem):
    """What the tests would make is in the image."""

    def mkdir(self, path: str, **kwargs: Any) -> None:
        assert self.isdir(path), path

    def touch(self, path: str, **kwargs: Any) -> None:
        assert self.isfile(path), path

    def rm(self, path: str, **kwargs: Any) -> None:
        assert self.exists(path), path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    for name, paths in SCENARIOS.items():
        for path in paths:
            file = folder / "files" / name / "source" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(paths.index(path)) if name == "hashed" else "")
    (folder / "files/src").mkdir()
    (folder / "files/src/file").touch()
    return add_image(folder / "set", make_disk(folder / "files", folder / "disk"))


class ImageFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, image: Path) -> Iterator[ImageFileSystem]:
        yield MadeBefore(fo=str(image))
        MadeBefore.clear_instance_cache()

    @pytest.fixture
    def fs_path(self) -> str:
        return "p0"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "p0/scenario/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self) -> str:
        return "p0/edges/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self) -> str:
        return "p0/prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self) -> str:
        return "p0/hashed/source"


class TestGet(abstract.AbstractGetTests, ImageFixtures):  # type: ignore[misc]
    pass


def test_all_that_reads_is_in_there() -> None:
    """A new group of tests in fsspec is to be looked at."""
    groups = {name for name in vars(abstract) if name.startswith("Abstract") and name.endswith("Tests")}
    writing = {f"Abstract{name}Tests" for name in ("Put", "Copy", "Pipe", "Open")}
    assert groups - writing == {"AbstractGetTests"}
    assert len([name for name in dir(TestGet) if name.startswith("test_")]) >= 14
    assert os.path.basename(abstract.__file__) == "__init__.py"
