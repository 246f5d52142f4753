"""What the parts of the container share: limits, checks and the small JSON objects ("facts")."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from imagefs.errors import FormatError, IntegrityError

MIN_CHUNK_SIZE = 16 * 1024
MAX_CHUNK_SIZE = 4 * 1024 * 1024
MAX_DISK_SIZE = 2**63 - 1
MAX_FACTS = 24 * 1024
#: Footer, section table, summary and header copy fit in this many last bytes of an image.
TAIL_SIZE = 64 * 1024

Facts = Mapping[str, Any]


def check(condition: bool, message: str) -> None:
    """Raise FormatError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise FormatError(message)


def check_crc(data: bytes | memoryview, expected: int, what: str) -> None:
    """Raise IntegrityError unless the CRC-32 (zlib's) of ``data`` is ``expected``."""
    if zlib.crc32(data) != expected:
        raise IntegrityError(f"the checksum of the {what} does not match")


def check_chunk_size(chunk_size: int) -> None:
    fits = MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE and chunk_size & (chunk_size - 1) == 0
    check(fits, f"chunk size {chunk_size} is not a power of two from 16 KiB to 4 MiB")


def encode_facts(facts: Facts) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; at most ``MAX_FACTS`` bytes."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8", "replace")
    check(len(data) <= MAX_FACTS, f"descriptive facts of {len(data)} bytes are over the limit")
    return data


def decode_facts(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``; FormatError for anything else, however nested or long."""
    check(len(data) <= MAX_FACTS, f"descriptive facts of {len(data)} bytes are over the limit")
    try:
        facts = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError("descriptive facts are not valid JSON") from error
    check(isinstance(facts, dict), "descriptive facts are not a JSON object")
    return dict(facts)


def uuid_or_none(raw: bytes) -> UUID | None:
    """Sixteen zero bytes stand for "none"."""
    return UUID(bytes=raw) if any(raw) else None


def uuid_bytes(uuid: UUID | None) -> bytes:
    return uuid.bytes if uuid else bytes(16)
