"""`mnist:DIR`: the IDX files of MNIST and its relatives (Fashion-MNIST, KMNIST), gzipped or not.

An IDX file is two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian
32-bit number, and the data (LeCun, http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from nncompress.data.kind import Kind
from nncompress.data.source import MOST_COMPRESSION, ArraySource, check_allocation
from nncompress.errors import DataError

PREFIX = {"train": "train", "test": "t10k"}
UINT8 = 8


def open_mnist(folder: Path, split: str) -> ArraySource:
    """Images uint8 [N, H, W] and labels [N] of one split.

    Raises:
        DataError: a file is missing or damaged.
    """
    images = read_idx(_find(folder, f"{PREFIX[split]}-images", "idx3-ubyte"), dimensions=3)
    labels = read_idx(_find(folder, f"{PREFIX[split]}-labels", "idx1-ubyte"), dimensions=1)
    return ArraySource({"images": images}, labels, origin=f"mnist:{folder}")


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{suffix}" for dot in "-." for suffix in ("", ".gz")]
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    raise DataError(
        f"mnist: there is no {names[0]} in {folder}",
        expected=" or ".join(names[:2]),
        remedy="name the folder that holds the four IDX files, and ?split=train or ?split=test",
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array with this many dimensions.

    Raises:
        DataError: another kind of file, or one whose size differs from what its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, UINT8, dimensions)):
                raise DataError(
                    f"{path} is not an IDX file of {dimensions} dimensions",
                    got=f"a header of {header[:4].hex(' ') or 'nothing'}",
                    expected=bytes((0, 0, UINT8, dimensions)).hex(" "),
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            stored = path.stat().st_size
            if size > (stored * MOST_COMPRESSION if path.suffix == ".gz" else stored):
                raise DataError(
                    f"{path} has another size than its header says",
                    got=f"{stored} bytes",
                    expected=f"{size} bytes for {list(shape)}",
                    remedy="download it again",
                )
            check_allocation(size, str(path))
            data = file.read(size + 1)  # one more, to see a file that is too long
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem), remedy="download it again") from problem
    if len(data) != size:
        raise DataError(
            f"{path} has another size than its header says",
            got=f"{len(data)} bytes" if len(data) < size else "more bytes",
            expected=f"{size} bytes for {list(shape)}",
            remedy="download it again",
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


KIND = Kind(
    "mnist:DIR",
    lambda asked: asked.scheme == "mnist",
    lambda asked: open_mnist(Path(asked.place), asked.one_of("split", tuple(PREFIX), "test")),
    options=("split",),
)
