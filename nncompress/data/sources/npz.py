"""`file.npz`: arrays x and y, or x0, x1, ... and y, or named as the model's inputs; optional mean, std.
Several, in a folder or by a pattern such as `train-*.npz`, are one source.

Array headers are read and checked against the archive before memory is given to the arrays, and pickled
objects are never read. Inputs that are not compressed stay in the file, and their samples are read as they
are asked for, labels too; compressed ones (`numpy.savez_compressed`) are unpacked: in memory up to `UNPACKED`
bytes each, beyond into a temporary file, of which samples are read as they are asked for.
"""

from __future__ import annotations

import glob
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Asked, Kind
from nncompress.data.normalization import Normalization
from nncompress.data.source import MOST_COMPRESSION, ArraySource, Raw, check_allocation, native
from nncompress.data.stored_rows import StoredRows, UnpackedRows, check_content, member_offset
from nncompress.errors import DataError

UNPACKED = 2**28  # bytes of a compressed array that are held in memory
INPUT_NAMES = ("x", "X", "images", "inputs", "data")
LABEL_NAMES = ("y", "Y", "labels", "targets", "label")


def open_npz(path: Path, expected: list[ExpectedInput] | None, called: Sequence[str] = ()) -> ArraySource:
    """Open an archive of arrays.

    Args:
        called: what the model's inputs are called, where that alone is known of them.
    Raises:
        DataError: not an archive of arrays, damaged, or without the arrays needed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            inputs = input_names(names, expected, path, called)
            label = next((n for n in LABEL_NAMES if n in names and n not in inputs), None)
            wanted = [*inputs, *([label] if label else []), *(n for n in ("mean", "std") if n in names)]
            if sum(archive.getinfo(f"{n}.npy").compress_size for n in wanted) > path.stat().st_size:
                raise DataError(f"{path}: the archive's directory lies about the sizes of its arrays")
            shared = [name for name, e in zip(inputs, expected or ()) if e.batch_dim is None]
            by_row = {*inputs, label} - set(shared)
            found = {name: _read_array(archive, name, path, by_row=name in by_row) for name in wanted}
    except DataError:
        raise
    except OSError as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)) from problem
    except Exception as problem:  # a damaged archive can raise anything
        raise DataError(
            f"{path} cannot be read as an .npz file",
            got=f"{type(problem).__name__}: {problem}",
            expected="arrays x and y, as numpy.savez writes them",
        ) from problem
    whole = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    return ArraySource(
        {name: found[name] for name in inputs},
        found[label] if label else None,
        origin=str(path),
        normalization=_normalization(whole, path),
        shared=shared,
    )


def input_names(
    names: list[str], expected: list[ExpectedInput] | None, path: Path, called: Sequence[str] = ()
) -> list[str]:
    """Which of the arrays are inputs: those called as the model's, x0, x1, …, or x.

    Args:
        called: what the model's inputs are called, where that alone is known of them.

    Raises:
        DataError: none are.
    """
    wanted = list(called) if expected is None else [e.name for e in expected]
    if wanted and set(wanted) <= set(names):
        return wanted
    numbered = [f"x{i}" for i in range(len(names)) if f"x{i}" in names]
    if numbered and numbered == [f"x{i}" for i in range(len(numbered))]:
        return numbered
    single = next((n for n in INPUT_NAMES if n in names), None)
    if single is None and set(wanted) & set(names):
        lacking = [name for name in wanted if name not in names]
        raise DataError(
            f"{path} has arrays for some inputs of the model only",
            got=", ".join(names),
            expected=f"{', '.join(lacking)}, too",
            remedy=f"store {', '.join(f'{name}=...' for name in lacking)} beside them, one a sample",
        )
    if single is None:
        by_name = f", or the model's inputs by name: {', '.join(wanted)}" if wanted else ""
        raise DataError(
            f"{path} has no array x",
            got=", ".join(names) or "no arrays",
            expected=f"x (and y), or x0, x1, ...{by_name}",
            remedy="numpy.savez(file, x=images, y=labels)"
            if path.suffix == ".npz"
            else 'torch.save({"x": images, "y": labels}, file)',
        )
    return [single]


def _read_array(archive: zipfile.ZipFile, name: str, path: Path, *, by_row: bool) -> np.ndarray | StoredRows:
    """The array, or (`by_row`) its place in the file, where it lies there row after row."""
    info = archive.getinfo(name + ".npy")
    file_size = path.stat().st_size
    if info.compress_size > file_size or info.file_size > info.compress_size * MOST_COMPRESSION + 1024:
        raise DataError(f"{path}: the archive's directory lies about the size of {name}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without bound
        raise DataError(
            f"{path}: {name} is compressed in a way that numpy does not write",
            remedy="numpy.savez_compressed(file, x=images, y=labels)",
        )
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise DataError(f"{path}: {name} is in a format version unknown here", got=str(version))
        shape, by_column, dtype = read_header(member)
        start = member.tell()
        if dtype.hasobject:
            raise DataError(
                f"{path}: {name} holds pickled Python objects, which are not read",
                expected="plain numbers",
                remedy=f"save {name} as one array of one dtype and shape",
            )
        if dtype.kind == "V":
            raise DataError(f"{path}: {name} does not hold numbers", got=f"dtype {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - start:
            raise DataError(
                f"{path}: the header of {name} does not match its contents",
                got=f"{info.file_size - start} bytes",
                expected=f"{size} bytes for {dtype} {list(shape)}",
                remedy="the file is damaged: write it again",
            )
    in_rows = by_row and not by_column and min(shape, default=-1) >= 0
    if in_rows and dtype.isnative and dtype.kind in "biuf" and dtype.itemsize <= 8:
        if info.compress_type == zipfile.ZIP_STORED:
            rows = StoredRows(path, member_offset(path, info) + start, shape, dtype)
            check_content(archive, info)
            return rows
        if size > UNPACKED:
            with archive.open(info) as member:
                member.read(start)
                return UnpackedRows(path, member, shape, dtype)
    check_allocation(size, f"{path}: {name}")
    with archive.open(info) as member:
        return native(np.lib.format.read_array(member, allow_pickle=False))


def _normalization(arrays: dict[str, np.ndarray], path: Path) -> Normalization | None:
    if "mean" not in arrays and "std" not in arrays:
        return None
    if "mean" not in arrays or "std" not in arrays:
        missing = "std" if "mean" in arrays else "mean"
        raise DataError(f"{path} has only one of mean and std", expected=f"also an array {missing}")
    mean, std = (tuple(float(v) for v in np.ravel(arrays[key])) for key in ("mean", "std"))
    return Normalization(mean, std)


def _form(source: ArraySource) -> tuple[str, str, str]:
    """What all shards have in common: inputs, labels, normalisation."""
    inputs = ", ".join(f"{field.name}: {field.dtype} {list(field.shape)}" for field in source.fields)
    scaled = source.normalization
    return (
        f"{inputs} a sample",
        "labels" if source.has_labels else "no labels",
        "none" if scaled is None else f"mean {list(scaled.mean)}, std {list(scaled.std)}",
    )


class Shards:
    """The samples of several sources, one after the other.

    Raises:
        DataError: their samples differ in form, or only some have labels.
    """

    def __init__(self, sources: Sequence[ArraySource], origins: Sequence[str]) -> None:
        first = sources[0]
        for source, origin in zip(sources, origins):
            for what, own, others in zip(("inputs", "labels", "normalisation"), _form(source), _form(first)):
                if own != others:
                    raise DataError(f"{origin} has other {what} than {origins[0]}", got=own, expected=others)
        classes = [source.classes for source in sources]
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.fields, self.has_labels = first.fields, first.has_labels
        self.class_names, self.normalization = first.class_names, first.normalization
        self.classes = max((c for c in classes if c is not None), default=None)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> Raw:
        """The samples at `indices`, in that order."""
        of = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(of, kind="stable")
        parts = [
            self._sources[number].read(indices[of == number] - self._starts[number])
            for number in np.unique(of)
        ]
        back = np.empty(len(indices), np.int64)
        back[order] = np.arange(len(indices))
        inputs = tuple(np.concatenate(each)[back] for each in zip(*(inputs for inputs, _ in parts)))
        if not self.has_labels:
            return inputs, None
        return inputs, np.concatenate([np.asarray(labels) for _, labels in parts])[back]


def open_shards(
    paths: Sequence[Path], expected: list[ExpectedInput] | None, called: Sequence[str] = ()
) -> ArraySource | Shards:
    """The samples of these archives, in the order of their names.

    Raises:
        DataError: one cannot be read, or they do not fit together.
    """
    sources = [open_npz(path, expected, called) for path in paths]
    if len(sources) == 1:
        return sources[0]
    if expected is not None and any(e.batch_dim is None for e in expected):
        raise DataError(
            f"{paths[0].parent}: inputs that all samples share cannot lie in several files",
            remedy="write one .npz",
        )
    return Shards(sources, [str(path) for path in paths])


def _shards_of(asked: Asked) -> list[Path]:
    """Of a folder, or of a pattern."""
    if asked.folder is not None:
        return sorted(path for path in asked.folder.glob("*.npz") if path.is_file())
    return sorted(map(Path, glob.glob(asked.path))) if asked.path.endswith(".npz") else []


KIND = Kind(
    "file.npz",
    lambda asked: asked.file is not None and asked.path.endswith(".npz"),
    lambda asked: open_npz(Path(asked.path), asked.expected, asked.names),
)
SHARDS = Kind(
    "several .npz (a folder, part-*.npz)",
    lambda asked: bool(_shards_of(asked)),
    lambda asked: open_shards(_shards_of(asked), asked.expected, asked.names),
)
