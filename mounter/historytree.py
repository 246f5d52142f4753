"""What ``mount --history`` shows: a folder for each point in time, in each what a mount of it alone shows.

::

    20261117T020004Z/       as tree.py has it: disk.raw, p1.raw, p1/ …
    20261120T030000Z/
    20261121T030000Z~3f2a9c1e/   two of one second have their ids in their names
    latest                  a symbolic link to the newest

A point is opened when something in it is asked for, and closed again when nothing was for a while or others
need the room; what is open in it (a file, a listing) keeps it. What cannot be opened has ``image.txt`` in its
folder, with the reason. Pure: knows neither FUSE nor images.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from imagefs.block.views import BytesReader
from imagefs.errors import BrowseError, ImagefsError, PathNotFound, StoreError, line_of
from imagefs.interfaces import Whole
from mounter.attributes import Attributes
from mounter.entrycache import EntryCache
from mounter.points import HistorySpec, Leased, Point, PointSpec
from mounter.tree import MountTree, Node, Opened

LATEST = b"latest"
REASON = b"image.txt"
#: So many points are open at once, and so many bytes of what they hold besides caches, unless more are in use.
MAX_POINTS = 12
MAX_HELD = 64 << 20
#: Seconds after which a point that nothing was asked of is closed, and for which the list of points is believed.
IDLE = 60.0
FRESH = 1.0

_ROOT_INODE, _LATEST_INODE = 1, 2
_FOLDER_MODE, _LINK_MODE, _TEXT_MODE = stat.S_IFDIR | 0o555, stat.S_IFLNK | 0o777, stat.S_IFREG | 0o444


@dataclass(frozen=True, slots=True)
class _PointNode(Node):
    """A node of one point: which one, and what its tree calls it."""

    point: Point | None = None
    path: bytes = b"/"
    inside: Node | None = None
    tree: MountTree | None = None


class HistoryTree:
    """As MountTree, over points in time. Safe to call from several threads."""

    fleeting = True
    writable = False

    def __init__(
        self,
        spec: HistorySpec,
        *,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        max_points: int = MAX_POINTS,
    ) -> None:
        self._spec = spec
        self._log = log
        self._clock = clock
        self._max_points = max_points
        self._cache = EntryCache()
        self._lock = threading.Lock()  # of everything below
        self._specs: Sequence[PointSpec] = ()
        self._points: dict[bytes, Point] = {}  # by what they are known by
        self._names: dict[bytes, Point] = {}
        self._open: dict[bytes, Point] = {}
        self._looked = -FRESH
        self._count = 0
        self._gone: Callable[[bytes], None] = lambda name: None
        self._ended = threading.Event()
        self._refresh()
        threading.Thread(target=self._tidy_now_and_then, name="tidy", daemon=True).start()

    def listen(self, gone: Callable[[bytes], None]) -> None:
        """``gone`` hears the name of each folder of which nothing need be remembered any more."""
        self._gone = gone

    @property
    def size(self) -> int:
        """The size of the newest disk in bytes."""
        newest = self._newest()
        return newest.size if newest else 0

    # -- the points --------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Look at the set again, unless that was just done. Points that are gone are closed when unused."""
        with self._lock:
            now = self._clock()
            if now - self._looked < FRESH:
                return
            self._looked = now
        try:
            specs = self._spec.look()
        except ImagefsError as error:  # what is known goes on
            self._log(line_of(error, "look at the set"))
            return
        with self._lock:
            if specs is self._specs:
                return
            gone = self._take_over(specs)
        for point in gone:
            self._gone(point.spec.name)
        self.tidy()

    def _take_over(self, specs: Sequence[PointSpec]) -> list[Point]:
        """The points that are no more. What could not be opened may be whole now."""
        gone = dict(self._points)
        points: dict[bytes, Point] = {}
        names: dict[bytes, Point] = {}
        for spec in specs:
            point = gone.pop(spec.id, None) or self._open.get(spec.id)
            if point is None:
                self._count += 1
                point = Point(spec, self._count)
            point.spec, point.reason = spec, ""
            points[spec.id] = point
            for name in (spec.name, *spec.aliases):
                names.setdefault(name, point)
        self._specs, self._points, self._names = specs, points, names
        return list(gone.values())

    def _point(self, name: bytes) -> Point:
        point = self._names.get(name)
        if point is None:
            raise PathNotFound(f"there is no point in time {name!r}", path=name)
        return point

    @contextmanager
    def _within(self, point: Point) -> Iterator[MountTree | None]:
        """The tree of a point, opened and kept open meanwhile; None where it cannot be opened."""
        self._enter(point)
        try:
            with point.lock:
                to_open = point.tree is None and not point.reason
                if to_open:
                    self._open_point(point)
            if to_open:
                self._make_room()
            yield point.tree
        finally:
            self._leave(point)

    def _enter(self, point: Point) -> None:
        with self._lock:
            point.users += 1
            point.used = self._clock()

    def _leave(self, point: Point) -> None:
        with self._lock:
            point.users -= 1
            point.used = self._clock()

    def _open_point(self, point: Point) -> None:
        """What its bytes cause is remembered until the set changes; what a store causes is tried again."""
        name = point.spec.name.decode()
        assert point.spec.open is not None
        try:
            opened = point.spec.open()
        except StoreError:
            raise
        except ImagefsError as error:
            point.reason = error.message + (f"; {error.hint}" if error.hint else "")
            self._log(line_of(error, f"open {name}"))
            return
        cache = self._cache.part(point.slot)
        point.tree = MountTree(opened.spec, log=lambda line: self._log(f"{name}: {line}"), cache=cache)
        point.opened = opened
        with self._lock:
            self._open[point.spec.id] = point

    # -- closing -----------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Close what was used longest ago while too much is open."""
        with self._lock:
            order = sorted(self._open.values(), key=lambda point: point.used)
            count, held = len(order), sum(point.held for point in order)
            surplus = []
            for point in order[:-1]:
                if count <= self._max_points and held <= MAX_HELD:
                    break
                if not point.users:
                    surplus.append(point)
                    count, held = count - 1, held - point.held
        for point in surplus:
            self._close(point)

    def tidy(self) -> None:
        """Close what nobody has used for a while, and what is no more."""
        now = self._clock()
        with self._lock:
            idle = [
                point
                for number, point in self._open.items()
                if not point.users and (now - point.used >= IDLE or number not in self._points)
            ]
        for point in idle:
            self._close(point)
        self._make_room()  # of what was in use when it was too much

    def _tidy_now_and_then(self) -> None:
        while not self._ended.wait(IDLE / 4):
            self.tidy()

    def _close(self, point: Point) -> None:
        """Close a point, unless somebody came meanwhile."""
        with point.lock:
            with self._lock:
                if point.users or point.tree is None:
                    return
                self._open.pop(point.spec.id, None)
                tree, opened, point.tree, point.opened = point.tree, point.opened, None, None
            try:
                tree.close()
            finally:
                if opened:
                    opened.close()
        self._gone(point.spec.name)

    def close(self) -> None:
        """Close every point, used or not."""
        self._ended.set()
        for point in list(self._open.values()):
            point.users = 0
            self._close(point)

    # -- what a mount asks for -----------------------------------------------------------------------

    def find(self, path: bytes) -> Node:
        """The node at ``path``; PathNotFound if there is none."""
        if path == b"/":
            self._refresh()
            newest = self._newest()
            time_ns = newest.mtime_ns if newest else 0
            links = 2 + sum(1 for spec in self._specs if not spec.reason)
            return Node(_attributes(_FOLDER_MODE, 0, _ROOT_INODE, time_ns)._replace(nlink=links))
        name, slash, rest = path[1:].partition(b"/")
        if not slash or name not in self._names:
            self._refresh()
        if name == LATEST and not slash:
            return self._latest()
        point = self._point(name)
        if not slash or point.spec.reason:
            return _top(point) if not slash else _missing(path)
        with self._within(point) as tree:
            if tree is None:
                return _reason_of(point) if rest == REASON else _missing(path)
            return _wrapped(point, tree, b"/" + rest)

    def _newest(self) -> PointSpec | None:
        return next((spec for spec in reversed(self._specs) if not spec.reason), None)

    def _target(self) -> PointSpec:
        newest = self._newest()
        if newest is None:
            raise PathNotFound("the set has no images")
        return newest

    def _latest(self) -> Node:
        newest = self._target()
        return Node(_attributes(_LINK_MODE, len(newest.name), _LATEST_INODE, newest.mtime_ns))

    def children(self, node: Node) -> Iterator[tuple[bytes, Attributes]]:
        """Name and attributes of everything in a directory."""
        if not isinstance(node, _PointNode) or node.point is None:
            yield from self._listed()
            return
        point = node.point
        with self._within(point) as tree:
            if tree is None:
                yield REASON, _reason_of(point).attributes
                return
            inside = _inside(node, tree)
            for name, attributes in tree.children(inside):
                yield name, point.shown(attributes)

    def _listed(self) -> Iterator[tuple[bytes, Attributes]]:
        self._refresh()
        specs = self._specs
        for spec in specs:
            if point := self._points.get(spec.id):
                yield spec.name, _top(point).attributes
        if self._newest():
            yield LATEST, self._latest().attributes

    def open(self, node: Node) -> Opened:
        """A Reader of the node's bytes, which keeps its point open until it is closed."""
        if not isinstance(node, _PointNode) or node.point is None:
            raise BrowseError("only files can be opened")
        if node.reader is not None:
            return Opened(node.reader, owned=False)
        point = node.point
        with self._within(point) as tree:
            if tree is None:
                raise BrowseError("only files can be opened")
            opened = tree.open(_inside(node, tree))
            self._enter(point)
            return Opened(Leased(opened, lambda: self._leave(point)), owned=True)

    def states(self, node: Node) -> dict[str, int | Whole]:
        with self._found(node) as found:
            return found[0].states(found[1]) if found else {}

    def xattrs(self, node: Node) -> dict[bytes, bytes] | None:
        with self._found(node) as found:
            return found[0].xattrs(found[1]) if found else None

    def streams(self, node: Node) -> list[bytes]:
        with self._found(node) as found:
            return found[0].streams(found[1]) if found else []

    def readlink(self, node: Node) -> bytes:
        if not isinstance(node, _PointNode) and stat.S_ISLNK(node.attributes.mode):
            return self._target().name
        with self._found(node) as found:
            if not found:
                raise BrowseError("not a symbolic link")
            return found[0].readlink(found[1])

    @contextmanager
    def _found(self, node: Node) -> Iterator[tuple[MountTree, Node] | None]:
        """The tree of a node's point and what that calls it; None for what lies above all trees."""
        if not isinstance(node, _PointNode) or node.point is None or node.path == b"/" or node.reader:
            yield None
            return
        with self._within(node.point) as tree:
            yield (tree, _inside(node, tree)) if tree else None


def _attributes(mode: int, size: int, inode: int, time_ns: int) -> Attributes:
    owner, group = os.geteuid(), os.getegid()
    return Attributes(mode, size, inode, 1, owner, group, time_ns, time_ns, time_ns)


def _top(point: Point) -> Node:
    """A point's folder, without opening it; a text for what is damaged itself."""
    spec = point.spec
    if spec.reason:
        text = BytesReader(f"{spec.reason}\n".encode("utf-8", "replace"))
        return _PointNode(
            _attributes(_TEXT_MODE, text.size, point.inode(_ROOT_INODE), spec.mtime_ns), text, point=point
        )
    return _PointNode(_attributes(_FOLDER_MODE, 0, point.inode(_ROOT_INODE), spec.mtime_ns), point=point)


def _reason_of(point: Point) -> Node:
    text = BytesReader(f"this image cannot be shown: {point.reason}\n".encode("utf-8", "replace"))
    attributes = _attributes(_TEXT_MODE, text.size, point.inode(_ROOT_INODE + 1), point.spec.mtime_ns)
    return _PointNode(attributes, text, point=point, path=b"/" + REASON)


def _wrapped(point: Point, tree: MountTree, path: bytes) -> Node:
    node = tree.find(path)
    return _PointNode(point.shown(node.attributes), point=point, path=path, inside=node, tree=tree)


def _inside(node: _PointNode, tree: MountTree) -> Node:
    """The node as ``tree`` knows it; found again when its point was closed and opened meanwhile."""
    return node.inside if node.inside is not None and node.tree is tree else tree.find(node.path)


def _missing(path: bytes) -> Node:
    raise PathNotFound(f"the mount shows no {path!r}", path=path)
