"""Reading a `.pt2` from an untrusted hand.

`torch.export.load` unpickles parts of the file, evaluates strings in it as Python, and imports modules and
shared libraries that it names. So it is never shown the file. Instead a clean archive is built in memory:

1. only the members below are admitted, none of which may unpack to more than 32 times its bytes;
2. the graph is rebuilt from JSON by `schema`, which admits plain values only;
3. weights are copied as raw bytes, after their shapes were checked against the bytes that are there;
4. sample inputs (a pickle) and guards (source code) are left out; nothing needs them.

Only that archive is given to `torch.export.load`.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveWriter

from nncompress.errors import ModelFileError, NNCompressError, UnsafeFileError, UnsupportedError
from nncompress.ir.formats.deflate import MOST_RATIO
from nncompress.ir.formats.samples import MOST_TEXT
from nncompress.ir.torch_logs import unlogged
from nncompress.loading.json_schema import Check, Rejected, admit, plain, without_empty_keys
from nncompress.loading.pt2.loader_cost import kept
from nncompress.loading.pt2.schema import EXPORTED_PROGRAM, PAYLOADS
from nncompress.loading.pt2.shapes import Unfit, check_shapes
from nncompress.loading.repeated import MOST_REPEATED
from nncompress.loading.stored_zip import check_members

HISTORY_FILE = "nncompress.json"

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
HISTORY = f"extra/{HISTORY_FILE}"
SAMPLES = "extra/nncompress.samples"

_MAX_JSON = 512 * 2**20  # bytes
_MAX_HISTORY = 16 * 2**20

_COPIED = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,9}", re.ASCII)
_READ = {GRAPH, WEIGHTS, CONSTANTS, HISTORY, SAMPLES, "archive_format", "archive_version", "byteorder"}
_IGNORED = re.compile(r"data/sample_inputs/model\.pt|extra/.*|\.data/(version|serialization_id)|version")
_TEXT_OUTPUT = re.compile(r"output node Argument\(as_string=(.*)\)")
_CARRIES_CODE = [
    (re.compile(r"data/aotinductor/.*"), "a compiled library (AOTInductor)"),
    (re.compile(r"data/(weights|constants)/[^/]*\.pt"), "pickled weights (the format of torch before 2.8)"),
    (re.compile(r"data/constants/.*"), "a pickled object"),
    (re.compile(r".*\.(so|dll|dylib|py|pyc|pkl|cubin|ptx)"), "code"),
]

Item = dict[str, Any]


def read_pt2(
    path: str | Path, notice: Callable[[str], None] = lambda said: None
) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program of a `.pt2` and the record nncompress keeps in it (`{}` if none), running none of its code.

    The program has no example inputs and no guards; tensors are on the CPU; outputs that were dataclasses
    come back as dicts. Weights that shared storage still do.

    Args:
        notice: told which keys of a newer torch were left out, because nothing was in them.

    Raises:
        ModelFileError: it is not a `.pt2`, is damaged, or says something unknown.
        UnsupportedError: it returns text.
        UnsafeFileError: loading it would run code that it carries.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive, without_empty_keys() as left_out:
            check_members(archive, path, deflated=MOST_RATIO)
            members = _Members(archive)
            clean = _repack(members)
            record = _read_history(members)
    except Rejected as rejected:
        raise _refusal(path, rejected) from rejected
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if left_out:
        names = ", ".join(repr(key[:80]) for key in sorted(left_out)[:5])
        notice(f"{path.name} is of a newer torch: keys without content were left out ({names})")
    program = _load(clean, path)
    try:
        check_shapes(program)
    except Unfit as error:
        raise ModelFileError(
            f"{path} holds a graph that cannot run here",
            got=error.reason,
            remedy=error.remedy,
        ) from error
    return program, record


def read_samples(path: Path) -> bytes:
    """The text of the samples that nncompress keeps in a `.pt2` that was read; empty where there are none.

    Raises:
        ModelFileError: there are more than nncompress writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _Members(archive)
            if SAMPLES not in members:
                return b""
            if members.size(SAMPLES) > MOST_TEXT:
                raise Rejected(f"{members.size(SAMPLES)} bytes of samples, of at most {MOST_TEXT}")
            return members.read(SAMPLES)
    except (Rejected, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise _damaged(path, str(error)) from error


class _Members:
    """The admitted members of an archive, by their path below its root folder."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        root = archive.namelist()[0].split("/")[0] + "/"
        self._archive = archive
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if not info.filename.startswith(root):
                raise Rejected(f"the member {info.filename!r} is misplaced")
            name = info.filename.removeprefix(root)
            _admit_member(name)
            self._infos[name] = info
        if self._small("archive_format") != b"pt2" or self._small("byteorder", b"little") != b"little":
            raise Rejected("it is not marked as a little-endian pt2 archive")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def size(self, name: str) -> int:
        return self._infos[name].file_size

    def read(self, name: str) -> bytes:
        if name not in self._infos:
            raise Rejected(f"the member {name!r} is missing")
        return self._archive.read(self._infos[name])

    def json(self, name: str, check: Check, limit: int = _MAX_JSON) -> Any:
        content = self.read(name)
        if len(content) > limit:
            raise Rejected(f"{len(content)} bytes of JSON in {name!r}")
        try:
            return admit(check, content)
        except Rejected as rejected:
            rejected.path.append(name)
            raise

    def _small(self, name: str, default: bytes = b"") -> bytes:
        return self.read(name)[:16].strip() if name in self._infos else default


def _admit_member(name: str) -> None:
    for pattern, what in _CARRIES_CODE:
        if pattern.fullmatch(name) and not _COPIED.fullmatch(name) and name not in _READ:
            raise Rejected(f"it holds {what}, the member {name!r}", code=True)
    if not (name in _READ or _COPIED.fullmatch(name) or _IGNORED.fullmatch(name)):
        raise Rejected(f"unknown member {name!r}")


def _repack(members: _Members) -> io.BytesIO:
    program = members.json(GRAPH, EXPORTED_PROGRAM)
    weights = members.json(WEIGHTS, PAYLOADS)
    constants = members.json(CONSTANTS, PAYLOADS)
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        writer.write_string(GRAPH, json.dumps(program))
        writer.write_bytes("data/sample_inputs/model.pt", b"")
        for config, folder, name in (
            (weights, "data/weights/", WEIGHTS),
            (constants, "data/constants/", CONSTANTS),
        ):
            for member in _payload_members(config, folder, members, name):
                writer.write_bytes(member, members.read(member))
            writer.write_string(name, json.dumps(config))
    buffer.seek(0)
    return buffer


def _payload_members(config: Item, folder: str, members: _Members, where: str) -> Iterator[str]:
    """The raw members that `config` names, each once, its tensors checked against the bytes it has."""
    seen: set[str] = set()
    views: set[tuple[str, str]] = set()
    taken: dict[str, int] = {}  # bytes of the views of a member
    repeated = 0
    for name, payload in config["config"].items():
        member = folder + payload["path_name"]
        try:
            if payload["use_pickle"]:
                raise Rejected("it is a pickle", code=True)
            if not _COPIED.fullmatch(member):
                raise Rejected("it is a pickled object", code=True)
            if member not in members or payload["tensor_meta"] is None:
                raise Rejected("its data is missing")
            meta, stored = payload["tensor_meta"], members.size(member)
            size = _check_extent(meta, stored)
            view = (member, json.dumps([meta["sizes"], meta["strides"], meta["storage_offset"]]))
            if view not in views:  # not tied to one before it
                views.add(view)
                before = taken.get(member, 0)
                taken[member] = before + size
                repeated += max(0, before + size - stored) - max(0, before - stored)
            if repeated > MOST_REPEATED:
                raise Rejected(f"it repeats stored bytes: {repeated}, with the tensors before it")
        except Rejected as rejected:
            rejected.path += [name, where]
            raise
        if member not in seen:
            seen.add(member)
            yield member


def _check_extent(meta: Item, stored: int) -> int:
    """The bytes of a tensor; refused is one that reaches beyond its `stored` bytes."""
    sizes, strides = ([item["as_int"] for item in meta[key]] for key in ("sizes", "strides"))
    if len(sizes) != len(strides) or len(sizes) > 32:
        raise Rejected(f"a tensor of {len(sizes)} sizes and {len(strides)} strides")
    item_bytes = _ITEM_BYTES[meta["dtype"]]
    elements = 1
    for size in sizes:
        elements *= size
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides))
    reach = 0 if elements == 0 else (meta["storage_offset"]["as_int"] + last + 1) * item_bytes
    if reach > stored or stored % item_bytes:
        raise Rejected(f"a tensor {sizes} needs {reach} bytes, of which {stored} are stored")
    return elements * item_bytes


# bytes an element takes, by torch's serialized dtype number
_ITEM_BYTES = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),  # uint8, int8, bool, float8
    **dict.fromkeys((3, 6, 13, 28), 2),  # int16, float16, bfloat16, uint16
    **dict.fromkeys((4, 7, 9, 34), 4),  # int32, float32, complex32, uint32
    **dict.fromkeys((5, 8, 10, 35), 8),  # int64, float64, complex64, uint64
    11: 16,  # complex128
}


def _read_history(members: _Members) -> dict[str, Any]:
    if HISTORY not in members:
        return {}
    return members.json(HISTORY, plain(dict), limit=_MAX_HISTORY)


def _load(clean: io.BytesIO, path: Path) -> ExportedProgram:
    with unlogged(), warnings.catch_warnings(), _logged_errors() as logged, kept():
        warnings.simplefilter("ignore")
        try:
            return torch.export.load(clean)
        except Exception as error:  # torch raises all kinds for a graph that does not fit together
            cause = logged[0] if logged else error  # torch logs the cause and raises that it did
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            reason = lines[-1][:300] if lines else ""
            if text := _TEXT_OUTPUT.search(reason):
                raise UnsupportedError(
                    f"{path} returns text beside tensors, which torch.export.save writes and no torch loads",
                    got=f"the output {text[1][:80]!r}",
                    remedy="export it again with a forward() of tensors alone, or nncompress.load(module)",
                ) from error
            raise _damaged(path, f"{type(cause).__name__}: {reason}") from error


class _Errors(logging.Handler):
    """Keeps the exceptions that are logged."""

    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__()
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._errors.append(record.exc_info[1])


@contextmanager
def _logged_errors() -> Iterator[list[BaseException]]:
    """What torch.export logs meanwhile goes to the list, not to the screen."""
    logger = logging.getLogger("torch.export")
    errors: list[BaseException] = []
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Errors(errors)], False
    try:
        yield errors
    finally:
        logger.handlers, logger.propagate = before


def _refusal(path: Path, rejected: Rejected) -> NNCompressError:
    if rejected.code:
        return UnsafeFileError(
            f"{path} is not loaded: it carries code",
            got=str(rejected),
            expected="a graph of torch operators and raw weights, as torch.export.save writes",
            remedy="save the model again with torch.export.save (torch 2.8 or later), without custom objects",
        )
    return ModelFileError(
        f"{path} is not a .pt2 that can be read",
        got=str(rejected),
        expected="an archive written by torch.export.save (torch 2.8 or later)",
        remedy=f"save the model again with torch.export.save of torch {torch.__version__.split('+')[0]}",
    )


def _damaged(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is damaged or not a .pt2",
        got=reason,
        expected="an archive written by torch.export.save",
        remedy="copy or save the file again",
    )
