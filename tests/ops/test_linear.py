"""Linear digests: the same as hashing the bytes in one go, however they come."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.image.catalog import scan
from imagefs.ops.linear import ALGORITHMS, LinearDigests
from imagefs.ops.verify import check_digests
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, capture_bytes, capture_stream, noise


@given(st.lists(st.one_of(st.binary(max_size=5000), st.integers(0, 3_000_000)), max_size=8))
def test_any_pieces(pieces: list[bytes | int]) -> None:
    plain = b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in pieces)
    digests = LinearDigests(ALGORITHMS)
    for piece in pieces:
        digests.feed_zeros(piece) if isinstance(piece, int) else digests.feed(piece)
    assert digests.finish() == {name: hashlib.new(name, plain).hexdigest() for name in ALGORITHMS}
    digests.close()


def test_giving_up_ends_the_threads() -> None:
    digests = LinearDigests(ALGORITHMS)
    digests.feed(b"x" * 100)
    digests.close()
    digests.close()
    assert not any(lane._thread.is_alive() for lane in digests._lanes)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_image_carries_the_digests_of_the_disk(tmp_path: Path, streamed: bool) -> None:
    """Holes, zeros, data, an odd end; of a full image and of a child in which little is stored."""
    data = noise(3 * CHUNK) + bytes(9_000_000) + noise(CHUNK + 77, 2)
    store = MemoryStore()
    for version in (data, noise(CHUNK, 5) + data[CHUNK:]):
        if streamed:
            made = capture_stream(store, version, tmp_path, hashes=("md5", "sha256"))
        else:
            made = capture_bytes(store, version, tmp_path / "disk", hashes=("md5", "sha256"))
        assert made.digests == {
            "md5": hashlib.md5(version).hexdigest(),
            "sha256": hashlib.sha256(version).hexdigest(),
        }
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[-1])
    assert check_digests(disk, made.digests, threads=2) == {"md5": True, "sha256": True}
    assert check_digests(disk, {**made.digests, "md5": "0" * 32}) == {"md5": False, "sha256": True}
    disk.close()
