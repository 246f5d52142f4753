"""The one place that touches FUSE: loads a binding, states the mount options, runs the loop.

mfusepy on libfuse 3 is preferred, then mfusepy on libfuse 2, then fusepy (libfuse 2). Both libraries
read ``FUSE_LIBRARY_PATH`` once, when they are imported, and mfusepy takes libfuse 2 where both are
installed; so this module sets the variable just before the import. It is the only code below
``cli`` that touches the environment, and a value that is already there wins.

Knows nothing of trees and readers.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from imagefs.errors import MountError
from mounter.loop import RequestLoop, can_loop
from mounter.requests import (
    ENCODING,
    KEEP_FLEETING_SECONDS,
    KEEP_MISSING_SECONDS,
    KEEP_SECONDS,
    Requests,
)
from mounter.writing import WritableRequests, direct_files

SUBTYPE = "imagefs"
_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")
_INSTALL = "install it with `apt install fuse3` (Debian, Ubuntu) or `dnf install fuse3` (Fedora)"
_CAP_READDIRPLUS_AUTO = 1 << 14
#: Requests that our own loop works on at once; libfuse's own is best with one (ARCHITECTURE.md).
_THREADS = 2


@dataclass(slots=True)
class Binding:
    """A loaded binding, the version of libfuse under it, and the loop that serves a mount, if it is ours."""

    module: ModuleType
    libfuse: tuple[int, int]
    loop: RequestLoop | None = None

    @property
    def name(self) -> str:
        return f"{self.module.__name__} on libfuse {self.libfuse[0]}.{self.libfuse[1]}"


def load(prefer: str = "") -> Binding:
    """The binding to use: ``prefer`` ("mfusepy" or "fusepy") alone if given, else the best there is."""
    problems = []
    for name in [prefer] if prefer else ["mfusepy", "fusepy"]:
        try:
            module = _import_mfusepy() if name == "mfusepy" else importlib.import_module("fuse")
            return Binding(module, _libfuse_version(module))
        except ImportError:
            problems.append(f"{name} is not installed")
        except (OSError, AttributeError) as error:  # AttributeError: another module called fuse
            problems.append(f"{name}: {error}")
    if any("libfuse" in problem for problem in problems):
        raise MountError("libfuse is not installed, so nothing can be mounted", hint=_INSTALL)
    raise MountError(
        f"no FUSE binding for Python is installed ({'; '.join(problems)})", hint="pip install mfusepy"
    )


def _import_mfusepy() -> ModuleType:
    if "FUSE_LIBRARY_PATH" not in os.environ:
        path = _find_libfuse3()
        if path:
            os.environ["FUSE_LIBRARY_PATH"] = path
    return importlib.import_module("mfusepy")


def _find_libfuse3() -> str | None:
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return ctypes.util.find_library("fuse3")  # runs programs, which takes longer than the mount


def _libfuse_version(module: ModuleType) -> tuple[int, int]:
    number = module._libfuse.fuse_version()  # 29 is 2.9, 314 is 3.14
    return (number // 10, number % 10) if number < 100 else (number // 100, number % 100)


def serve(
    binding: Binding,
    operations: Any,
    directory: bytes,
    *,
    fsname: str,
    allow_other: bool = False,
    threads: int = 0,
    writable: bool = False,
) -> int:
    """Mount on ``directory`` and answer the kernel until the mount ends; libfuse's code, 0 if all went well.

    ``threads`` is how many requests are worked on at once, 0 what was measured to be best; libfuse's own
    loop before 3.12 knows only one and any number. ``writable`` asks for the operations of
    mounter/writing.py. Signals are left as they are (mounter/signals.py).
    """
    keep = (
        KEEP_FLEETING_SECONDS if operations.fleeting else KEEP_SECONDS
    )  # libfuse's own loop has one for all
    options: dict[str, Any] = {
        "foreground": True,
        "nothreads": threads < 2,
        "ro": not writable,
        "nosuid": True,
        "nodev": True,
        "noexec": True,
        "fsname": escape(fsname),
        "subtype": SUBTYPE,
        "allow_other": allow_other,
        "default_permissions": allow_other,
        "kernel_cache": True,
        "use_ino": True,
        "entry_timeout": keep,
        "attr_timeout": keep,
        "negative_timeout": min(keep, KEEP_MISSING_SECONDS),
    }
    if binding.libfuse < (3, 0):
        options["atomic_o_trunc"] = writable  # as libfuse 3 has it: O_TRUNC comes with the open
        operations = _callable(binding, operations)
    # both libraries give SIGINT its default action first, for libfuse to take; it is ours
    binding.module.signal = lambda number, handler: handler  # type: ignore[attr-defined]
    fuse = binding.module.FUSE
    if binding.libfuse >= (3, 0) and can_loop(binding.module._libfuse):
        requests = WritableRequests(operations) if writable else Requests(operations)
        binding.loop = RequestLoop(binding.module._libfuse, requests, threads=threads or _THREADS)
        binding.module.fuse_main_real = binding.loop.main  # type: ignore[attr-defined]
        fuse, operations = all_attributes(fuse), _OnlyInit(operations)
    else:
        if threads > 1 and binding.libfuse >= (3, 12):
            options["max_threads"] = threads
        fuse = direct_files(fuse) if writable else fuse
    try:
        fuse(operations, directory.decode(ENCODING), encoding=ENCODING, **options)
    except RuntimeError as error:
        return int(error.args[0]) if error.args and isinstance(error.args[0], int) else 1
    return 0


class _OnlyInit:
    """What the binding may call where our own loop answers all else."""

    def __init__(self, operations: Any) -> None:
        self.init = operations.init


def all_attributes(fuse_class: Any) -> Any:
    """A subclass of mfusepy's FUSE that agrees on attributes with every buffer of names (READDIRPLUS): left
    to itself the kernel takes them with the first buffer of a folder only."""

    class AttributesFUSE(fuse_class):  # type: ignore[misc]
        def _init(self, connection: Any, config: Any) -> None:
            connection.contents.want &= ~_CAP_READDIRPLUS_AUTO
            super()._init(connection, config)

    return AttributesFUSE


def stopper(binding: Binding) -> Callable[[], None]:
    """What makes the loop end, libfuse's own when it next wakes. To be asked for while a request is answered."""
    if binding.loop is not None:
        return binding.loop.stop
    library: Any = binding.module._libfuse
    handle = ctypes.c_void_p(library.fuse_get_context().contents.fuse)
    return lambda: library.fuse_exit(handle)


def escape(fsname: str) -> str:
    """``fsname`` as an option: a comma ends one, and the mount table is read by the line."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in fsname)
    plain = plain.encode("utf-8", "replace")[:255].decode("utf-8", "ignore") or SUBTYPE
    escaped = plain.replace("\\", "\\\\").replace(",", "\\,")
    return escaped.encode("utf-8").decode(ENCODING)


def _callable(binding: Binding, operations: Any) -> Any:
    """The same operations as the object that fusepy calls: ``operations("read", …)``."""
    if binding.module.__name__ != "fuse":
        return operations

    class Called(type(operations)):  # type: ignore[misc]
        def __call__(self, name: str, *args: Any) -> Any:
            return getattr(self, name)(*args)

    operations.__class__ = Called
    return operations
