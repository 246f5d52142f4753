"""Small files that a second process makes: the same as if we had, in order, and nothing is lost when it fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse import filewriter, place, scribe, workers
from imagefs.browse.extract import extract
from imagefs.browse.manifest import Manifest
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.browse.workers import Limits, Started
from imagefs.errors import BrowseError, IntegrityError, TargetError
from imagefs.interfaces import Entry, NoProgress, Reader
from tests.browse.conftest import ReadyScribe, begin_at_once
from tests.browse.disks import STAMP_NS, FakeFs, file, folder, link
from tests.support.oracles import need_tool, root_only, run_tool


@pytest.fixture(autouse=True)
def begun_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[scribe.Scribe]]:
    """The process is started for the first small file; those that were started."""
    started: list[scribe.Scribe] = []

    class Known(ReadyScribe):
        def __init__(self, *words: object, **more: object) -> None:
            super().__init__(*words, **more)  # type: ignore[arg-type]
            started.append(self)

    begin_at_once(monkeypatch, Known)
    monkeypatch.setattr(scribe, "_PATIENCE", 1000.0)
    yield started
    assert all(each._process.process.poll() is not None for each in started), "a process is left"


class Filled(FakeFs):
    """A FakeFs with bytes by path."""

    data: dict[bytes, bytes]

    def open(self, entry: Entry, /) -> Reader:
        return BytesReader(self.data[entry.path])


def tree(folders: int = 5, files: int = 40, size: int = 3000, cls: type[Filled] = Filled) -> Filled:
    """Folders with files in them, each with bytes, mode and time of its own."""
    fs = cls({b"/": []})
    fs.data = {}
    for i in range(folders):
        at = b"/d%d" % i
        fs.tree[b"/"].append(folder(at, f"{100 + i}", mode=0o750, mtime_ns=STAMP_NS + i))
        fs.tree[at] = []
        for j in range(files):
            path, number = at + b"/f%d" % j, i * files + j
            fs.data[path] = hashlib.shake_128(path).digest(9 + number * size // (folders * files))
            stamp = STAMP_NS + number * 1_000_000_007
            made = file(path, f"{1000 + number}", mode=0o600 + number % 64, mtime_ns=stamp)
            fs.tree[at].append(made._replace(size=len(fs.data[path])))
    return fs


def out(
    fs: FakeFs, target: Path, options: ExtractOptions | None = None, manifest: Manifest | None = None
) -> ExtractReport:
    return extract(fs, [(fs.root(), os.fsencode(target))], options=options, manifest=manifest)


def facts(target: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Mode, time and bytes of all that is in a folder."""
    found = {}
    for path in sorted(target.rglob("*")):
        at = path.stat()
        found[str(path.relative_to(target))] = (
            stat.S_IMODE(at.st_mode),
            at.st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
    return found


def codes(report: ExtractReport) -> list[str]:
    return [each.code for each in report.findings]


def test_the_same_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    fs = tree()
    report = out(fs, tmp_path / "theirs")
    assert len(begun_at_once) == 1
    monkeypatch.setattr(filewriter, "_ENOUGH", 1_000_000)
    assert out(fs, tmp_path / "ours") == report
    assert len(begun_at_once) == 1
    assert facts(tmp_path / "theirs") == facts(tmp_path / "ours")
    assert report.files == 200
    assert report.findings == []


def test_few_files_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    monkeypatch.setattr(filewriter, "_ENOUGH", 100)
    assert out(tree(3, 33), tmp_path / "few").files == 99
    assert begun_at_once == []
    assert out(tree(3, 34), tmp_path / "more").files == 102
    assert len(begun_at_once) == 1


def test_where_it_cannot_be_started_all_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrowseError("no more processes")

    monkeypatch.setattr(scribe, "start", fail)
    report = out(tree(), tmp_path / "out")
    assert (report.files, report.findings) == (200, [])
    assert begun_at_once == []


def test_where_it_cannot_begin_all_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    in_place_of(monkeypatch, "tests.browse.no_such_module")
    report = out(tree(), tmp_path / "out")
    assert (report.files, report.findings) == (200, [])
    assert len(begun_at_once) == 1


def test_where_it_ends_before_it_is_spoken_to_all_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    def ended(limits: Limits, _: str, **more: Any) -> Started:
        started = workers.start(limits, "tests.browse.no_such_module", **more)
        started.process.wait()
        return started

    monkeypatch.setattr(scribe, "start", ended)
    report = out(tree(), tmp_path / "out")
    assert (report.files, report.findings) == (200, [])
    assert begun_at_once == []


def in_place_of(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Have ``module`` run in the process."""

    def other(limits: Limits, _: str, **more: Any) -> Started:
        return workers.start(limits, module, **more)

    monkeypatch.setattr(scribe, "start", other)


@given(st.lists(st.integers(0, scribe.SMALL + 5000), max_size=30), st.booleans())
def test_any_sizes(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], hashed: bool) -> None:
    """With zeros and large ones among them, which are made here, and with digests."""
    room = tmp_path_factory.mktemp("sizes")
    data = {b"/%d" % at: bytes(size) if at % 5 == 4 else os.urandom(size) for at, size in enumerate(sizes)}
    entries = [file(path, path[1:].decode())._replace(size=len(each)) for path, each in data.items()]
    fs = Filled({b"/": entries})
    fs.data = data
    manifest = Manifest(os.fsencode(room / "m"), overwrite=False, resume=False) if hashed else None
    report = out(fs, room / "out", manifest=manifest)
    assert {b"/" + os.fsencode(path.name): path.read_bytes() for path in (room / "out").iterdir()} == data
    assert (report.files, report.bytes, report.findings) == (len(sizes), sum(sizes), [])
    if manifest is not None:
        manifest.commit()
        wanted = [
            f"{hashlib.sha256(each).hexdigest()}  {room}/out{path.decode()}" for path, each in data.items()
        ]
        assert sorted((room / "m").read_text().splitlines()) == sorted(wanted)


def test_what_reads_back_otherwise_is_told_and_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of(monkeypatch, "tests.browse.lying_scribe")
    report = out(tree(2, 20), tmp_path / "out", ExtractOptions(verify=True))
    assert (report.files, set(codes(report)), len(report.findings)) == (0, {"verify"}, 40)
    assert f"{tmp_path}/out/d1/f19" in report.findings[-1].message
    assert [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()] == []
    in_place_of(monkeypatch, "imagefs.browse.scribe")
    report = out(tree(2, 20), tmp_path / "out", ExtractOptions(verify=True))
    assert (report.files, report.findings) == (40, [])


# -- names --------------------------------------------------------------------------------------------


def test_equal_names_wait_for_each_other(tmp_path: Path) -> None:
    """The second of a name must see the first, which may not be made yet."""
    entries = [file(b"/same", "1"), file(b"/other", "2"), file(b"/same", "3"), folder(b"/same", "4")]
    fs = FakeFs({b"/": entries})
    report = out(fs, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["other", "same", "same~3", "same~4"]
    assert codes(report) == ["renamed", "renamed"]


def test_names_that_differ_in_case_alone_are_both_made(tmp_path: Path) -> None:
    fs = FakeFs({b"/": [file(b"/A", "1"), file(b"/a", "2")]})
    assert out(fs, tmp_path / "out").findings == []
    assert sorted(os.listdir(tmp_path / "out")) == ["A", "a"]


def test_a_file_is_named_as_what_lies_beside_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a link is made it lies under the name of a file that the other process makes."""
    symlink = os.symlink

    def slow(*words: Any, **more: Any) -> None:
        symlink(*words, **more)
        time.sleep(0.05)

    monkeypatch.setattr(os, "symlink", slow)
    monkeypatch.setattr(scribe, "_FILES", 1)  # one is sent when the next is given
    entries = []
    for at in range(5):
        entries += [file(b"/.l%d.imagefs.partial" % at), file(b"/f%d" % at), link(b"/l%d" % at)]
    for overwrite in (False, True):
        fs = FakeFs({b"/": entries}, links={b"/l%d" % at: b"there" for at in range(5)})
        report = out(fs, tmp_path / "out", ExtractOptions(overwrite=overwrite))
        assert report.findings == []
        assert len(os.listdir(tmp_path / "out")) == 15
        assert all(os.path.islink(tmp_path / "out" / f"l{at}") for at in range(5))


def test_targets_without_unnamed_files_are_written_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    monkeypatch.setattr(place, "_makes_unnamed", lambda fd: False)
    entries = [file(b"/%d" % at) for at in range(70)]
    fs = FakeFs({b"/": [*entries, file(b"/.foo.imagefs.partial"), file(b"/foo")]})
    assert out(fs, tmp_path / "out", ExtractOptions(resume=True)).findings == []
    assert len(os.listdir(tmp_path / "out")) == 72
    assert begun_at_once == []


class Raced(Filled):
    """Somebody else makes a file of that name while we open ours."""

    target = Path()

    def open(self, entry: Entry, /) -> Reader:
        if entry.path == b"/d1/f7":
            with contextlib.suppress(FileExistsError), open(self.target / "d1" / "f7", "xb") as stream:
                stream.write(b"theirs")
        return super().open(entry)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_others_make_meanwhile_is_not_replaced(tmp_path: Path, overwrite: bool) -> None:
    fs = tree(cls=Raced)
    Raced.target = tmp_path / "out"
    report = out(fs, tmp_path / "out", ExtractOptions(overwrite=overwrite))
    there = (tmp_path / "out" / "d1" / "f7").read_bytes()
    if overwrite:
        assert there == fs.data[b"/d1/f7"]
        assert (report.files, report.findings) == (200, [])
    else:
        assert there == b"theirs"
        assert (report.files, codes(report)) == (199, ["exists"])


def test_a_name_that_was_refused_does_not_give_another_free(tmp_path: Path) -> None:
    class Twins(FakeFs):
        def open(self, entry: Entry, /) -> Reader:
            if entry.inode == "2":
                (tmp_path / "out" / "a").write_bytes(b"theirs")
            return BytesReader(entry.inode.encode())

    fs = Twins({b"/": [file(b"/A", "1"), file(b"/a", "2"), file(b"/A", "3")]})
    report = out(fs, tmp_path / "out")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made == {"A": b"1", "a": b"theirs", "A~3": b"3"}
    assert (report.files, codes(report)) == (2, ["exists", "renamed"])


def test_resumed(tmp_path: Path) -> None:
    """What is there stays, what was cut off is made again, what is another's is told."""
    fs = tree()
    out(fs, tmp_path / "out")
    wanted = {name: each for name, each in facts(tmp_path / "out").items() if "/" in name}
    room = tmp_path / "out" / "d2"
    (room / "f1").unlink()
    for name, size in (("f2", 1), ("f3", 2)):
        at = (room / name).stat()
        os.truncate(room / name, size)
        os.utime(room / name, ns=(at.st_atime_ns, at.st_mtime_ns))
    (room / "f4").write_bytes(b"another's")
    report = out(fs, tmp_path / "out", ExtractOptions(resume=True))
    assert (report.files, report.kept, codes(report)) == (199, 196, ["exists"])
    (room / "f4").unlink()
    report = out(fs, tmp_path / "out", ExtractOptions(resume=True))
    assert (report.files, report.kept, codes(report)) == (200, 199, [])
    assert facts(tmp_path / "out").items() >= wanted.items()


# -- what goes wrong ----------------------------------------------------------------------------------


def test_content_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    class Broken(BytesReader):
        def read_at(self, offset: int, length: int, /) -> bytes:
            raise IntegrityError("a chunk is damaged")

    class Damaged(Filled):
        def open(self, entry: Entry, /) -> Reader:
            return Broken(bytes(50)) if entry.path == b"/d1/f7" else super().open(entry)

    report = out(tree(cls=Damaged), tmp_path / "out")
    assert (report.files, codes(report)) == (199, ["integrity"])
    assert not (tmp_path / "out" / "d1" / "f7").exists()


def whole(target: Path, fs: Filled) -> int:
    """How many files there are, each of them whole, and nothing beside them."""
    count = 0
    for path in target.rglob("*"):
        if not path.is_dir():
            assert path.read_bytes() == fs.data[b"/" + os.fsencode(path.relative_to(target))]
            count += 1
    return count


def test_a_process_that_dies_ends_the_run(tmp_path: Path, begun_at_once: list[scribe.Scribe]) -> None:
    """Folders that are not known to be whole do not look like it."""

    class Deadly(Filled):
        def open(self, entry: Entry, /) -> Reader:
            if entry.path == b"/d2/f9":
                begun_at_once[0]._process.process.kill()
            return super().open(entry)

    with pytest.raises(TargetError, match="process that makes files has ended") as caught:
        out(tree(5, 400, cls=Deadly), tmp_path / "out")
    assert "--resume" in (caught.value.hint or "")
    plain = tree(5, 400)
    assert whole(tmp_path / "out", plain) < 2000
    unfinished(tmp_path / "out", 400)
    report = out(plain, tmp_path / "out", ExtractOptions(resume=True))
    assert (report.files, report.findings) == (2000, [])
    assert whole(tmp_path / "out", plain) == 2000


def unfinished(target: Path, files: int) -> None:
    """A folder has its mode only where all its files are there."""
    for each in target.glob("d*"):
        if len(os.listdir(each)) < files:
            assert stat.S_IMODE(each.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["loads", "_unpacked"])
def test_a_signal_while_an_answer_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Digests stay those of their files, and nothing is waited for that does not come."""
    real, calls = getattr(scribe, place), []

    def interrupted(*words: Any) -> Any:
        calls.append(1)
        if len(calls) == (2 if place == "loads" else 100):
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(scribe, place, interrupted)
    fs, report = tree(5, 400), ExtractReport()
    manifest = Manifest(os.fsencode(tmp_path / "m"), overwrite=False, resume=False)
    with pytest.raises(KeyboardInterrupt):
        extract(fs, [(fs.root(), os.fsencode(tmp_path / "out"))], manifest=manifest, report=report)
    manifest.keep()
    count = whole(tmp_path / "out", fs)
    lines = (tmp_path / "m.partial").read_text().splitlines()
    assert count - 1 <= report.files == len(lines) <= count
    for line in lines:
        digest, _, path = line.partition("  ")
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    unfinished(tmp_path / "out", 400)


def named_at_length(cls: type[Filled] = Filled) -> Filled:
    """Files with long names that are shown four times as long: all that is told of them is long."""
    fs = cls({b"/": []})
    at = b"/" + b"\xff" * 200
    fs.tree = {b"/": [folder(at, "9")], at: []}
    fs.data = {}
    for number in range(900):
        path = at + b"/%03d" % number + b"\xfe" * 190
        fs.data[path] = path
        fs.tree[at].append(file(path, f"{number + 100}"))
    return fs


@pytest.mark.parametrize("ends", [False, True])
def test_much_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """Answers that fill the socket, with requests that do so on their way, also where the run ends early."""
    in_place_of(monkeypatch, "tests.browse.lying_scribe")

    class Ending(Filled):
        opened = 0

        def open(self, entry: Entry, /) -> Reader:
            self.opened += 1
            if ends and self.opened == 600:
                raise KeyboardInterrupt
            return super().open(entry)

    fs, report = named_at_length(Ending), ExtractReport()
    options = ExtractOptions(verify=True)
    with contextlib.suppress(KeyboardInterrupt):
        extract(fs, [(fs.root(), os.fsencode(tmp_path / "out"))], options=options, report=report)
    assert (report.files, len(report.findings), set(codes(report))) == (0, 599 if ends else 900, {"verify"})


@pytest.mark.parametrize("ends", [False, True])
def test_one_that_dies_while_it_is_heard(tmp_path: Path, ends: bool) -> None:
    """With requests that it has not read: whatever it said before is heard, and the error is ours."""
    heard: list[bytes] = []

    def hear(file: scribe.Given, outcome: scribe.Outcome) -> None:
        heard.append(file.name)
        made._process.process.kill()
        made._process.process.wait()

    made = ReadyScribe((), hear, owners=False, verify=False)
    assert made.is_ready()
    room = place.Folder.open(os.fsencode(tmp_path))
    for at in range(3 * scribe._FILES):
        if at == scribe._FILES:
            made._send()
            answers = select.poll()
            answers.register(made._socket, select.POLLIN)
            assert answers.poll(300_000)
            while len(os.listdir(tmp_path)) < scribe._FILES:
                time.sleep(0.001)
            made._process.process.send_signal(signal.SIGSTOP)
        made.give(scribe.Given(file(b"/%d" % at), room, b"%d" % at, 4), b"data")
    if not ends:
        with pytest.raises(TargetError, match="that makes files has ended"):
            made.finish()
    made.close()
    assert scribe._FILES - scribe._ANSWERED <= len(heard) <= scribe._FILES
    room.close()


def test_what_is_given_last_is_made_though_an_error_comes_before(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def hear(file: scribe.Given, outcome: scribe.Outcome) -> None:
        heard.append(file.name)
        if len(heard) == 1:
            raise TargetError("the first of all")

    made = ReadyScribe((), hear, owners=False, verify=False)
    assert made.is_ready()
    room = place.Folder.open(os.fsencode(tmp_path))
    for at in range(scribe._FILES + 9):
        made.give(scribe.Given(file(b"/%d" % at), room, b"%d" % at, 4), b"data")
    sends = made._socket

    class Full:
        """Says once that there is no room."""

        def sendmsg(self, *words: Any) -> int:
            made._socket = sends
            raise BlockingIOError(errno.EAGAIN, "full")

    made._socket = Full()  # type: ignore[assignment]
    receive = made._receive

    def once() -> None:
        made._socket = sends
        receive()

    made._receive = once  # type: ignore[method-assign]
    made.close()
    assert len(heard) == len(os.listdir(tmp_path)) == scribe._FILES + 9
    room.close()


def test_closed_again_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ReadyScribe((), lambda *_: None, owners=False, verify=False)
    process = made._process
    ended = []

    class Interrupted:
        def end(self) -> None:
            process.end()
            ended.append(1)
            if ended.count(1) == 1:
                raise KeyboardInterrupt

    made._process = Interrupted()  # type: ignore[assignment]
    made.after(lambda: ended.append(2), lambda: ended.append(3))
    with pytest.raises(KeyboardInterrupt):
        made.close()
    made.close()
    assert ended == [2, 1, 1]


class Interruption:
    """KeyboardInterrupt before the instruction number ``at`` of the module that is looked at."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != scribe.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def run(self, room: Path) -> ExtractReport:
        fs, report = tree(6, 15, 300), ExtractReport()
        manifest = Manifest(os.fsencode(room / "m"), overwrite=False, resume=False)
        before = sys.gettrace()
        sys.settrace(self)
        try:
            extract(fs, [(fs.root(), os.fsencode(room / "out"))], manifest=manifest, report=report)
        finally:
            sys.settrace(before)
            manifest.keep()
        return report


def _interrupted(tmp_path: Path, number: int, at: int) -> Path:
    """The folder of a run that was interrupted at step ``at``, or sooner where a run (they differ) has fewer steps."""
    room = tmp_path / f"{number}-{at}"
    room.mkdir()
    interruption = Interruption(at)
    try:
        interruption.run(room)
    except KeyboardInterrupt:
        return room
    assert interruption.count < at, "the interruption was lost"
    return _interrupted(tmp_path, number, at * 9 // 10)


def test_a_signal_between_any_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it interrupts: no wrong digest, at most one file is not counted, no folder looks whole that is not."""
    monkeypatch.setattr(scribe, "_FILES", 8)
    monkeypatch.setattr(filewriter, "Scribe", ReadyScribe)
    (tmp_path / "all").mkdir()
    whole_run = Interruption()
    assert whole_run.run(tmp_path / "all").files == 90
    dice = random.Random(4)
    for number in range(25):
        room = _interrupted(tmp_path, number, dice.randrange(1, whole_run.count))
        told = (room / "m.partial").read_text() if (room / "m.partial").exists() else ""
        names = [line.split("  ") for line in told.splitlines()]
        for digest, path in names:
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
        count = whole(room / "out", tree(6, 15, 300)) if (room / "out").exists() else 0
        assert count - 1 <= len(names) <= count
        unfinished(room / "out", 15)


def test_a_process_that_stands_still_is_not_waited_for_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_at_once: list[scribe.Scribe]
) -> None:
    class Stopping(Filled):
        def open(self, entry: Entry, /) -> Reader:
            if entry.path == b"/d0/f90":
                begun_at_once[0]._process.process.send_signal(signal.SIGSTOP)
            if entry.path == b"/d0/f300":
                raise KeyboardInterrupt
            return super().open(entry)

    monkeypatch.setattr(scribe, "_PATIENCE", 0.2)
    with pytest.raises(KeyboardInterrupt):
        out(tree(1, 400, cls=Stopping), tmp_path / "out")
    assert whole(tmp_path / "out", tree(1, 400)) <= 300


def test_a_manifest_that_cannot_be_written_leaves_nothing_open(tmp_path: Path) -> None:
    class Full(Manifest):
        lines = 0

        def add(self, name: bytes, digests: Any) -> None:
            self.lines += 1
            if self.lines > 90:
                raise TargetError("no room for the manifest")
            super().add(name, digests)

    manifest = Full(os.fsencode(tmp_path / "m"), overwrite=False, resume=False)
    with pytest.raises(TargetError, match="no room for the manifest"):
        out(tree(200, 1), tmp_path / "out", manifest=manifest)
    manifest.keep()
    still = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
    assert [each for each in still if each.startswith(str(tmp_path))] == []


def _is_link(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BrowseError])
def test_an_early_end_counts_what_is_there(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever ends it: what was given is made, counted and in the manifest."""
    fs, report = tree(), ExtractReport()
    manifest = Manifest(os.fsencode(tmp_path / "m"), overwrite=False, resume=False)

    class Ears(NoProgress):
        calls = 0

        def advance(self, amount: int, /) -> None:
            self.calls += 1
            if self.calls > 150:
                raise error("enough")

    with contextlib.suppress(error):
        extract(
            fs,
            [(fs.root(), os.fsencode(tmp_path / "out"))],
            progress=Ears(),
            manifest=manifest,
            report=report,
        )
    manifest.keep()
    count = whole(tmp_path / "out", fs)
    assert 0 < count == report.files
    assert len((tmp_path / "m.partial").read_text().splitlines()) == count


@root_only
def test_a_full_target(tmp_path: Path) -> None:
    room = tmp_path / "small"
    room.mkdir()
    run_tool(["mount", "-t", "tmpfs", "-o", "size=2m", "none", room])
    try:
        fs, report = tree(5, 100, 20_000), ExtractReport()
        with pytest.raises(TargetError) as caught:
            extract(fs, [(fs.root(), os.fsencode(room / "out"))], report=report)
        assert "free" in caught.value.message or "No space left" in caught.value.message
        assert report.files == whole(room / "out", fs) > 0
        unfinished(room / "out", 100)
        run_tool(["mount", "-o", "remount,size=20m", room])
        report = out(fs, room / "out", ExtractOptions(resume=True))
        assert (report.files, report.findings, whole(room / "out", fs)) == (500, [], 500)
    finally:
        run_tool(["umount", room])


@root_only
def test_an_owner_that_cannot_be_given_is_told(tmp_path: Path) -> None:
    """As root that may not give files away; a setuid bit is not given then."""
    need_tool("setpriv")
    code = f"from tests.browse import test_scribe; test_scribe.without_chown({str(tmp_path / 'out')!r})"
    words = ["setpriv", "--bounding-set", "-chown", sys.executable, "-c", code]
    assert run_tool(words, cwd=Path(__file__).parents[2]).stdout.split() == [b"2", b"owner"]
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "a").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "b").st_mode) == 0o644


def without_chown(target: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        begin_at_once(monkeypatch)
        give_away(target)


def give_away(target: str) -> None:
    entries = [file(b"/a", mode=0o4755, uid=12345), file(b"/b")]
    report = out(FakeFs({b"/": entries}), Path(target), ExtractOptions(owners=True))
    sys.stdout.write(" ".join([str(report.files), *codes(report)]))


@root_only
def test_owners(tmp_path: Path) -> None:
    entries = [file(b"/a", mode=0o4755, uid=12345, gid=54321), file(b"/b", mode=0o2711, uid=7)]
    out(FakeFs({b"/": entries}), tmp_path / "out", ExtractOptions(owners=True))
    made = [os.stat(tmp_path / "out" / name) for name in "ab"]
    assert [(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in made] == [
        (12345, 54321, 0o4755),
        (7, 0, 0o2711),
    ]


@pytest.mark.parametrize("files", [0, 1])
def test_thousands_of_folders_need_few_descriptors(tmp_path: Path, files: int) -> None:
    """A folder is open until what is before it is made."""
    fs = tree(2000, files)
    fs.tree[b"/"].insert(0, file(b"/first"))
    fs.data[b"/first"] = b"first"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 130, hard))
    try:
        report = out(fs, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.directories, report.files, report.findings) == (2001, 2000 * files + 1, [])


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """At once: what it was given and has not begun is not made any more."""
    code = f"from tests.browse import test_scribe; test_scribe.die_early({str(tmp_path)!r})"
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, stdout=subprocess.PIPE, check=False, cwd=Path(__file__).parents[2])
    pid = int(ran.stdout)
    assert _runs(pid)
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 300
    while _runs(pid):
        assert time.monotonic() < deadline, "it goes on alone"
        time.sleep(0.01)
    assert os.listdir(tmp_path) == []


def die_early(target: str) -> None:
    """Stop the process, give it files, and be killed."""
    made = ReadyScribe((), lambda *_: None, owners=False, verify=False)
    assert made.is_ready()
    made._process.process.send_signal(signal.SIGSTOP)
    room = place.Folder.open(os.fsencode(target))
    for at in range(scribe._FILES + 1):
        made.give(scribe.Given(file(b"/%d" % at), room, b"%d" % at, 4), b"data")
    sys.stdout.write(str(made._process.process.pid))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
