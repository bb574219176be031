"""What a pickle of `torch.save` would build, found by walking its opcodes without building it.

A pickle of a kilobyte can ask for gigabytes: `bytearray(2**34)`, a storage of 2^40 numbers, a text whose
stated length is not there, tuples that double forty times (2^40 steps to hash). So its opcodes are run here
on shadows: of each value only its name, its size or its length.
"""

from __future__ import annotations

import io
import pickletools
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MOST_NESTED = 100_000  # values in one tuple, those in the tuples inside it included
_MOST_STACK = 1_000_000
_MOST_KEYS = 1_000  # of one dict that are kept

_ITEM_BYTES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("QUInt8Storage", "QInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage", "ComplexHalfStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
# These make something as large as the number that they are called with.
_GROWING = frozenset({"builtins.bytearray", "__builtin__.bytearray", "builtins.bytes", "__builtin__.bytes"})


@dataclass(eq=False)
class _Shadow:
    """A value that is not built: how many values it holds, and what is known of it."""

    weight: int = 1
    name: str = ""  # of a class or function
    value: Any = None  # a number, a text, the items of a tuple, or the keys of a dict that are text (a list)


@dataclass
class PickleScan:
    """Attributes:
    names: classes and functions that it calls, `module.qualname`.
    stored: bytes that the storages take which it refers to, by their key.
    viewed: bytes of them up to the last that a tensor shows.
    keys: of the dict that it is, those that are text; none where it is another object.
    """

    names: set[str] = field(default_factory=set)
    stored: dict[str, int] = field(default_factory=dict)
    viewed: dict[str, int] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


def scan_file(path: Path) -> PickleScan:
    """The scan of a file of `torch.save`, of either format.

    Raises:
        ValueError: it is malformed, or would take more memory than the file has bytes.
    """
    if zipfile.is_zipfile(path):
        reader = torch._C.PyTorchFileReader(str(path))  # the one that torch.load reads with
        return scan_pickles(io.BytesIO(reader.get_record("data.pkl")), 1, path.stat().st_size)
    if tarfile.is_tarfile(path):  # a format before torch 0.1.10, which torch.load unpacks to a folder
        raise ValueError("it is a tar archive as well")
    with path.open("rb") as file:
        return scan_pickles(_Clamped(file, path.stat().st_size), 5, path.stat().st_size)


class _Clamped(io.RawIOBase):
    """A file whose reads never ask for more bytes than it has: a stated length costs no memory."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        super().__init__()
        self._file, self._size = file, size

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size if 0 <= size <= self._size else self._size)

    def readline(self, size: int | None = -1) -> bytes:
        return self._file.readline(10_000)

    def tell(self) -> int:
        return self._file.tell()


def scan_pickles(file: Any, count: int, most_bytes: int) -> PickleScan:
    """The scan of `count` pickles one after the other, whose storages have `most_bytes` together.

    Raises:
        ValueError: as `scan_file`.
    """
    scan = PickleScan()
    made = [_Machine(scan).run(file) for _ in range(count)]
    saved = made[min(3, count - 1)]  # of the five pickles of the old format the fourth, after its heading
    scan.keys = tuple(saved.value) if isinstance(saved.value, list) else ()
    if sum(scan.stored.values()) > most_bytes:
        raise ValueError(f"tensors of {sum(scan.stored.values())} bytes in a file of {most_bytes}")
    return scan


class _Machine:
    """The opcodes that `torch.load(weights_only=True)` knows; any other is malformed."""

    def __init__(self, scan: PickleScan) -> None:
        self._scan = scan
        self._stack: list[_Shadow] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Shadow] = {}

    def run(self, file: Any) -> _Shadow:
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self._step(opcode.name, argument)
                if len(self._stack) > _MOST_STACK:
                    raise ValueError(f"more than {_MOST_STACK} values at once")
            return self._stack[-1]
        except (IndexError, KeyError, AttributeError, TypeError) as error:
            raise ValueError("a malformed pickle") from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "STOP":
                pass
            case "GLOBAL":
                self._scan.names.add(str(argument).replace(" ", "."))
                stack.append(_Shadow(name=str(argument).replace(" ", ".")))
            case "MARK":
                self._marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(_Shadow(value=argument))
            case "BINUNICODE" | "SHORT_BINSTRING" | "BINSTRING" | "SHORT_BINBYTES":
                stack.append(_Shadow(value=argument))
            case "EMPTY_DICT":
                stack.append(_Shadow(value=[]))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append(_Shadow())
            case "EMPTY_TUPLE":
                stack.append(_Shadow(value=()))
            case "TUPLE":
                stack.append(_tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_tuple([stack.pop() for _ in range(int(name[-1]))][::-1]))
            case "APPEND" | "BUILD":
                stack.pop()
                stack[-1]  # the object
            case "SETITEM":
                _, key = stack.pop(), stack.pop()
                _add_keys(stack[-1], [key])
            case "SETITEMS":
                keys = self._since_mark()[::2]
                _add_keys(stack[-1], keys)
            case "APPENDS" | "ADDITEMS":
                self._since_mark()
                stack[-1]
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                self._called(function, arguments)
                stack.append(_Shadow(weight=arguments.weight))
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case _:
                raise ValueError(f"the pickle opcode {name}")

    def _since_mark(self) -> list[_Shadow]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _called(self, function: _Shadow, arguments: _Shadow) -> None:
        if not function.name:
            raise ValueError("a call of what is no function")
        if function.name in _GROWING:
            first = arguments.value[0].value if arguments.value else ""
            if type(first) is int:
                raise ValueError(f"{function.name}({first}), which asks for so many bytes")
        if function.name == "torch._utils._rebuild_tensor_v2":
            self._view(*arguments.value[:4])

    def _view(self, storage: _Shadow, offset: _Shadow, sizes: _Shadow, strides: _Shadow) -> None:
        key, item = storage.value
        steps = [(size.value, stride.value) for size, stride in zip(sizes.value, strides.value, strict=True)]
        if offset.value < 0 or any(size < 0 or stride < 0 for size, stride in steps):
            raise ValueError("a tensor of negative sizes")
        if all(size for size, _ in steps):
            last = offset.value + sum((size - 1) * stride for size, stride in steps)
            self._scan.viewed[key] = max(self._scan.viewed.get(key, 0), item * (last + 1))

    def _persistent(self, shadow: _Shadow) -> _Shadow:
        """("storage", class, key, location, numel[, view]): where torch looks a storage up.

        Or, in the old format, ("module", class, file, source): a class with its source, which nothing reads.
        """
        kind, of, *rest = shadow.value
        tag = kind.value.decode() if isinstance(kind.value, bytes) else kind.value
        if tag == "module":
            return of
        key, _location, count = rest[:3]
        if tag != "storage" or type(count.value) is not int or count.value < 0:
            raise ValueError("a malformed reference to a storage")
        item = _ITEM_BYTES.get(of.name.rpartition(".")[2])
        if item is None:
            raise ValueError(f"a storage of the class {of.name or '?'}")
        known, size = self._scan.stored.get(str(key.value), 0), item * count.value
        self._scan.stored[str(key.value)] = max(known, size)
        return _Shadow(value=(str(key.value), item))


def _add_keys(table: _Shadow, keys: list[_Shadow]) -> None:
    if isinstance(table.value, list) and len(table.value) < _MOST_KEYS:
        table.value += [key.value for key in keys[:_MOST_KEYS] if isinstance(key.value, str)]


def _tuple(items: list[_Shadow]) -> _Shadow:
    weight = 1 + sum(item.weight for item in items)
    if weight > MOST_NESTED:
        raise ValueError(f"a tuple of more than {MOST_NESTED} values")
    return _Shadow(weight=weight, value=tuple(items))
