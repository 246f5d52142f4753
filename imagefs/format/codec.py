"""Chunk frames: a 64-byte header and the stored bytes, one zstd frame or raw (FORMAT.md, 3).

The only file that knows zstandard. Compressors are kept per thread, as the library asks.
"""

from __future__ import annotations

import struct
import threading
import zlib
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from imagefs.errors import FormatError, IntegrityError
from imagefs.format.fields import MAX_CHUNK_SIZE, check, check_crc
from imagefs.format.header import CODEC_RAW, CODEC_ZSTD

FRAME_MAGIC = b"CHNK"
FRAME = struct.Struct("<4sBBHQII32sI")
FRAME_SIZE = FRAME.size + 4
MIN_LEVEL, MAX_LEVEL = 1, 19
#: How far back zstd's lower levels look.
_USUAL_WINDOW = 2 * 1024 * 1024

_local = threading.local()


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The facts of one chunk frame; ``digest`` is the BLAKE3-256 of the plain bytes."""

    chunk_no: int
    codec: int
    plain_length: int
    stored_length: int
    digest: bytes
    stored_crc: int


def digest_of(data: bytes | memoryview) -> bytes:
    """BLAKE3-256 of ``data``."""
    return blake3(data).digest()


def compress(plain: bytes | memoryview, level: int) -> tuple[int, bytes]:
    """(codec, stored bytes): zstd at ``level``, or raw where zstd does not make it smaller."""
    stored = _compressor(level, len(plain)).compress(plain)
    return (CODEC_ZSTD, stored) if len(stored) < len(plain) else (CODEC_RAW, bytes(plain))


def decompress(codec: int, stored: bytes | memoryview, plain_length: int) -> bytes:
    """The plain bytes. Raises IntegrityError when they are not ``plain_length`` long.

    The size a zstd frame declares is checked before decoding, because the library would allocate
    it whatever limit it is given.
    """
    if codec == CODEC_RAW:
        if len(stored) != plain_length:
            raise IntegrityError(f"a raw chunk holds {len(stored)} bytes instead of {plain_length}")
        return bytes(stored)
    if codec != CODEC_ZSTD:
        raise FormatError(f"chunk codec {codec} is unknown")
    try:
        declared = zstandard.frame_content_size(stored)
        if declared != plain_length:
            raise IntegrityError(f"a compressed chunk declares {declared} bytes instead of {plain_length}")
        return _decompressor().decompress(stored, max_output_size=plain_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError("a compressed chunk does not decode") from error


def encode_frame(header: FrameHeader) -> bytes:
    """The 64 bytes before the stored bytes."""
    data = FRAME.pack(
        FRAME_MAGIC,
        header.codec,
        0,
        0,
        header.chunk_no,
        header.plain_length,
        header.stored_length,
        header.digest,
        header.stored_crc,
    )
    return data + zlib.crc32(data).to_bytes(4, "little")


def make_frame(chunk_no: int, plain: bytes | memoryview, digest: bytes, level: int) -> tuple[int, bytes]:
    """(codec, whole frame) of a chunk whose BLAKE3-256 is ``digest``."""
    codec, stored = compress(plain, level)
    header = FrameHeader(chunk_no, codec, len(plain), len(stored), digest, zlib.crc32(stored))
    return codec, encode_frame(header) + stored


def decode_frame_header(data: bytes | memoryview) -> FrameHeader:
    """The frame header in the first 64 bytes of ``data``. Raises FormatError, IntegrityError."""
    check(len(data) >= FRAME_SIZE, "a chunk frame is cut short")
    magic, codec, flags, reserved, chunk_no, plain, stored, digest, crc = FRAME.unpack_from(data)
    check(magic == FRAME_MAGIC, "no chunk frame where the index says there is one")
    check_crc(data[: FRAME.size], int.from_bytes(data[FRAME.size : FRAME_SIZE], "little"), "frame header")
    check(flags == 0 and reserved == 0, "reserved fields of a frame header are in use")
    return FrameHeader(chunk_no, codec, plain, stored, digest, crc)


def _compressor(level: int, length: int) -> zstandard.ZstdCompressor:
    made: dict[tuple[int, bool], zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    wide = length > _USUAL_WINDOW
    if (level, wide) not in made:
        made[level, wide] = _wide(level) if wide else zstandard.ZstdCompressor(level, write_checksum=False)
    return made[level, wide]


def _wide(level: int) -> zstandard.ZstdCompressor:
    """With a window over the whole of the largest chunk, which zstd's lower levels do not have."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=MAX_CHUNK_SIZE,
        window_log=MAX_CHUNK_SIZE.bit_length() - 1,
        write_checksum=False,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor  # type: ignore[no-any-return]
