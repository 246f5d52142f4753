"""No more workers live than the crew may have, and nothing is lost by that."""

from __future__ import annotations

from pathlib import Path

from fixtures.tools import run_tool
from imagefs.browse.apart import ApartFileSystem, open_apart
from imagefs.browse.crew import Crew
from imagefs.store.local import LocalReader


def _disk(folder: Path) -> Path:
    files = folder / "files"
    files.mkdir()
    for number in range(50):
        (files / f"file{number}").write_bytes(bytes([number]) * 5000)
    run_tool(["truncate", "-s", "8M", folder / "disk"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, folder / "disk"])
    return folder / "disk"


def test_whoever_was_not_asked_for_longest_lets_its_worker_go(tmp_path: Path) -> None:
    path, crew = _disk(tmp_path), Crew(limit=2)
    systems = [open_apart(LocalReader(path), crew=crew) for _ in range(4)]

    def at_work() -> list[int]:
        return [at for at, each in enumerate(systems) if _worker(each) is not None]

    assert at_work() == [2, 3]
    folder = systems[0].children(systems[0].root())
    first = next(folder)
    assert at_work() == [0, 3]
    content = systems[3].open(systems[3].lookup(b"/file7"))
    assert len(list(systems[1].children(systems[1].root()))) == 51
    assert at_work() == [1, 3]
    assert systems[2].lookup(b"/file3").size == 5000
    assert at_work() == [1, 2]
    # What was begun goes on: a listing, and a content.
    assert len({first.name, *(entry.name for entry in folder)}) == 51
    assert content.read_at(0, 5000) == bytes([7]) * 5000
    for each in systems:
        each.close()
    assert len(crew) == 0


def test_one_at_work_is_left_alone(tmp_path: Path) -> None:
    crew = Crew(limit=1)
    system = open_apart(LocalReader(_disk(tmp_path)), crew=crew)
    assert isinstance(system, ApartFileSystem)
    with system._lock:  # as in the middle of a request
        other = open_apart(LocalReader(tmp_path / "disk"), crew=crew)
        assert _worker(system) is not None
        assert _worker(other) is not None
    system.close()
    other.close()


def _worker(system: object) -> object:
    assert isinstance(system, ApartFileSystem)
    return system._worker
