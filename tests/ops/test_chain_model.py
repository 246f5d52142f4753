"""Chain model: whatever is written, captured, grown, shrunk and deleted, every image of the set gives
back the bytes the disk had when it was taken. The model is a list of bytearrays.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagefs.errors import ChainError
from imagefs.format.header import Kind
from imagefs.image.catalog import ImageInfo, scan
from imagefs.interfaces import ObjectStore
from imagefs.ops.capture import CaptureResult
from imagefs.ops.transfer import transfer
from imagefs.ops.verify import verify_image
from imagefs.store import LocalStore, MemoryStore
from tests.support.images import (
    CHUNK,
    capture_bytes,
    capture_stream,
    disk_bytes,
    noise,
    plain_view_digest,
    text,
)
from tests.support.sinks import MemorySink

SIZES = st.one_of(
    st.integers(0, 6 * CHUNK),
    st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 5 * CHUNK]),
)
OFFSETS = st.integers(0, 6 * CHUNK)
LENGTHS = st.one_of(st.integers(1, 3 * CHUNK), st.sampled_from([1, 512, CHUNK, 2 * CHUNK]))


class ChainMachine(RuleBasedStateMachine):
    """One disk, one set, and what every image must give back."""

    @initialize(local=st.booleans(), size=SIZES, seed=st.integers(0, 2**32))
    def begin(self, local: bool, size: int, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chain-model-"))
        self.store: ObjectStore = MemoryStore()
        if local:
            store = LocalStore(self.folder / "set", suffix=".imagefs")
            store.make()
            self.store = store
        self.disk = bytearray(noise(size, seed))
        self.taken: dict[UUID, bytes] = {}

    # -- the disk ----------------------------------------------------------------------------------

    @rule(offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 2**32), packs=st.booleans())
    def write(self, offset: int, length: int, seed: int, packs: bool) -> None:
        self._put(offset, (text if packs else noise)(length, seed))

    @rule(offset=OFFSETS, length=LENGTHS)
    def punch(self, offset: int, length: int) -> None:
        self._put(offset, bytes(length))

    @rule(old=OFFSETS, new=OFFSETS, length=LENGTHS)
    def move(self, old: int, new: int, length: int) -> None:
        """Old bytes in a new place, as a file system writes them."""
        self._put(new, bytes(self.disk[old : old + length]))

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        """The disk is as it was in one of the images, whatever came between."""
        self.disk = bytearray(data.draw(st.sampled_from(list(self.taken.values()))))

    @rule(size=SIZES, seed=st.integers(0, 2**32), zeros=st.booleans())
    def resize(self, size: int, seed: int, zeros: bool) -> None:
        grown = max(0, size - len(self.disk))
        self.disk = self.disk[:size] + (bytes(grown) if zeros else noise(grown, seed))

    def _put(self, offset: int, data: bytes) -> None:
        end = min(offset + len(data), len(self.disk))
        if offset < end:
            self.disk[offset:end] = data[: end - offset]

    # -- the set -----------------------------------------------------------------------------------

    @rule(kind=st.sampled_from([None, None, *Kind]), new_source=st.booleans())
    def capture(self, kind: Kind | None, new_source: bool) -> None:
        catalog = scan(self.store)
        newest = catalog.newest()
        new = newest is not None and len(self.disk) < newest.summary.disk_size
        new = new or (new_source and kind in (None, Kind.FULL))
        path = self.folder / "disk"
        if newest is None and kind in (Kind.INCREMENTAL, Kind.DIFFERENTIAL):
            try:
                capture_bytes(self.store, bytes(self.disk), path, kind=kind)
            except ChainError:
                return
            raise AssertionError("a child without a parent")
        # A disk that shrank is another one, so it starts a chain of its own.
        made = capture_bytes(self.store, bytes(self.disk), path, kind=None if new else kind, new_source=new)
        self._took(made, None if new else kind)

    @rule()
    def capture_stream(self) -> None:
        """A stream does not know its size beforehand, so it may also be shorter than its parent."""
        self._took(capture_stream(self.store, bytes(self.disk), self.folder), None)

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data())
    def delete_leaf(self, data: st.DataObject) -> None:
        catalog = scan(self.store)
        leaves = [info for info in catalog.images if not catalog.children(info)]
        leaf = data.draw(st.sampled_from(leaves))
        self.store.delete(leaf.name)
        del self.taken[leaf.uuid]

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        catalog = scan(self.store)
        info = data.draw(st.sampled_from(catalog.images))
        disk = catalog.open_disk(info)
        sink = MemorySink(disk.size, seed=5)
        result = transfer(disk, sink, label="restore", threads=2)
        disk.close()
        assert sink.finished == self.taken[info.uuid]
        assert result.data_bytes + result.zero_bytes == disk.size

    def _took(self, made: CaptureResult, kind: Kind | None) -> None:
        info, content = made.info, bytes(self.disk)
        assert kind is None or info.header.kind is kind
        self.taken[info.uuid] = content
        assert info.summary.disk_size == len(content)
        assert info.summary.view == plain_view_digest(content)
        self._check_states(info)

    def _check_states(self, info: ImageInfo) -> None:
        """A child holds only what differs from its parent, and all of that."""
        if info.header.parent is None:
            assert info.summary.absent == 0
            return
        mine, parents = self.taken[info.uuid], self.taken[info.header.parent]
        known = len(mine) == len(parents)
        shared = max(len(mine), len(parents)) if known else min(len(mine), len(parents)) // CHUNK * CHUNK
        same = [
            start
            for start in range(0, min(len(mine), shared), CHUNK)
            if mine[start : start + CHUNK] == parents[start : start + CHUNK]
        ]
        # Of a stream the size shows too late to inherit a short last chunk.
        short = [start for start in same if start + CHUNK > len(mine)]
        assert info.summary.absent in (len(same), len(same) - len(short))

    @invariant()
    def every_image_gives_its_bytes(self) -> None:
        if not hasattr(self, "store"):
            return
        catalog = scan(self.store)
        assert catalog.damaged == ()
        assert catalog.partials == ()
        assert {info.uuid for info in catalog.images} == set(self.taken)
        for info in catalog.images:
            assert disk_bytes(catalog, info) == self.taken[info.uuid]

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        catalog = scan(self.store)
        for info in catalog.images:
            assert verify_image(catalog, info, threads=2).findings == []
        shutil.rmtree(self.folder)


TestChainMachine = ChainMachine.TestCase
TestChainMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
