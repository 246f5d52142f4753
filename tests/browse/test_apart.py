"""Parsers in a worker process: the same answers as in this one, and deaths that cost one request each."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse import workers
from imagefs.browse.ahead import Files
from imagefs.browse.apart import _GO_ON, ApartFileSystem, open_apart
from imagefs.browse.content import MappedReader
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.browse.workers import Limits
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, NotAFileSystem, PathNotFound
from imagefs.interfaces import Entry, EntryType, Extent, FileSystem, HasStreams, HasXattrs, ListsNames, State
from tests.browse.disks import MIB, BreakingReader, FileReader, debugfs, make_ext
from tests.browse.hostile_parser import hostile_start
from tests.browse.test_damage import blocks_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext4 whose names tell the hostile parser what to do."""
    room = tmp_path_factory.mktemp("mined")
    words = ("segfault", "loop", "sleep", "memory", "aborted", "killed", "bug", "nonsense", "good")
    for word in words:
        (room / "tree" / word).mkdir(parents=True)
        (room / "tree" / word / "inside").write_bytes(word.encode())
        (room / "tree" / f"file-{word}-held").write_bytes(word.encode() * 1000)
    return make_ext(room / "ext4", room / "tree")


Opener = Callable[..., ApartFileSystem]


@pytest.fixture
def hostile(mined: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    monkeypatch.setattr(workers, "_START", hostile_start())
    opened: list[FileSystem] = []

    def open_it(**limits: float) -> ApartFileSystem:
        fs = open_apart(FileReader(mined), limits=Limits(**limits))  # type: ignore[arg-type]
        assert isinstance(fs, ApartFileSystem)
        opened.append(fs)
        return fs

    yield open_it
    for fs in opened:
        fs.close()


def everything(fs: FileSystem) -> list[object]:
    """All that a file system says of its tree."""
    said: list[object] = [fs.kind, fs.label, fs.case_insensitive, fs.used_bytes, fs.root()]
    errors: list[ImagefsError] = []
    for entry in walk(fs, fs.root(), onerror=errors.append):
        said += [entry, fs.lookup(entry.path), fs.places(entry)]
        try:
            if entry.type is EntryType.SYMLINK:
                said.append(fs.readlink(entry))
            content = fs.open(entry)
            said += [content.size, content.read_at(0, content.size), content.read_at(content.size // 2, 100)]
            said.append(list(content.extents(0, content.size)))  # type: ignore[attr-defined]
        except (ImagefsError, AttributeError) as error:
            said.append(_words(error) if isinstance(error, ImagefsError) else "no extents")
    said += map(_words, errors)
    if isinstance(fs, ListsNames):
        said += list(fs.names(fs.root()))
    return said


def _words(error: ImagefsError) -> tuple[object, ...]:
    return type(error), error.message, error.hint, error.data


@pytest.mark.parametrize("name", ["ext4", "ext2", "ntfs"])
def test_the_same_answers_as_in_one_process(name: str, request: pytest.FixtureRequest) -> None:
    same_answers(request.getfixturevalue(name))


def test_the_same_answers_of_fat(fat: Path) -> None:
    same_answers(fat)


def same_answers(path: Path) -> None:
    apart = open_apart(FileReader(path))
    here = open_filesystem(FileReader(path))
    assert everything(apart) == everything(here)
    for protocol in (ListsNames, HasStreams, HasXattrs):
        assert isinstance(apart, protocol) == isinstance(here, protocol)
    apart.close()
    here.close()


def test_errors_come_out_as_they_are(ext4: Path) -> None:
    with pytest.raises(NotAFileSystem, match="empty"):
        open_apart(BytesReader(bytes(MIB)))
    start = blocks_of(ext4, "many")[0] * 1024
    broken = BreakingReader(FileReader(ext4), start, start + 1024)
    fs = open_apart(broken)
    with pytest.raises(IntegrityError) as caught:
        list(fs.children(fs.lookup(b"/many")))
    assert caught.value.data == {"chunk": 17}
    broken.broken = False
    assert len(list(fs.children(fs.lookup(b"/many")))) == 300
    with pytest.raises(PathNotFound):
        fs.lookup(b"/nothing here")
    fs.close()
    with pytest.raises(BrowseError, match="closed"):
        fs.root()


def test_an_exception_that_is_no_answer_does_not_become_one(ext4: Path) -> None:
    """After one, what the worker still sends is not taken for the answer to something else."""

    class Interrupt(BaseException):
        pass

    class Interrupted(FileReader):
        now = False

        def read_at(self, offset: int, length: int, /) -> bytes:
            if self.now:
                self.now = False
                raise Interrupt
            return super().read_at(offset, length)

    reader = Interrupted(ext4)
    fs = open_apart(reader)
    reader.now = True
    with pytest.raises(Interrupt):
        fs.lookup(b"/many")
    here = open_filesystem(FileReader(ext4))
    expected = [entry.path for entry in walk(here, here.root(), onerror=print)]
    assert [entry.path for entry in walk(fs, fs.root(), onerror=print)] == expected
    fs.close()


@pytest.mark.parametrize(
    ("word", "limits", "said"),
    [
        ("segfault", {}, "crashed (SIGSEGV)"),
        ("aborted", {}, "crashed (SIGABRT)"),
        ("killed", {}, "was killed"),
        ("loop", {"cpu": 1}, "did not end within 1 seconds of computing"),
        ("sleep", {"silence": 4.0}, "did not answer for 4 seconds"),
        ("memory", {"memory": 1 << 29}, "needed more than 512 MiB of memory"),
        ("bug", {}, "the parser failed (IndexError: of a parser)"),
        ("nonsense", {}, "cannot be understood"),
    ],
)
def test_a_death_costs_one_request(hostile: Opener, word: str, limits: dict[str, float], said: str) -> None:
    fs = hostile(**limits)
    folder = fs.lookup(f"/{word}".encode())
    with pytest.raises(BrowseError) as caught:
        list(fs.children(folder))
    assert said in caught.value.message
    assert f"'/{word}'" in caught.value.message
    with pytest.raises(BrowseError, match=f"'/file-{word}-held'"):
        fs.open(fs.lookup(f"/file-{word}-held".encode()))
    good = fs.lookup(b"/good/inside")
    assert fs.open(good).read_at(0, 10) == b"good"


def test_what_killed_is_not_tried_again_at_once(hostile: Opener) -> None:
    fs = hostile()
    folder = fs.lookup(b"/segfault")
    for _ in range(50):
        with pytest.raises(BrowseError, match="SIGSEGV"):
            fs.children(folder)
    assert len(fs._deaths) == 1
    assert len(list(fs.children(fs.lookup(b"/good")))) == 1


def test_a_file_system_is_given_up_in_the_end(hostile: Opener) -> None:
    fs = hostile()
    file = fs.lookup(b"/segfault")
    with pytest.raises(BrowseError, match="given up"):
        for number in range(1000):
            with pytest.raises(BrowseError, match=r"SIGSEGV|given up") as caught:
                fs.children(file._replace(path=b"/segfault/%d" % number))
            if "given up" in caught.value.message:
                raise caught.value
    assert number < 50
    with pytest.raises(BrowseError, match="given up"):
        fs.lookup(b"/good")


def test_opening_that_kills_the_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_START", hostile_start())
    with pytest.raises(BrowseError, match="SIGSEGV"):
        open_apart(BytesReader(b"LOOP" + bytes(MIB)))


def test_a_walk_goes_round_what_kills(hostile: Opener) -> None:
    """Folders that are listed on suspicion are not blamed on the one that was asked for."""
    fs = hostile(cpu=1, silence=2.0, memory=1 << 29)
    errors: list[str] = []
    seen = [e.path for e in walk(fs, fs.root(), onerror=lambda error: errors.append(error.message))]
    assert b"/good/inside" in seen
    for word in ("segfault", "loop", "sleep", "memory", "aborted", "killed", "bug", "nonsense"):
        assert len([each for each in errors if f"'/{word}'" in each]) == 1, (word, errors)


@pytest.fixture(scope="module")
def wooded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext4 with so many folders that a walk asks for some on suspicion."""
    room = tmp_path_factory.mktemp("wooded")
    for number in range(120):
        folder = room / "tree" / f"{number // 10:02d}" / f"{number:03d}" / "deep"
        folder.mkdir(parents=True)
        for each in range(20):
            (folder.parent / f"file-{number}-{each}").write_bytes(b"%d" % number)
        (folder / "last").touch()
    return make_ext(room / "ext4", room / "tree", "-N", "4000")


def paths_of(fs: FileSystem, onerror: Callable[[ImagefsError], None] = print) -> list[bytes]:
    return [entry.path for entry in walk(fs, fs.root(), onerror=onerror)]


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What workers are asked on suspicion."""
    asked: list[bytes] = []
    begin = workers.Worker.begin

    def noted(self: workers.Worker, request: bytes) -> None:
        if request == _GO_ON:
            asked.append(request)
        begin(self, request)

    monkeypatch.setattr(workers.Worker, "begin", noted)
    return asked


def test_a_walk_is_made_ahead_and_gives_the_same(wooded: Path, guesses: list[bytes]) -> None:
    here, apart = open_filesystem(FileReader(wooded)), open_apart(FileReader(wooded))
    expected = list(walk(here, here.root(), onerror=print))
    assert list(walk(apart, apart.root(), onerror=print)) == expected
    assert len(guesses) > 1
    apart.close()


def test_other_requests_in_a_walk_get_their_own_answers(wooded: Path, guesses: list[bytes]) -> None:
    here, apart = open_filesystem(FileReader(wooded)), open_apart(FileReader(wooded))
    for number, (entry, same) in enumerate(
        zip(walk(here, here.root(), onerror=print), walk(apart, apart.root(), onerror=print), strict=True)
    ):
        assert entry == same
        if number % 7 == 0:
            assert apart.lookup(entry.path) == entry
        if number % 5 == 0 and entry.type is EntryType.FILE:
            content = apart.open(entry)
            assert content.read_at(0, 10) == here.open(entry).read_at(0, 10)
    assert guesses
    apart.close()


def test_two_walks_at_once_give_the_same(wooded: Path) -> None:
    apart = open_apart(FileReader(wooded))
    expected = paths_of(apart)
    pairs = zip(
        walk(apart, apart.root(), onerror=print), walk(apart, apart.root(), onerror=print), strict=True
    )
    assert [one.path for one, other in pairs if one == other] == expected
    apart.close()


def test_a_worker_that_dies_of_a_guess_costs_nothing(
    wooded: Path, guesses: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = open_apart(FileReader(wooded))
    assert isinstance(fs, ApartFileSystem)
    expected = paths_of(open_filesystem(FileReader(wooded)))
    begin, killed = workers.Worker.begin, []

    def deadly(self: workers.Worker, request: bytes) -> None:
        begin(self, request)
        if request == _GO_ON and not killed:
            killed.append(worker_of(fs))
            kill_worker(fs)

    monkeypatch.setattr(workers.Worker, "begin", deadly)
    errors: list[ImagefsError] = []
    assert paths_of(fs, errors.append) == expected
    assert killed
    assert errors == []
    fs.close()


def test_what_cannot_be_read_ahead_is_an_error_where_it_belongs(wooded: Path, guesses: list[bytes]) -> None:
    start = blocks_of(wooded, "07/071")[0] * 1024
    broken = BreakingReader(FileReader(wooded), start, start + 1024)
    errors: list[ImagefsError] = []
    fs = open_apart(broken)
    found = paths_of(fs, errors.append)
    assert [type(error) for error in errors] == [IntegrityError]
    here = open_filesystem(FileReader(wooded))
    lost = [path for path in paths_of(here) if path.startswith(b"/07/071/")]
    assert set(paths_of(here)) - set(found) == set(lost)
    assert guesses
    fs.close()


def test_an_exception_while_a_guess_is_served_leaves_no_answer_behind(
    wooded: Path, guesses: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(BaseException):
        pass

    serve, raised = workers.Worker.serve, []

    def interrupted(self: workers.Worker) -> bool:
        if not raised:
            raised.append(1)
            raise Interrupt
        return serve(self)

    monkeypatch.setattr(workers.Worker, "serve", interrupted)
    fs = open_apart(FileReader(wooded))
    with pytest.raises(Interrupt):
        paths_of(fs)
    assert paths_of(fs) == paths_of(open_filesystem(FileReader(wooded)))
    fs.close()


def test_a_folder_is_read_in_a_few_messages(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks lie in a dozen places, its inodes in a hundred."""
    messages: list[bytes] = []
    served = workers.Worker._served

    def noted(self: workers.Worker, letter: bytes, body: bytes) -> tuple[bytes, bytes]:
        messages.append(letter)
        return served(self, letter, body)

    fs = open_apart(FileReader(ext4))
    folder = fs.lookup(b"/many")
    monkeypatch.setattr(workers.Worker, "_served", noted)
    assert len(list(fs.children(folder))) == 300
    assert len(blocks_of(ext4, "many")) > 8
    assert len(messages) <= 4
    fs.close()


def opened_in_order(fs: FileSystem) -> Iterator[tuple[bytes, bytes]]:
    """(path, content, or what is wrong with it) of each file of a walk."""
    for entry in walk(fs, fs.root(), onerror=print):
        if entry.type is EntryType.FILE:
            try:
                content = fs.open(entry)
                yield entry.path, content.read_at(0, content.size)
            except ImagefsError as error:
                yield entry.path, error.message.encode()


def test_files_opened_in_order_come_many_at_once(wooded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    begin = workers.Worker.begin

    def noted(self: workers.Worker, request: bytes) -> None:
        calls.append(request)
        begin(self, request)

    apart = open_apart(FileReader(wooded))
    monkeypatch.setattr(workers.Worker, "begin", noted)
    expected = list(opened_in_order(open_filesystem(FileReader(wooded))))
    assert list(opened_in_order(apart)) == expected
    assert len(expected) == 120 * 21
    assert len(calls) < len(expected) / 5
    calls.clear()
    entry = apart.lookup(b"/03/033/file-33-7")
    for _ in range(3):
        assert apart.open(entry).read_at(0, 10) == b"33"
    assert len(calls) == 4
    apart.close()


def test_files_of_the_next_folder_are_asked_for_before_it_is_entered(
    wooded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[bytes] = []
    opened = ApartFileSystem._opened

    def noted(self: ApartFileSystem, files: list[Entry]) -> list[object] | None:
        waited.append(files[0].path)
        return opened(self, files)

    monkeypatch.setattr(ApartFileSystem, "_opened", noted)
    apart = open_apart(FileReader(wooded))
    assert len(list(opened_in_order(apart))) == 120 * 21
    assert len(waited) < 40
    apart.close()


def test_after_a_guess_that_failed_none_is_made_for_a_while() -> None:
    """Neither of the folder that is gone through nor of the next."""
    files = Files()
    found = [Entry(b"/d/%d" % at, EntryType.FILE, 0, f"{at}") for at in range(200)]
    beyond = [Entry(b"/e/%d" % at, EntryType.FILE, 0, f"{at + 500}") for at in range(5)]
    files.note(found)
    for each in found[:3]:
        files.take(each)
    assert files.coming(b"/e", beyond) != []
    files.rest()
    assert files.coming(b"/e", beyond) == files.coming(b"/f", beyond) == []
    for each in found[:100]:
        assert files.take(each) == (None, [])
    assert files.coming(b"/g", beyond) == []


def test_files_opened_in_order_have_their_own_errors(wooded: Path, tmp_path: Path) -> None:
    """The map of one in the middle is destroyed."""
    damaged = tmp_path / "damaged"
    damaged.write_bytes(wooded.read_bytes())
    for number in (21, 22):
        debugfs(
            damaged,
            *(f"set_inode_field 02/{number:03d}/file-{number}-9 block[{each}] 0xFFFF" for each in (0, 1)),
        )
    here, apart = open_filesystem(FileReader(damaged)), open_apart(FileReader(damaged))
    expected = list(opened_in_order(here))
    assert len([1 for _, content in expected if b"cannot be read" in content]) == 2
    assert list(opened_in_order(apart)) == expected
    apart.close()


def test_files_that_kill_the_parser_are_not_blamed_on_others(hostile: Opener) -> None:
    fs = hostile(cpu=1, silence=2.0, memory=1 << 29)
    found = dict(opened_in_order(fs))
    assert found[b"/file-good-held"] == b"good" * 1000
    for word in (b"segfault", b"loop", b"sleep", b"memory", b"aborted", b"killed", b"bug", b"nonsense"):
        path = b"/file-%s-held" % word
        assert path in found[path], found[path]


def test_a_listing_goes_on_where_a_killed_worker_was(ext4: Path, tmp_path: Path) -> None:
    room = tmp_path / "tree" / "wide"
    room.mkdir(parents=True)
    for number in range(1200):
        (room / f"name-{number:04d}").touch()
    fs = open_apart(FileReader(make_ext(tmp_path / "wide", room.parent, "-N", "2000")))
    assert isinstance(fs, ApartFileSystem)
    found = fs.children(fs.lookup(b"/wide"))
    names = [next(found).name for _ in range(700)]
    kill_worker(fs)
    with pytest.raises(BrowseError):
        fs.lookup(b"/wide/name-1199")
    names += [entry.name for entry in found]
    assert len(names) == len(set(names)) == 1200
    fs.close()


def test_content_goes_on_in_a_new_worker(hostile: Opener) -> None:
    fs = hostile()
    content = fs.open(fs.lookup(b"/file-good-held"))
    assert not isinstance(content, MappedReader)
    assert content.read_at(0, 8) == b"goodgood"
    kill_worker(fs)
    with pytest.raises(BrowseError, match="was killed"):
        content.read_at(0, 8)
    assert content.read_at(2, 8) == b"odgoodgo"
    assert content.read_at(3996, 100) == b"good"
    content.close()
    with pytest.raises(BrowseError, match="closed"):
        content.read_at(0, 1)


def test_content_whose_place_is_known_needs_no_worker(ext4: Path) -> None:
    fs = open_apart(FileReader(ext4))
    assert isinstance(fs, ApartFileSystem)
    content = fs.open(fs.lookup(b"/rnd"))
    kill_worker(fs)
    assert len(content.read_at(0, 300_000)) == 300_000
    fs.close()


def test_extents_of_the_volume_reach_the_parser(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Holey(FileReader):
        def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
            for number in range(self.size >> 10):
                state = (State.STORED, State.SKIPPED)[number % 2]
                if offset <= number * 1024 < offset + length:
                    yield Extent(state, number * 1024, 1024)

    monkeypatch.setattr(workers, "_START", hostile_start())
    fs = open_apart(Holey(ext4))
    assert isinstance(fs, HasXattrs)
    states = fs.xattrs(fs.root())
    assert len(states) == 16 << 10
    assert [states[b"%d" % (at << 10)] for at in (0, 1, 1000, 1001, 4999)] == [b"1", b"3", b"1", b"3", b"3"]
    fs.close()


@pytest.mark.parametrize(
    "zone",
    [
        UTC,
        ZoneInfo("Europe/Berlin"),
        timezone(timedelta(hours=-3, minutes=-30)),
        timezone(timedelta(hours=9)),
    ],
)
def test_options_reach_the_parser(mined: Path, monkeypatch: pytest.MonkeyPatch, zone: tzinfo) -> None:
    monkeypatch.setattr(workers, "_START", hostile_start())
    fs = open_apart(FileReader(mined), fat_zone=zone, other=True)
    assert fs.label == repr({"fat_zone": UTC if zone is UTC else zone, "other": True})
    fs.close()


def test_threads_get_their_own_answers(ext4: Path) -> None:
    fs = open_apart(FileReader(ext4))
    paths = [entry.path for entry in walk(fs, fs.root(), onerror=print)]
    wrong: list[object] = []

    def ask(first: int) -> None:
        for path in paths[first::8] * 3:
            if fs.lookup(path).path != path:
                wrong.append(path)
            wrong.extend(each for each in fs.children(fs.root()) if not each.path.startswith(b"/"))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    fs.close()


def test_nothing_is_left_behind(ext4: Path) -> None:
    """No process and no descriptor, closed or forgotten, killed or not."""
    workers.dismiss()
    gc.collect()
    others = set(children_of(os.getpid()))
    before = len(os.listdir("/proc/self/fd"))
    for round_ in range(4):
        fs = open_apart(FileReader(ext4))
        assert isinstance(fs, ApartFileSystem)
        pid = worker_of(fs)
        fs.lookup(b"/many")
        if round_ % 2:
            kill_worker(fs)
            with pytest.raises(BrowseError):
                fs.lookup(b"/many")
            fs.lookup(b"/many")
        if round_ % 3:
            fs.close()
        del fs
        gc.collect()
        assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert set(children_of(os.getpid())) <= others


def test_a_worker_that_was_started_before_is_taken(ext4: Path) -> None:
    workers.dismiss()
    others = set(children_of(os.getpid()))
    workers.prepare()
    workers.prepare()
    (spare,) = set(children_of(os.getpid())) - others
    fs = open_apart(FileReader(ext4), limits=Limits(cpu=50))
    assert isinstance(fs, ApartFileSystem)
    assert worker_of(fs) != spare, "it has other limits"
    fs.close()
    fs = open_apart(FileReader(ext4))
    assert isinstance(fs, ApartFileSystem)
    assert worker_of(fs) == spare
    assert len(list(fs.children(fs.lookup(b"/many")))) == 300
    fs.close()
    workers.prepare()
    (another,) = set(children_of(os.getpid())) - others
    workers.dismiss()
    assert not Path(f"/proc/{spare}").exists()
    assert not Path(f"/proc/{another}").exists()


def test_a_worker_dies_with_its_parent_even_in_a_loop(mined: Path) -> None:
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from imagefs.browse import workers; from imagefs.browse.apart import open_apart\n"
        "from tests.browse.disks import FileReader\n"
        "from tests.browse.hostile_parser import hostile_start\n"
        "workers._START = hostile_start()\n"
        "fs = open_apart(FileReader(Path(sys.argv[1])))\n"
        "print(fs._worker._process.pid, flush=True)\n"
        "fs.children(fs.lookup(b'/loop'))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, mined], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 300
    while alive(pid):
        assert time.monotonic() < until, "the worker computes on without a parent"
        time.sleep(0.02)


def test_a_worker_is_closed_from_another_thread_while_it_loops(hostile: Opener) -> None:
    fs = hostile()
    folder = fs.lookup(b"/loop")
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            fs.children(folder)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    fs.close()
    thread.join(300)
    assert not thread.is_alive()
    assert "closed" in str(caught[0])


def test_a_worker_has_little_to_do_harm_with(ext4: Path) -> None:
    fs = open_apart(FileReader(ext4))
    assert isinstance(fs, ApartFileSystem)
    limits = Path(f"/proc/{worker_of(fs)}/limits").read_text()
    for name, value in (("core file size", "0"), ("file size", "0"), ("address space", str(Limits().memory))):
        (line,) = [each for each in limits.splitlines() if each.startswith(f"Max {name}")]
        assert value in line.split(), line
    open_files = sorted(os.listdir(f"/proc/{worker_of(fs)}/fd"), key=int)
    assert len(open_files) == 5, "input, output, errors, the socket, and the memory that is shared"
    fs.close()


def test_a_closed_file_system_leaves_no_descriptor_and_no_memory(ext4: Path) -> None:
    volume = BytesReader(ext4.read_bytes())
    open_apart(volume).close()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(3):
            fs = open_apart(volume)
            assert len(paths_of(fs)) > 3
            fs.close()
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_worker_that_cannot_be_started_leaves_nothing_open(
    ext4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = BytesReader(ext4.read_bytes())
    before = len(os.listdir("/proc/self/fd"))
    errors: list[BrowseError] = []
    monkeypatch.setattr(workers.sys, "executable", "/nowhere/python")
    for _ in range(3):
        with pytest.raises(BrowseError, match="cannot be started: No such file") as caught:
            open_apart(volume)
        errors.append(caught.value)
    assert len(os.listdir("/proc/self/fd")) - before <= 3, "the memory of each, as long as its error is kept"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext4 with paths so long that a thousand of them are more than a message takes."""
    room = tmp_path_factory.mktemp("deep")
    (room / "tree").mkdir()
    here = os.open(room / "tree", os.O_DIRECTORY)
    for level in range(300):
        name = b"%03d" % level + b"d" * 247
        os.mkdir(name, dir_fd=here)
        inside = os.open(name, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inside
    for number in range(1000):
        os.close(os.open(b"%d" % number, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        if number < 60:
            os.mkdir(b"folder %d" % number, dir_fd=here)
    os.close(here)
    return make_ext(room / "ext4", room / "tree", "-N", "4000")


def test_long_paths_come_in_smaller_portions(deep: Path) -> None:
    fs = open_apart(FileReader(deep))
    assert isinstance(fs, ApartFileSystem)
    here = open_filesystem(FileReader(deep))
    for path, same in zip(paths_of(fs, pytest.fail), paths_of(here), strict=True):
        assert path == same
    assert not fs._deaths
    fs.close()


def test_a_command_does_not_load_the_parsers(ext4: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom imagefs.browse.apart import open_apart\n"
        "from tests.browse.disks import FileReader\n"
        "fs = open_apart(FileReader(Path(sys.argv[1])))\nprint(len(list(fs.children(fs.root()))))\nfs.close()\n"
        "assert not {'pytsk3', 'pyfatfs', 'imagefs.browse.tsk'} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, ext4], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 5


def test_a_walk_does_not_load_numpy(ext4: Path) -> None:
    """In the worker, whose start it would make half as long again."""
    code = (
        "import sys\nfrom pathlib import Path\nimport imagefs.browse.worker\n"
        "from imagefs.browse.opening import open_filesystem\nfrom imagefs.browse.walk import walk\n"
        "from tests.browse.disks import FileReader\n"
        "fs = open_filesystem(FileReader(Path(sys.argv[1])))\nprint(len(list(walk(fs, fs.root(), onerror=print))))\n"
        "assert 'numpy' not in sys.modules\nlist(fs.deleted())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, ext4], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 5


def worker_of(fs: ApartFileSystem) -> int:
    assert fs._worker is not None
    return fs._worker._process.pid


def kill_worker(fs: ApartFileSystem) -> None:
    os.kill(worker_of(fs), signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(each) for task in tasks for each in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
