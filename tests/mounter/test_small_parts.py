"""The mount table, records, the directory, requirements and options, without mounting anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import IntegrityError, MountError
from mounter import background, binding, mountpoint, mounttable, requirements
from mounter.background import Readiness, mount_background
from mounter.holders import holders
from mounter.state import MountRecord, MountStates, process_start
from mounter.stderr import CapturedStderr
from mounter.unmount import list_mounts

RECORD = MountRecord("/mnt/a", "an image", os.getpid(), process_start(os.getpid()), 5, "/log", 3, (1, 2))


def test_the_mount_table_agrees_with_findmnt() -> None:
    listed = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, timeout=600, check=True)
    targets = [line.decode("unicode_escape") for line in listed.stdout.splitlines()]
    assert sorted(entry.directory for entry in mounttable.mounts()) == sorted(targets)


def test_a_line_with_escapes_and_optional_fields() -> None:
    line = rb"36 35 0:44 / /mnt/a\040b\134c rw,ro shared:1 master:2 - fuse.imagefs x\011y ro,user_id=7,group_id=1"
    mounted = mounttable._parse(line)
    assert mounted == mounttable.Mounted("/mnt/a b\\c", "fuse.imagefs", "x\ty", "0:44", 7)
    assert mounted.is_ours


@given(st.binary(max_size=80))
def test_any_line_is_parsed_or_passed_over(line: bytes) -> None:
    found = mounttable._parse(line)
    assert found is None or isinstance(found.directory, str)


def test_resolving_follows_links_but_keeps_the_last_part(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real = os.path.realpath(tmp_path / "real")
    assert mounttable.resolve(str(tmp_path / "link" / "new")) == real + "/new"
    assert mounttable.resolve(str(tmp_path / "link")) == real
    assert mounttable.resolve("/proc/") == "/proc"


def test_records_come_back_as_written(tmp_path: Path) -> None:
    states = MountStates(tmp_path / "a" / "b")
    odd = replace(RECORD, directory=os.fsdecode(b"/mnt/\xff\n"), made=None, pid=1)
    for record in (RECORD, odd):
        states.write(record)
        assert states.read(record.directory) == record
    assert sorted(states.all(), key=lambda record: record.pid) == [odd, RECORD]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    states.remove(odd.directory)
    states.remove(odd.directory)
    assert list(states.all()) == [RECORD]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff", b'{"directory": 5}', b'{"directory": "/x"}'],
)
def test_a_file_that_is_no_record_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert list(MountStates(tmp_path).all()) == []
    assert list_mounts(tmp_path) == []


@pytest.mark.parametrize("made", [5, [1], ["a", "b"], "ab", {"a": 1}])
@pytest.mark.parametrize("field", ["made", "pid"])
def test_a_record_with_odd_values_is_passed_over(tmp_path: Path, field: str, made: object) -> None:
    if field == "pid" and made == 5:
        made = "5"
    states = MountStates(tmp_path)
    states.write(RECORD)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: made}))
    assert states.read(RECORD.directory) is None


def test_a_pid_that_came_round_again_is_not_the_mount() -> None:
    assert RECORD.alive()
    assert not replace(RECORD, started=RECORD.started + 1).alive()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait(300)
    assert process_start(child.pid) == -1


def test_only_its_own_record_is_removed(tmp_path: Path) -> None:
    states = MountStates(tmp_path)
    states.write(replace(RECORD, pid=1))
    states.remove_own(RECORD)
    assert states.read(RECORD.directory) is not None
    states.write(RECORD)
    states.remove_own(RECORD)
    assert states.read(RECORD.directory) is None


def test_the_directory_is_made_and_removed_only_then(tmp_path: Path) -> None:
    point = mountpoint.prepare(str(tmp_path / "new"), None)
    assert (tmp_path / "new").is_dir()
    point.remove()
    assert not (tmp_path / "new").exists()
    point.remove()
    (tmp_path / "old").mkdir()
    mountpoint.prepare(str(tmp_path / "old"), None).remove()
    assert (tmp_path / "old").is_dir()


def test_a_directory_that_took_its_place_is_not_removed(tmp_path: Path) -> None:
    point = mountpoint.prepare(str(tmp_path / "new"), None)
    (tmp_path / "new").rename(tmp_path / "moved")
    (tmp_path / "new").mkdir()
    point.remove()
    assert (tmp_path / "new").is_dir()


def test_a_directory_in_use_again_is_not_removed(tmp_path: Path) -> None:
    point = mountpoint.prepare(str(tmp_path / "new"), None)
    (tmp_path / "new" / "file").write_bytes(b"")
    point.remove()
    assert (tmp_path / "new" / "file").exists()


def test_places_that_cannot_be_mounted_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    expected = {
        "file": "is not a directory",
        "full": "is not empty",
        "none/new": "does not exist",
        "file/new": "cannot make",
    }
    for name, words in expected.items():
        with pytest.raises(MountError, match=words):
            mountpoint.prepare(str(tmp_path / name), None)
    with pytest.raises(MountError, match="already a mount point"):
        mountpoint.prepare("/proc", None)


def test_no_fuse_device_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="is missing") as caught:
        requirements.check(allow_other=False, device=tmp_path / "fuse")
    assert "modprobe fuse" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "permitted"),
    [
        ("user_allow_other\n", True),
        ("# a\n  user_allow_other  \nmount_max = 5", True),
        ("#user_allow_other\n", False),
        ("user_allow_other_x\n", False),
        ("", False),
    ],
)
def test_user_allow_other_is_a_line_by_itself(tmp_path: Path, text: str, permitted: bool) -> None:
    (tmp_path / "fuse.conf").write_text(text)
    assert requirements.permits_allow_other(tmp_path / "fuse.conf") is permitted


def test_without_a_fuse_conf_it_is_not_permitted(tmp_path: Path) -> None:
    assert not requirements.permits_allow_other(tmp_path / "fuse.conf")


def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_what_a_user_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    not_root(monkeypatch)
    device, config = tmp_path / "fuse", tmp_path / "fuse.conf"
    device.write_bytes(b"")
    with pytest.raises(MountError, match="does not say user_allow_other"):
        requirements.check(allow_other=True, device=device, config=config)
    requirements.check(allow_other=False, device=device, config=config)
    monkeypatch.setattr(mounttable, "_PROGRAMS", str(tmp_path))
    with pytest.raises(MountError, match="fusermount3 is missing") as caught:
        requirements.check(allow_other=False, device=device, config=config)
    assert "apt install fuse3" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("disk", "disk"),
        ("a,ro=b", "a\\,ro=b"),
        ("back\\slash", "back\\\\slash"),
        ("", "imagefs"),
        ("a\nb\x1b", "a?b?"),
    ],
)
def test_fsname_cannot_become_another_option(name: str, option: str) -> None:
    assert binding.escape(name) == option


@given(st.text(max_size=400))
def test_any_fsname_is_one_bounded_option(name: str) -> None:
    raw = binding.escape(name).encode("latin-1")
    assert 0 < len(raw) <= 510
    assert b"\n" not in raw
    assert b"," not in raw.replace(b"\\\\", b"").replace(b"\\,", b"")
    raw.decode("utf-8")


def test_bindings_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding.importlib, "import_module", _missing)
    with pytest.raises(MountError, match="mfusepy is not installed; fusepy is not installed"):
        binding.load()
    with pytest.raises(MountError, match=r"\(fusepy is not installed\)"):
        binding.load("fusepy")


def test_a_missing_libfuse_is_a_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> object:
        raise OSError("Unable to find libfuse")

    monkeypatch.setattr(binding.importlib, "import_module", no_library)
    with pytest.raises(MountError, match="libfuse is not installed") as caught:
        binding.load()
    assert "apt install fuse3" in caught.value.hint


def _missing(name: str) -> object:
    raise ModuleNotFoundError(name)


def test_the_users_own_choice_of_library_wins() -> None:
    script = "from mounter import binding; print(binding.load('mfusepy').libfuse[0])"
    chosen = {**os.environ, "FUSE_LIBRARY_PATH": "libfuse.so.2"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=chosen, capture_output=True, text=True, timeout=600, check=False
    )
    if "libfuse.so.2" in done.stderr:
        pytest.skip("needs libfuse 2")
    assert done.stdout == "2\n", done.stderr


def test_stderr_is_held_and_given_back() -> None:
    script = (
        "import os\nfrom mounter.stderr import CapturedStderr\n"
        "with CapturedStderr() as held:\n"
        "    os.write(2, b'fuse: no such thing\\nfusermount3: never\\n')\n"
        "    held.restore()\n"
        "    os.write(2, b'after')\n"
        "print(held.text())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=600, check=True)
    assert done.stdout == b"no such thing; never\n"
    assert done.stderr == b"after"


def test_without_a_stderr_nothing_breaks() -> None:
    script = (
        "import os\nos.close(2)\nfrom mounter.stderr import CapturedStderr\n"
        "with CapturedStderr() as held: pass\nprint(repr(held.text()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=600, check=True)
    assert done.stdout == b"''\n"
    assert isinstance(CapturedStderr().text(), str)


def reporting(said: str, *, code: int = 0, words: str = "") -> Callable[[Readiness], int]:
    """What serves a mount, in so far as its starter sees it."""

    def serve(readiness: Readiness) -> int:
        os.write(2, words.encode())
        os.write(readiness._descriptor, said.encode())
        return code

    return serve


def test_readiness_over_the_pipe(tmp_path: Path) -> None:
    ready = '{"pid": 1, "image": "a", "notes": ["n"]}'
    started = mount_background(reporting(ready), log=tmp_path / "log")
    assert started.pid > 1
    assert (started.image, started.notes) == ("a", ("n",))
    report = '{"error": {"message": "m", "hint": "h", "code": "integrity", "exit": 21}}'
    with pytest.raises(MountError, match=r"^m$") as caught:
        mount_background(reporting(report), log=tmp_path / "log")
    assert (caught.value.exit_code, caught.value.code, caught.value.hint) == (21, "integrity", "h")
    with pytest.raises(MountError, match="exit code 3 before it was ready: last words"):
        mount_background(reporting("", code=3, words="first\nlast words\n"), log=tmp_path / "log")
    with pytest.raises(MountError, match="cannot start"):
        mount_background(reporting(ready), log=tmp_path / "none" / "log")


def test_the_process_of_a_mount_has_nothing_of_its_starter(tmp_path: Path) -> None:
    """Not its terminal's session, its descriptors or its output, and it ends without its clean-up."""
    left, other = os.pipe()

    def serve(readiness: Readiness) -> int:
        found = sorted(os.listdir("/proc/self/fd"), key=int)
        os.write(2, f"{os.getsid(0) == os.getpid()} {found[:3]} {len(found)}\n".encode())
        sys.exit("a way out that would run what the starter registered")

    with pytest.raises(MountError, match="exit code 1 before"):
        mount_background(serve, log=tmp_path / "log")
    os.close(left)
    os.close(other)
    said = (tmp_path / "log").read_text()
    assert said.startswith("True ['0', '1', '2'] 5\n"), "the pipe, and the folder that is listed"


def test_a_large_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_MAX_LOG", 10)
    (tmp_path / "a.log").write_bytes(b"x" * 11)
    ready = '{"image": "a", "notes": []}'
    mount_background(reporting(ready, words="new"), log=tmp_path / "a.log")
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 11
    assert (tmp_path / "a.log").read_text() == "new"
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_readiness_reports_once_and_survives_a_starter_that_is_gone() -> None:
    reading, writing = os.pipe()
    readiness = Readiness(writing)
    readiness.failed(IntegrityError("bad", hint="way out"))
    readiness.ready("/image")
    assert json.loads(os.read(reading, 1000))["error"] == {
        "message": "bad",
        "hint": "way out",
        "code": "integrity",
        "exit": 21,
    }
    os.close(reading)
    reading, writing = os.pipe()
    os.close(reading)
    Readiness(writing).ready("/image")


def test_holders_are_found_by_file_folder_and_mapping(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4096)
    (tmp_path / "mntx").mkdir()
    script = (
        "import mmap, os, sys\n"
        "f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close(); print('on', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        held.stdout.readline()
        assert any(f"(pid {held.pid})" in who for who in holders(str(tmp_path)))
        assert not any(f"(pid {held.pid})" in who for who in holders(str(tmp_path / "fil")))
        held.communicate()
    assert not any(f"(pid {held.pid})" in who for who in holders(str(tmp_path)))
