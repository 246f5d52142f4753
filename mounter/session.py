"""The life of one mount in the process that serves it: from the checks to the last close.

Starting it in the background is mounter/background.py, ending it from outside mounter/unmount.py.
Knows Readers, not images; prints nothing and reads no environment.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imagefs.errors import MountError
from mounter import binding, mountpoint, mounttable, native, requirements
from mounter.mountpoint import MountPoint
from mounter.native import Natives, NativeWish
from mounter.operations import MountOperations
from mounter.signals import Ending, ending_signals
from mounter.state import MountRecord, MountStates, NativeMount, process_start
from mounter.stderr import CapturedStderr
from mounter.tree import MountTree
from mounter.writing import WritableOperations

if TYPE_CHECKING:
    from mounter.historytree import HistoryTree

#: What fuse_main of libfuse 3 answers after a signal, and sometimes when it was unmounted under it.
_LOOP_ENDED = 8
_READ_AHEAD_KB = 1024
_STATUS_DELAY = 0.5


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. ``image``, ``overlay`` and ``log`` are only remembered, in ``state_dir`` if there is one.

    ``threads``: requests worked on at once, 0 for the best number. ``binding``: "mfusepy" or "fusepy",
    else the best one. ``natives`` are set up as soon as the mount answers.
    """

    image: str = ""
    allow_other: bool = False
    threads: int = 0
    binding: str = ""
    state_dir: Path | None = None
    log: str = ""
    overlay: str = ""
    natives: tuple[NativeWish, ...] = ()


def run_foreground(
    tree: MountTree | HistoryTree,
    fsname: str,
    directory: str,
    options: MountOptions,
    *,
    log: Callable[[str], None],
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Mount and serve until unmounted or told to end by SIGINT, SIGTERM or SIGHUP.

    Returns the number of that signal, 0 when it was unmounted. ``on_ready`` is called (on another
    thread) once the mount answers. Closes ``tree`` in any case; raises MountError if
    nothing could be mounted, leaving nothing behind.
    """
    try:
        requirements.check(allow_other=options.allow_other)
        loaded = binding.load(options.binding)
        states = MountStates(options.state_dir) if options.state_dir else None
        native.undo_dead(directory, states)
        point = mountpoint.prepare(directory, states)
        natives = Natives(options.natives, point.directory)
        try:
            natives.prepare()
            session = _Session(tree, point, options, natives, states=states, log=log, on_ready=on_ready)
            return session.run(loaded, fsname)
        finally:
            natives.forget()
            point.remove()
    finally:
        tree.close()


class _Session:
    """One mount being served; lives from just before the mount to just after its end."""

    def __init__(
        self,
        tree: MountTree | HistoryTree,
        point: MountPoint,
        options: MountOptions,
        natives: Natives,
        *,
        states: MountStates | None,
        log: Callable[[str], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._directory = point.directory
        self._options = options
        self._states = states
        self._log = log
        self._on_ready = on_ready
        self._writable = tree.writable
        operations = WritableOperations if tree.writable else MountOperations
        self._operations = operations(tree, log=log, on_error=self._count, on_init=self._begin)
        self._record = MountRecord(
            directory=point.directory,
            image=options.image,
            pid=os.getpid(),
            started=process_start(os.getpid()),
            since_ns=time.time_ns(),
            log=options.log,
            made=point.made,
            overlay=options.overlay,
        )
        self._natives = natives
        self._failure: MountError | None = None
        self._ending = Ending()
        self._stderr = CapturedStderr()
        self._status_lock = threading.Lock()
        self._status_due = False
        self._started = False
        self._ended = False

    def run(self, loaded: binding.Binding, fsname: str) -> int:
        self._loaded = loaded
        try:
            with ending_signals() as self._ending, self._stderr:
                code = binding.serve(
                    loaded,
                    self._operations,
                    os.fsencode(self._directory),
                    fsname=fsname,
                    allow_other=self._options.allow_other,
                    threads=self._options.threads,
                    writable=self._writable,
                )
        finally:
            self._end()
        if self._failure is not None:
            raise self._failure
        if not self._started:
            raise self._refused(code)
        if code not in (0, _LOOP_ENDED):
            self._log(f"the FUSE loop ended with code {code}")
        return self._ending.signal

    def _begin(self) -> None:
        """From the dispatcher, before the first request: what touches the mount must be elsewhere."""
        self._started = True
        stop = binding.stopper(self._loaded)
        self._ending.arm(lambda: self._stop(stop))
        self._stderr.restore()
        threading.Thread(target=self._announce, name="ready", daemon=True).start()

    def _stop(self, stop: Callable[[], None]) -> None:
        """Asked to end: what is mounted on the mount goes first, as long as it is served."""
        self._natives.undo(self._log)
        stop()

    def _announce(self) -> None:
        try:
            os.stat(self._directory)  # comes back when the mount answers
        except OSError as error:
            self._log(f"the mount on {self._directory} does not answer: {error.strerror}")
            return
        _widen_read_ahead(self._directory)
        self._publish()
        if not self._attach_natives():
            return
        self._log(f"mounted {self._options.image or 'a disk'} on {self._directory}")
        self._on_ready()

    def _attach_natives(self) -> bool:
        """False when one of them failed; then the whole mount ends with that error."""
        try:
            self._natives.attach(self._remember)
        except MountError as error:
            self._failure = error
            self._natives.undo(self._log)
            with contextlib.suppress(OSError):  # gone already
                mounttable.detach(self._directory, lazy=True)
            return False
        return True

    def _remember(self, natives: tuple[NativeMount, ...]) -> None:
        self._record = replace(self._record, natives=natives)
        self._publish()

    def _count(self, errors: int) -> None:
        """A request failed: say so in the state folder, but not once per request."""
        with self._status_lock:
            if self._status_due or self._states is None:
                return
            self._status_due = True
        timer = threading.Timer(_STATUS_DELAY, self._publish)
        timer.daemon = True
        timer.start()

    def _publish(self) -> None:
        with self._status_lock:
            self._status_due = False
            if self._states is None or self._ended:
                return
            try:
                self._states.write(replace(self._record, errors=self._operations.errors))
            except OSError as error:
                self._log(f"cannot write to the state folder {self._states.folder}: {error.strerror}")

    def _end(self) -> None:
        self._natives.undo(self._log)
        self._operations.close_files()
        with self._status_lock:
            self._ended = True
            if self._states is not None:
                self._states.remove_own(self._record)
        if self._started:
            self._log(f"unmounted {self._directory}, {self._operations.errors} errors")

    def _refused(self, code: int) -> MountError:
        said = self._stderr.text() or f"libfuse gave up with code {code}"
        return MountError(f"cannot mount on {self._directory}: {said}", path=self._directory)


def _widen_read_ahead(directory: str) -> None:
    """Let the kernel ask for 1 MiB at a time: nearly twice the sequential speed. Only root may."""
    mounted = mounttable.find(directory)
    if mounted is None:
        return
    try:
        Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(_READ_AHEAD_KB))
    except OSError:  # not root, or no such knob in this kernel: it is a matter of speed only
        return
