"""BitLocker through libbde: the only module that knows pybde, which is in the extra ``inner``.

Runs in a worker process. Held against the images and digests of cryptsetup's tests (``bitlk-images``): AES-CBC with
and without diffuser, AES-XTS, To Go, sectors of 4 KiB, passwords, recovery keys, startup keys, clear keys. A volume
that was only partly encrypted is refused by the library, and of several recovery keys it tries the first alone.
"""

from __future__ import annotations

import re
from typing import Any

from imagefs.block.views import LibraryFile, clamp
from imagefs.errors import BrowseError, Locked
from imagefs.interfaces import Reader

#: Bits of a protector's type, and what it takes; the TPM takes what no image has.
_PROTECTORS = {
    0x2000: "password",
    0x0800: "recovery key",
    0x0200: "startup key file (.BEK)",
    0x0500: "TPM and PIN",
    0x0100: "TPM",
}
_CLEAR = 0
_RECOVERY = re.compile(r"\s*(\d{6}(?:-\d{6}){7})\s*")
_LIBRARY_ERRORS = (OSError, ValueError, MemoryError, OverflowError, RuntimeError)
_MAX_PROTECTORS = 64


class BitLocker:
    """One encrypted volume."""

    kind = "bitlocker"
    case_insensitive = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._module = _library()

    def protectors(self) -> list[str]:
        """What opens it, in words, recovery keys with their id; empty where a clear key does."""
        _, volume = self._open()
        found = []
        for i in range(min(volume.number_of_key_protectors, _MAX_PROTECTORS)):
            protector = volume.get_key_protector(i)
            if protector.type == _CLEAR:
                return []
            word = _PROTECTORS.get(protector.type, "")
            key_id = f" {str(protector.identifier).upper()}" if word == "recovery key" else ""
            found.append(f"{word}{key_id}" if word else f"a protector of type {protector.type:#x}")
        return found

    def unlock(self, secret: list[bytes], path: str) -> Reader:
        """The plain volume. ``secret`` is a password or recovery key in UTF-8, alone in a list, ``path`` a startup key
        instead; neither where a clear key will do. Raises Locked."""
        file, volume = self._open(secret[0], path)
        if volume.is_locked():
            raise Locked(self._why_locked(secret[0]))
        return _Plain(file, volume)

    def _why_locked(self, secret: bytes) -> str:
        recovery = [each for each in self.protectors() if each.startswith(_PROTECTORS[0x0800])]
        if len(recovery) > 1 and _RECOVERY.fullmatch(secret.decode("utf-8", "replace")):
            return (
                f"the recovery key is wrong, or not the first of {len(recovery)}: only {recovery[0]} is tried"
            )
        return "the password, recovery key or startup key is wrong"

    def close(self) -> None:
        pass

    def _open(self, secret: bytes = b"", path: str = "") -> tuple[LibraryFile, Any]:
        file, volume = LibraryFile(self._reader), self._module.volume()
        try:
            if path:
                volume.read_startup_key(path)
            elif secret:
                _give(volume, secret.decode())
        except _LIBRARY_ERRORS as error:
            raise Locked(f"what was given cannot be a key of BitLocker ({_said(error)})") from error
        try:
            volume.open_file_object(file)
        except _LIBRARY_ERRORS as error:
            if file.error is not None:
                raise file.error from None
            if "missing" in str(error) and "volume master key" in str(error):
                raise Locked("it has no protector that takes what was given") from error
            raise BrowseError(f"the BitLocker volume cannot be opened ({_said(error)})") from error
        return file, volume


def _library() -> Any:
    try:
        import pybde
    except ImportError as error:
        raise BrowseError(
            "it is BitLocker, for which libbde-python is not installed",
            hint="install it with `make install EXTRAS=inner`, or `pip install 'imagefs[inner]'`",
        ) from error
    return pybde


def _give(volume: Any, secret: str) -> None:
    recovery = _RECOVERY.fullmatch(secret)
    if recovery:
        volume.set_recovery_password(recovery[1])
    else:
        volume.set_password(secret)


def _said(error: BaseException) -> str:
    """The last part of what the library says, which is the innermost reason, without its function's name."""
    parts = [part for part in str(error).split(". ") if "unable to" not in part] or [str(error)]
    return parts[0].partition(": ")[2].strip(" .")[:200] or str(error)[:200]


class _Plain:
    """The decrypted bytes; one read at a time, as all of a worker is."""

    def __init__(self, file: LibraryFile, volume: Any) -> None:
        self._file = file
        self._volume = volume
        self.size = int(volume.size)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return read_library(self._file, self._volume, offset, clamp(self.size, offset, length))

    def close(self) -> None:
        pass


def read_library(file: LibraryFile, thing: Any, offset: int, count: int) -> bytes:
    """``count`` bytes of a volume of libyal's; what its Reader raised comes through. Raises BrowseError."""
    file.error = None
    out = []
    while count:
        try:
            data = bytes(thing.read_buffer_at_offset(count, offset))
        except _LIBRARY_ERRORS as error:
            if file.error is not None:
                raise file.error from None
            raise BrowseError(
                f"bytes from {offset} on cannot be read ({_said(error)})", offset=offset
            ) from error
        if not data or len(data) > count:
            raise BrowseError(f"bytes from {offset} on cannot be read", offset=offset)
        out.append(data)
        offset += len(data)
        count -= len(data)
    return b"".join(out)
