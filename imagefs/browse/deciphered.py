"""The content of a file of which every 512 bytes are encrypted, each under a number that its piece tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from imagefs.block.joined import LostReader, lost_in
from imagefs.block.sectorcipher import DecryptedReader, SectorCipher
from imagefs.block.views import SliceReader, clamp, merged, moved
from imagefs.browse.content import MappedReader, Piece, damaged
from imagefs.interfaces import Extent, Reader

_UNIT = 512


@dataclass(frozen=True, slots=True)
class CodedPiece(Piece):
    """``sector`` is the number of its first 512 bytes; nothing of a hole is encrypted."""

    sector: int


class DecipheredReader(MappedReader):
    """A file whose ``pieces`` lie on ``reader``, encrypted. What was not captured there, or could not be read, is
    zeros here, and no garbage; zeros that were captured are no zeros here."""

    def __init__(
        self, reader: Reader, size: int, pieces: list[Piece], cipher: SectorCipher, *, label: str
    ) -> None:
        super().__init__(reader, size, pieces, label=label)
        self._cipher = cipher

    def lies_on(self, reader: Reader | None) -> bool:
        return False

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return merged(self._extents(self._open_reader(), offset, clamp(self.size, offset, length)))

    def _told(self, reader: Reader, piece: Piece, skip: int, length: int) -> Iterator[Extent]:
        first = skip // _UNIT * _UNIT
        told = self._plain(reader, piece, first, skip + length).extents(skip - first, length)
        return moved(told, piece.start + first)

    def _read(self, reader: Reader, piece: Piece, skip: int, length: int) -> bytes:
        first = skip // _UNIT * _UNIT
        data = self._plain(reader, piece, first, skip + length).read_at(skip - first, length)
        if len(data) < length:
            raise damaged(self.label, piece.start + skip, "they lie past the end of the volume")
        return data

    def _plain(self, reader: Reader, piece: Piece, first: int, end: int) -> LostReader:
        """The bytes of a piece from ``first`` on, which is whole units, to at least ``end``."""
        assert isinstance(piece, CodedPiece)
        assert piece.source is not None
        start, size = piece.source + first, -(-end // _UNIT) * _UNIT - first
        plain = DecryptedReader(
            reader,
            self._cipher,
            start=start,
            size=size,
            sector=piece.sector + first // _UNIT,
            sector_size=_UNIT,
        )
        return LostReader(plain, partial(lost_in, SliceReader(reader, start, size), _UNIT))
