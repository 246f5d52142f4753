"""One regular file of this machine made whole: content, owner, mode, times; then it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imagefs.browse.copying import Ranges, copy, copy_hashed, digests_of, from_the_medium, new_hashes
from imagefs.browse.dress import Dresser
from imagefs.browse.names import printable
from imagefs.browse.place import Folder, Refused
from imagefs.interfaces import Entry, Reader


class Maker:
    """Makes files with digests by ``algorithms``; ``verify`` reads back what was written."""

    def __init__(
        self, dresser: Dresser, algorithms: Sequence[str], advance: Callable[[int], None], *, verify: bool
    ) -> None:
        self._dresser = dresser
        self._algorithms = algorithms
        self._advance = advance
        self._verify = verify

    def make(
        self, entry: Entry, reader: Reader, runs: Ranges, folder: Folder, name: bytes, *, replace: bool
    ) -> list[str]:
        """``name`` with the bytes of ``reader``, of which ``runs`` (offset, length) hold data; the digests of it."""
        digests: list[str] = []
        with folder.new_file(name, overwrite=replace) as fd:
            if self._algorithms:
                hashes = new_hashes(self._algorithms)
                copy_hashed(reader, fd, runs, self._advance, hashes)
                digests = [each.hexdigest() for each in hashes]
            else:
                copy(reader, fd, runs, self._advance)
            self._dresser.file(entry, fd)
            if self._verify:
                from_the_medium(fd)
                if digests_of(fd, self._algorithms) != digests:
                    where = printable(folder.path_of(name))
                    raise Refused("verify", f"'{where}' reads back different from what was written")
        return digests
