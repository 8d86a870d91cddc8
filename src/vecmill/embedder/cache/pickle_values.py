"""Plain values out of a pickle, without the power to run anything.

A pickle is a program for a small stack machine, and most of what that machine can do is call any function by
name. This one has no such instruction: it builds numbers, texts, tuples, lists, dicts, and arrays of floats
from their bytes. Whatever else a pickle asks for is named in an error, before anything was done.
Source of the instructions: the module `pickletools` of Python's standard library.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError, FormatVersionError, StorageError

Floats: TypeAlias = npt.NDArray[np.float32]

_NEWEST_PROTOCOL = 5
_FREE_STEPS = 1_000_000
_BYTES_PER_STEP = 4
"""A pickle may have a million instructions and one more for 4 bytes (a run of floats counts as one): it takes
no more than about 20 times its size in memory."""

_RUN = 4_096
_LONGEST_NAME = 80

_NUMPY = {
    f"{module}.{name}": name
    for start in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{start}.multiarray", "_reconstruct"),
        (f"{start}.multiarray", "scalar"),
        (f"{start}.numeric", "_frombuffer"),
    )
} | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
"""Names that stand in pickles of NumPy arrays. They are never looked up: each means one thing done here."""

_CALLS = frozenset("o\x81\x92")
_EXTENSIONS = frozenset("\x82\x83\x84")
_PERSISTENT = frozenset("PQ")
_KNOWN = {instruction.code: instruction.name for instruction in pickletools.opcodes}


@dataclass(slots=True)
class PickledList:
    """A list; runs of floats in it are arrays."""

    items: list[object] = field(default_factory=list)


@dataclass(slots=True)
class PickledDict:
    """A dict as its pairs, in the order of the file. Nothing is hashed, so that no nesting can hurt."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True)
class PickledArray:
    """A NumPy array; None until its content was read."""

    value: Floats | None = None


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = "<"


@dataclass(frozen=True, slots=True)
class _Name:
    what: str


def read_pickle(path: Path) -> object:
    """Read the one value of a pickle.

    Args:
        path: A file of any protocol, 0 to 5, not compressed.

    Returns:
        None, bool, int, float, str, bytes, tuple of these, `PickledList`, `PickledDict` or `PickledArray`.
        Floats are float32 where they stand in a list, in a row of at least two.

    Raises:
        CorruptFileError: The file is cut short or no pickle at all.
        FormatVersionError: Its protocol is newer than 5.
        StorageError: It cannot be read, or asks for anything but plain values; nothing was executed.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise CorruptFileError(f"{path} is empty: no pickle")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Machine(path, data).run()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def as_vector(value: object) -> Floats | None:
    """Return a list, tuple or array of numbers as (d,) float32, or None where it is something else."""
    if isinstance(value, PickledArray):
        return value.value if value.value is not None and value.value.ndim == 1 else None
    items = value.items if isinstance(value, PickledList) else value
    if not isinstance(items, list | tuple):
        return None
    parts: list[Floats] = []
    for item in items:
        if isinstance(item, np.ndarray):
            parts.append(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            parts.append(_float32([item]))
        else:
            return None
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def _float32(values: Any) -> Floats:
    """Round to float32; what does not fit becomes infinite, which whoever looks at vectors refuses."""
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=np.float64).astype(np.float32)
    except OverflowError:  # a whole number beyond any float
        return np.full(len(values), np.inf, dtype=np.float32)


class _Machine:
    """Runs one pickle. The stack is cut at its marks; runs of floats lie on it as one array."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._size = path, data, len(data)
        self._at = self._began = 0
        self._stack: list[object] = []
        self._below: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        steps = _FREE_STEPS + self._size // _BYTES_PER_STEP
        try:
            while True:
                self._began = self._at
                code = self._data[self._at : self._at + 1]
                self._at += 1
                if code == b"G":
                    self.floats()
                elif code == b".":
                    return self.result()
                else:
                    step = _STEPS.get(code)
                    if step is None:
                        raise self._refusal(code.decode("latin-1"))
                    step(self)
                steps -= 1
                if steps < 0:
                    raise StorageError(
                        f"{self._path} has more instructions than a cache of vectors of its size needs; "
                        "nothing of it was imported"
                    )
        except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
            raise CorruptFileError(
                f"{self._path} is no {'whole ' if self._began else ''}pickle: byte {self._began} of "
                f"{self._size} makes no sense"
            ) from error

    def result(self) -> object:
        if self._at != self._size:
            raise StorageError(
                f"{self._path} goes on after its value (byte {self._at} of {self._size}); a cache of vectors "
                "is one dict in one file"
            )
        return self.pop()

    def _refusal(self, code: str) -> StorageError:
        """Say why an instruction is not followed."""
        if not code:
            return CorruptFileError(f"{self._path} is cut short: it ends at byte {self._size}")
        if code in _CALLS:
            return self._asks("a call")
        if code in _EXTENSIONS:
            return self._asks("an extension registered by number")
        if code in _PERSISTENT:
            return self._asks("an object kept elsewhere")
        known = _KNOWN.get(code)
        if known is None or not self._began:
            hint = "; it is compressed: unpack it first" if self._data[:2] == b"\x1f\x8b" else ""
            return CorruptFileError(f"{self._path} is no pickle (byte {self._began}){hint}")
        return self._asks(f"something no cache of vectors has ({known})")

    def _asks(self, what: str) -> StorageError:
        return StorageError(
            f"{self._path} asks for {what} (byte {self._began}); only numbers, texts, lists, tuples, dicts "
            "and NumPy's float arrays are read. Nothing of it was executed or imported"
        )

    # Bytes.

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > self._size:
            raise CorruptFileError(f"{self._path} is cut short: it ends at byte {self._size}")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise CorruptFileError(f"{self._path} is cut short: it ends at byte {self._size}")
        line = self.take(end - self._at)
        self._at += 1
        return line

    # The stack.

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the topmost value; of a run of floats the last one."""
        top = self._stack[-1]
        if not isinstance(top, np.ndarray):
            return self._stack.pop()
        if len(top) == 1:
            self._stack.pop()
        else:
            self._stack[-1] = top[:-1]
        return float(top[-1])

    def to_mark(self, *, split: bool) -> list[object]:
        """Take what lies above the last mark; `split`: runs of floats as single ones."""
        items, self._stack = self._stack, self._below.pop()
        if not split:
            return items
        single: list[object] = []
        for item in items:
            single.extend(item.tolist()) if isinstance(item, np.ndarray) else single.append(item)
        return single

    def top(self, kind: type[Any]) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise TypeError
        return self._stack[-1]

    # Instructions.

    def floats(self) -> None:
        """Push the floats that follow each other: an instruction and eight bytes each, big-endian."""
        room = (self._size - self._began) // 9
        if not room:
            self.take(8)
        block = np.frombuffer(self._data, np.uint8, min(room, _RUN) * 9, self._began).reshape(-1, 9)
        others = np.flatnonzero(block[:, 0] != ord("G"))
        count = int(others[0]) if others.size else len(block)
        with np.errstate(over="ignore"):
            values = block[:count, 1:].copy().view(">f8")[:, 0].astype(np.float32)
        del block  # or the file could not be closed
        self._at = self._began + count * 9
        self.push(values)

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def protocol(self) -> None:
        if (version := self.number(1)) > _NEWEST_PROTOCOL:
            raise FormatVersionError(
                f"{self._path} is a pickle of protocol {version}; 0 to {_NEWEST_PROTOCOL} are read"
            )

    def int_line(self) -> None:
        line = self.line()
        self.push({b"00": False, b"01": True}.get(line, int(line)))

    def put(self, number: int) -> None:
        top = self._stack[-1]
        self.memo[number] = float(top[-1]) if isinstance(top, np.ndarray) else top

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def append(self) -> None:
        value = self.pop()
        self.top(PickledList).items.append(value)

    def appends(self) -> None:
        items = self.to_mark(split=False)
        self.top(PickledList).items.extend(items)

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self.top(PickledDict).pairs.append((key, value))

    def pairs_to_mark(self) -> list[tuple[object, object]]:
        items = self.to_mark(split=True)
        return list(zip(items[::2], items[1::2], strict=True))

    def set_items(self) -> None:
        pairs = self.pairs_to_mark()
        self.top(PickledDict).pairs.extend(pairs)

    def name_lines(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        self.name(module, name)

    def name_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        what = _NUMPY.get(f"{module}.{name}")
        if what is None:
            raise self._asks(ascii(f"{module}.{name}"[:_LONGEST_NAME]).strip("'\""))
        self.push(_Name(what))

    def old_name(self) -> None:
        """An instance of a class, by name and with what lies above the mark."""
        module, name = self.line().decode("latin-1"), self.line().decode("latin-1")
        raise self._asks(ascii(f"{module}.{name}"[:_LONGEST_NAME]).strip("'\""))

    def call(self) -> None:
        arguments = self.pop()
        name = self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise self._asks("a call")
        match name.what, arguments:
            case "_reconstruct", (_Name(what="ndarray"), *_):
                self.push(PickledArray())
            case "dtype", (str(code), *_):
                self.push(_Dtype(code))
            case "scalar", (_Dtype() as dtype, bytes(raw)):
                self.push(float(self._array(raw, dtype, (1,))[0]))
            case "_frombuffer", (bytes(raw), _Dtype() as dtype, tuple(shape), str()):
                self.push(PickledArray(self._array(raw, dtype, shape)))
            case "encode", (str(text), "latin1"):
                self.push(text.encode("latin-1"))
            case _:
                raise self._asks(f"numpy's {name.what} with other arguments than arrays have")

    def build(self) -> None:
        state = self.pop()
        match self._stack[-1], state:
            case _Dtype() as dtype, (int(), str(order), *_) if order in "<>|=":
                dtype.order = order.replace("|", "=")
            case PickledArray() as array, (int(), tuple(shape), _Dtype() as dtype, bool(), bytes(raw)):
                array.value = self._array(raw, dtype, shape)
            case _:
                raise self._asks("an object with attributes")

    def _array(self, raw: bytes, dtype: _Dtype, shape: tuple[Any, ...]) -> Floats:
        if dtype.code not in ("f2", "f4", "f8"):
            raise self._asks(f"an array of {dtype.code[:_LONGEST_NAME]!a}")
        with np.errstate(over="ignore"):
            return np.frombuffer(raw, dtype.order + dtype.code).astype(np.float32).reshape(shape)


def _signed(machine: _Machine, count: int) -> int:
    return int.from_bytes(machine.take(count), "little", signed=True)


def _text(machine: _Machine, count: int) -> str:
    """Read a text whose length in UTF-8 stands before it in `count` bytes."""
    return machine.take(machine.number(count)).decode("utf-8", "surrogatepass")


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.take(8),  # a frame's length
    b"(": _Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _Machine.int_line,
    b"J": lambda m: m.push(_signed(m, 4)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"L": lambda m: m.push(int(m.line().removesuffix(b"L"))),
    b"\x8a": lambda m: m.push(_signed(m, m.number(1))),
    b"\x8b": lambda m: m.push(_signed(m, m.number(4))),
    b"F": lambda m: m.push(float(m.line())),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"\x8c": lambda m: m.push(_text(m, 1)),
    b"X": lambda m: m.push(_text(m, 4)),
    b"\x8d": lambda m: m.push(_text(m, 8)),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x96": lambda m: m.push(m.take(m.number(8))),
    b"]": lambda m: m.push(PickledList()),
    b"l": lambda m: m.push(PickledList(m.to_mark(split=False))),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.to_mark(split=True))),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.push(PickledDict()),
    b"d": lambda m: m.push(PickledDict(m.pairs_to_mark())),
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.push(m.memo[int(m.line())]),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"c": _Machine.name_lines,
    b"\x93": _Machine.name_on_stack,
    b"i": _Machine.old_name,
    b"R": _Machine.call,
    b"b": _Machine.build,
}
"""Instruction -> what is done. Those that are not here are refused."""
