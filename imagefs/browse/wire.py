"""Values as bytes and back, between a worker and the process that asks it. No I/O.

The worker parses what hostile disks say and may have been taken over: whatever the bytes, ``loads`` gives
plain values and the few classes named in ``_SHAPES``, with fields of the right types, or raises WireError. It
makes nothing longer than what it was given.

A value is a letter and what belongs to it, numbers little-endian: ``N`` ``T`` ``F`` · ``i`` length, signed
integer · ``b`` and ``s`` length, bytes or UTF-8 · ``l`` count, values · ``d`` count, keys and values ·
``o`` number of the class, count, fields · ``E`` length, an entry. Folders are full of entries: those go as
columns, a tenth of the cost.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

from imagefs import errors
from imagefs.browse.content import Piece
from imagefs.errors import ImagefsError
from imagefs.interfaces import (
    Entry,
    EntryType,
    Extent,
    Holding,
    Link,
    Named,
    NameTimes,
    Place,
    State,
    Stream,
    Structure,
    Table,
    Whole,
)

_COUNT = struct.Struct("<I")
_COLUMNS = struct.Struct("<4I")
_MAX_DEPTH = 8
_KINDS = tuple(EntryType)
_NUMBER_OF = {kind: number for number, kind in enumerate(_KINDS)}
#: Stands for None in a column of numbers.
_NONE, _MOST = -(1 << 63), (1 << 63) - 1
_ONE = struct.Struct("<B9qH")
_make_entry: Callable[[tuple[Any, ...]], Entry] = partial(tuple.__new__, Entry)

#: The classes that may be sent, by their number, and the types of their fields.
_TIME = (int, type(None))
_SHAPES: tuple[tuple[type[Any], tuple[type | tuple[type, ...], ...]], ...] = (
    (Named, (bytes, EntryType, str)),
    (Place, (bytes, int, int)),
    (Stream, (bytes, int, str)),
    (NameTimes, (bytes, str, int, _TIME, _TIME, _TIME, _TIME)),
    (Extent, (State, int, int)),
    (EntryType, (str,)),
    (State, (int,)),
    (Whole, (str,)),
    (Table, (int, int, int, int)),
    (Holding, (int, int, int, bool)),
    (Link, (int, int, bytes)),
    (Structure, (str, int, int)),
)
_CLASSES = {shape[0]: number for number, shape in enumerate(_SHAPES)}


#: What bytes that are no value come to.
_TROUBLE = (
    ValueError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    StopIteration,
    struct.error,
)


class WireError(ValueError):
    """Bytes that are no value."""


def dumps(value: object) -> bytes:
    """``value`` as bytes; TypeError where it is of a class that is not sent."""
    out = bytearray()
    _put(out, value)
    return bytes(out)


def loads(data: bytes) -> Any:
    """The value in ``data``. Raises WireError, whatever the bytes."""
    try:
        value, end = _get(data, 0, _MAX_DEPTH)
    except _TROUBLE as error:
        raise WireError(str(error)) from None
    if end != len(data):
        raise WireError("there is more behind the value")
    return value


def _put(out: bytearray, value: Any) -> None:
    kind = type(value)
    if kind is bytes:
        out += b"b" + _COUNT.pack(len(value)) + value
    elif kind is str:
        text = value.encode("utf-8", "surrogatepass")
        out += b"s" + _COUNT.pack(len(text)) + text
    elif value is None or kind is bool:
        out += b"N" if value is None else b"T" if value else b"F"
    elif kind is int:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        out += b"i" + bytes((len(raw),)) + raw
    elif kind is Entry:
        raw = _pack_one(value)
        out += b"E" + _COUNT.pack(len(raw)) + raw
    elif kind in (list, tuple):
        out += b"l" + _COUNT.pack(len(value))
        for each in value:
            _put(out, each)
    elif kind is dict:
        out += b"d" + _COUNT.pack(len(value))
        for each in chain.from_iterable(value.items()):
            _put(out, each)
    else:
        _put_object(out, value, kind)


def _put_object(out: bytearray, value: Any, kind: type) -> None:
    if kind not in _CLASSES:
        raise TypeError(f"a {kind.__name__} cannot be sent")
    if issubclass(kind, tuple):
        fields: Sequence[Any] = tuple(value)
    elif hasattr(kind, "__slots__") and hasattr(kind, "__dataclass_fields__"):
        fields = [getattr(value, name) for name in kind.__dataclass_fields__]
    else:
        fields = [value.value]
    out += b"o" + bytes((_CLASSES[kind], len(fields)))
    for each in fields:
        _put(out, each)


def _get(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    letter = data[at : at + 1]
    at += 1
    if letter in (b"b", b"s", b"E"):
        at, end = at + 4, at + 4 + _COUNT.unpack_from(data, at)[0]
        raw = data[at:end]
        if len(raw) < end - at:
            raise WireError("the bytes end too early")
        if letter == b"E":
            return _unpack_one(raw), end
        return raw if letter == b"b" else raw.decode("utf-8", "surrogatepass"), end
    if letter in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[letter], at
    if letter == b"i":
        end = at + 1 + data[at]
        return int.from_bytes(data[at + 1 : end], "little", signed=True), end
    if depth == 0:
        raise WireError("values lie too deep in one another")
    if letter == b"o":
        number, count = data[at], data[at + 1]
        fields, at = _get_many(data, at + 2, count, depth)
        return _object(number, fields), at
    count = _COUNT.unpack_from(data, at)[0]
    if letter == b"l":
        return _get_many(data, at + 4, count, depth)
    if letter == b"d":
        flat, at = _get_many(data, at + 4, 2 * count, depth)
        return dict(zip(flat[::2], flat[1::2], strict=True)), at
    raise WireError(f"no value begins with {letter!r}")


def _get_many(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    if count > len(data) - at:
        raise WireError("more values than bytes")
    values = []
    for _ in range(count):
        value, at = _get(data, at, depth - 1)
        values.append(value)
    return values, at


def _fit(fields: list[Any], types: Sequence[type | tuple[type, ...]]) -> bool:
    """Whether each field is of its type, or one of its types, exactly."""
    return len(fields) == len(types) and all(
        type(each) in kind if type(kind) is tuple else type(each) is kind
        for each, kind in zip(fields, types, strict=True)
    )


def _object(number: int, fields: list[Any]) -> Any:
    cls, types = _SHAPES[number]
    if not _fit(fields, types):
        raise WireError(f"these are not the fields of a {cls.__name__}")
    return cls(*fields)


# -- entries ---------------------------------------------------------------------------------------


def _pack_one(entry: Entry) -> bytes:
    """One entry: what is asked about with every request."""
    path, kind, size, inode, mode, uid, gid, nlink, *times, deleted, rdev, flags = entry
    numbers = [size, mode, uid, gid, nlink, *(_NONE if each is None else each for each in times)]
    if deleted or rdev or flags or max(numbers) > _MOST or min(numbers) < _NONE:
        return b"c" + pack_entries([entry])
    address = inode.encode("utf-8", "surrogatepass")
    head = _ONE.pack(_NUMBER_OF[kind], *numbers, len(address))
    return b"1" + head + address + path


def _unpack_one(raw: bytes) -> Entry:
    if raw[:1] != b"1":
        (entry,) = unpack_entries(raw[1:])
        return entry
    kind, size, mode, uid, gid, nlink, *times, length = _ONE.unpack_from(raw, 1)
    times = [None if each == _NONE else each for each in times]
    end = 1 + _ONE.size + length
    inode = raw[1 + _ONE.size : end].decode("utf-8", "surrogatepass")
    return Entry(raw[end:], _KINDS[kind], size, inode, mode, uid, gid, nlink, *times)


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """Lengths of the first parts, then: types, numbers, rare fields, addresses, paths; each a column."""
    count = len(entries)
    if not count:
        return b""
    path, kind, size, inode, mode, uid, gid, nlink, mtime, atime, ctime, crtime, deleted, rdev, flags = zip(
        *entries, strict=True
    )
    rare = b""
    if not deleted.count(False) == rdev.count(None) == flags.count(()) == count:
        rare = dumps((deleted, rdev, flags))
    kinds = bytes(map(_NUMBER_OF.__getitem__, kind))
    numbers = _pack_numbers(size + mode + uid + gid + nlink + mtime + atime + ctime + crtime)
    inodes, paths = "\0".join(inode).encode("utf-8", "surrogatepass"), b"\0".join(path)
    if inodes.count(b"\0") != count - 1 or paths.count(b"\0") != count - 1:
        raise TypeError("a path or an address with a NUL in it cannot be sent")
    head = _COLUMNS.pack(count, len(numbers), len(rare), len(inodes))
    return b"".join((head, kinds, numbers, rare, inodes, paths))


def _pack_numbers(values: tuple[int | None, ...]) -> bytes:
    """Eight bytes each, behind a letter; as values one by one where one does not fit."""
    try:
        return b"q" + array("q", values).tobytes()  # type: ignore[type-var]
    except TypeError:
        pass
    except OverflowError:
        return b"l" + dumps(values)
    try:
        return b"n" + array("q", [_NONE if each is None else each for each in values]).tobytes()
    except OverflowError:
        return b"l" + dumps(values)


def unpack_entries(raw: bytes) -> list[Entry]:
    """What ``pack_entries`` made. Raises WireError, and what else ``loads`` makes a WireError of."""
    if not raw:
        return []
    count, numbers_size, rare_size, inodes_size = _COLUMNS.unpack_from(raw)
    start = _COLUMNS.size + count
    middle, last = start + numbers_size, start + numbers_size + rare_size
    kinds = raw[_COLUMNS.size : start]
    values = _unpack_numbers(raw[start:middle], count)
    inode = raw[last : last + inodes_size].decode("utf-8", "surrogatepass").split("\0")
    path = raw[last + inodes_size :].split(b"\0")
    if not len(kinds) == len(inode) == len(path) == count:
        raise WireError("columns of different lengths")
    plain: Any = (repeat(False, count), repeat(None, count), repeat((), count))
    rare = _rare(loads(raw[middle:last]), count) if rare_size else plain
    columns = [values[first : first + count] for first in range(0, 9 * count, count)]
    kind = map(_KINDS.__getitem__, kinds)
    return list(map(_make_entry, zip(path, kind, columns[0], inode, *columns[1:], *rare, strict=True)))


def _unpack_numbers(raw: bytes, count: int) -> list[Any]:
    """Nine columns, one behind the other; None is for times alone, the last four."""
    letter = raw[:1]
    if letter in (b"q", b"n"):
        table = array("q")
        table.frombytes(raw[1:])
        values: list[Any] = table.tolist()
        if letter == b"n":
            values = [None if each == _NONE else each for each in values]
    else:
        values = loads(raw[1:])
    if len(values) != 9 * count:
        raise WireError("columns of different lengths")
    if letter != b"q" and not set(map(type, values)) <= {int, type(None)}:
        raise WireError("a number is none")
    if letter != b"q" and None in values[: 5 * count]:
        raise WireError("a number is missing")
    return values


def _rare(found: Any, count: int) -> tuple[list[bool], list[Any], list[Any]]:
    deleted, rdev, flags = found
    if not len(deleted) == len(rdev) == len(flags) == count or set(map(type, deleted)) != {bool}:
        raise WireError("columns of different lengths")
    return (
        deleted,
        [None if each is None else _typed(each, int, 2) for each in rdev],
        [_typed(each, str) for each in flags],
    )


def _typed(values: Any, kind: type, count: int | None = None) -> tuple[Any, ...]:
    if type(values) is not list or any(type(each) is not kind for each in values):
        raise WireError("a field is of the wrong type")
    if count not in (None, len(values)):
        raise WireError("a field is of the wrong length")
    return tuple(values)


# -- pieces ----------------------------------------------------------------------------------------


def pack_pieces(pieces: Sequence[Piece]) -> bytes:
    """The pieces of a file, 24 bytes each; TypeError where a number does not fit."""
    flat = ((each.start, each.length, -1 if each.source is None else each.source) for each in pieces)
    try:
        return array("q", chain.from_iterable(flat)).tobytes()
    except OverflowError as error:
        raise TypeError(str(error)) from error


def unpack_pieces(raw: bytes) -> list[Piece]:
    """In order and without overlap, or WireError."""
    if type(raw) is not bytes or len(raw) % 24:
        raise WireError("these are no pieces")
    pieces, end = [], 0
    for start, length, source in struct.iter_unpack("<3q", raw):
        if start < end or length < 0 or source < -1:
            raise WireError("pieces out of order")
        end = start + length
        pieces.append(Piece(start, length, None if source < 0 else source))
    return pieces


# -- portions of a listing -------------------------------------------------------------------------


def pack_portion(facts: object, found: Sequence[Entry | Named]) -> bytes:
    """``facts`` and entries, with Nameds among them, in their order."""
    named = [each for each in found if type(each) is Named]
    order = b""
    if named:
        order = bytes(type(each) is Named for each in found)
        found = [each for each in found if type(each) is Entry]
    names = [
        b"\0".join([each.name for each in named]),
        bytes([_NUMBER_OF[each.type] for each in named]),
        "\0".join([each.inode for each in named]),
        order,
    ]
    head = dumps((facts, names) if named else (facts, None))
    return _COUNT.pack(len(head)) + head + pack_entries(found)  # type: ignore[arg-type]


def unpack_portion(raw: bytes) -> tuple[Any, list[Entry | Named]]:
    """What ``pack_portion`` made, or WireError."""
    try:
        end = 4 + _COUNT.unpack_from(raw)[0]
        facts, names = loads(raw[4:end])
        entries = unpack_entries(raw[end:])
        return facts, list(entries) if names is None else _in_order(entries, *names)
    except _TROUBLE as error:
        raise WireError(str(error)) from None


def _in_order(
    entries: list[Entry], names: bytes, kinds: bytes, inodes: str, order: bytes
) -> list[Entry | Named]:
    columns = zip(names.split(b"\0"), map(_KINDS.__getitem__, kinds), inodes.split("\0"), strict=True)
    named, whole = iter([Named(*each) for each in columns]), iter(entries)
    return [next(named) if is_named else next(whole) for is_named in order]


# -- errors ----------------------------------------------------------------------------------------

_ERRORS = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, ImagefsError)
}


def pack_error(error: ImagefsError) -> bytes:
    """The error as the nearest class of ``errors``; of its data what is not plain becomes text."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS)
    plain = (bytes, str, int, bool, type(None))
    data = {str(key): each if type(each) in plain else str(each) for key, each in error.data.items()}
    return dumps([name, error.message, error.hint, data])


def unpack_error(raw: bytes) -> ImagefsError:
    """What ``pack_error`` made, or WireError."""
    try:
        name, message, hint, data = loads(raw)
        if type(message) is not str or type(hint) is not str:
            raise WireError("an error without words")
        return _ERRORS[name](message, hint=hint, **data)
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(str(error)) from None
