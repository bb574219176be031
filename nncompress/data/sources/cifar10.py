"""`cifar10:DIR`: the official Python batches, or `train.tar.*` and `test.tar.*` of images in class folders.

The official batches are pickles, which can run code when they are read. Here they are read by an unpickler
for which `numpy` does not exist: the four names an array's pickle needs are bound to inert stand-ins, every
other name is refused.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Asked, Kind
from nncompress.data.source import ArraySource, check_allocation
from nncompress.data.sources.pictures.images import SUFFIXES, EncodedImage, ImageSource
from nncompress.errors import DataError

BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
TAR_SUFFIXES = ("tar.xz", "tar.gz", "tgz", "tar.bz2", "tar")
RECORD = 3 * 32 * 32


def open_cifar10(folder: Path, split: str, expected: list[ExpectedInput] | None) -> ArraySource | ImageSource:
    """Images uint8 [N, 32, 32, 3] and labels of one split.

    Raises:
        DataError: nothing of the kind in the folder, or a damaged or hostile file.
    """
    for place in (folder, folder / "cifar-10-batches-py"):
        paths = [place / name for name in BATCHES[split]]
        if any(map(os.path.isfile, paths)):
            return _open_batches(paths, place / "batches.meta")
    for suffix in TAR_SUFFIXES:
        if os.path.isfile(folder / f"{split}.{suffix}"):
            return open_image_tar(folder / f"{split}.{suffix}", expected)
    raise DataError(
        f"cifar10: there is no CIFAR-10 {split} split in {folder}",
        expected=f"{BATCHES[split][0]} ..., or {split}.tar.xz of images in class folders",
        remedy="unpack cifar-10-python.tar.gz and name the folder cifar-10-batches-py",
    )


def _open_batches(paths: list[Path], meta: Path) -> ArraySource:
    pixels, labels = [], []
    for path in paths:
        batch = read_batch(path)
        data, numbers = batch.get("data"), batch.get("labels")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (RECORD,):
            raise DataError(
                f"{path} is not a CIFAR-10 batch",
                got=f"data of {getattr(data, 'dtype', type(data).__name__)} {getattr(data, 'shape', '')}",
                expected=f"uint8 [N, {RECORD}]",
            )
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 10 for n in numbers):
            raise DataError(f"{path}: the labels are not class numbers", expected="a list of 0 ... 9")
        if len(numbers) != len(data):
            raise DataError(f"{path} has {len(numbers)} labels for {len(data)} images")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += numbers
    names = read_batch(meta).get("label_names") if meta.is_file() else None
    class_names = tuple(_text(n) for n in names) if isinstance(names, list) and len(names) == 10 else None
    images = np.ascontiguousarray(np.concatenate(pixels))
    return ArraySource({"images": images}, np.array(labels), origin="cifar10", class_names=class_names)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    raise pickle.UnpicklingError(f"a {type(value).__name__} where there should be text")


class _Dtype:
    """Stand-in for numpy.dtype: remembers its code."""

    def __init__(self, code: object = b"", *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        return None  # byte order and flags: uint8 has none


class _Array:
    """Stand-in for numpy.ndarray: remembers what an array's pickle says."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise pickle.UnpicklingError("an array without contents")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that is not uint8")
        array = np.frombuffer(data, np.uint8)
        return array.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("only latin1 text can become bytes")
    return text.encode("latin1")


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_batch(path: Path) -> dict[str, Any]:
    """One official batch: text keys; arrays of uint8; lists of numbers or bytes. Runs no code of the file's.

    Raises:
        DataError: the file is damaged, or asks for anything but arrays, bytes, text and numbers.
    """
    try:
        check_allocation(path.stat().st_size, str(path))
        content = path.read_bytes()
        _check_sizes(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__}")
        return {_text(k): v.to_numpy() if isinstance(v, _Array) else v for k, v in batch.items()}
    except Exception as problem:  # a damaged pickle can raise anything
        if isinstance(problem, DataError):
            raise
        raise DataError(
            f"{path} is not an official CIFAR-10 batch",
            got=str(problem),
            expected="a pickled dictionary of arrays, bytes and numbers",
            remedy="download it again",
        ) from problem


def _check_sizes(content: bytes) -> None:
    """Refuse a pickle that asks for more memory than it has bytes.

    The unpickler makes room for a string, or for a memo of so many entries, before it sees whether they come.
    """
    for opcode, argument, _ in pickletools.genops(content):  # raises ValueError for a string that is cut off
        if "PUT" in opcode.name and argument is not None and int(argument) > len(content):
            raise pickle.UnpicklingError(f"a memo of {argument} entries in {len(content)} bytes")


def open_image_tar(path: Path, expected: list[ExpectedInput] | None) -> ImageSource:
    """An archive of `class/image` files; the encoded images are kept in memory, decoded when read.

    Raises:
        DataError: damaged, larger than memory, or without images in class folders.
    """
    blobs: dict[str, list[tuple[str, bytes]]] = {}
    try:
        with _Bounded(path) as content, tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                parts = [p for p in member.name.split("/") if p not in ("", ".")]
                if member.isdir() or not parts or not parts[-1].lower().endswith(SUFFIXES):
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise DataError(
                        f"{path}: {member.name} is no plain file",
                        got="a link, a device or a file with holes",
                        expected="images, each stored as it is",
                    )
                if len(parts) < 2:
                    raise DataError(
                        f"{path}: {member.name} is in no class folder", expected="class/image.jpg"
                    )
                file = archive.extractfile(member)
                if file is not None:
                    blobs.setdefault(parts[-2], []).append((member.name, file.read()))
    except DataError:
        raise
    except Exception as problem:  # a damaged archive can raise anything
        raise DataError(
            f"{path} cannot be read as a tar archive", got=str(problem), remedy="download it again"
        ) from problem
    if not blobs:
        raise DataError(f"{path} holds no images in class folders", expected="class/image.jpg")
    classes = tuple(sorted(blobs))
    images = [
        EncodedImage(f"{path}{os.sep}{name}", content, label)
        for label, group in enumerate(classes)
        for name, content in sorted(blobs[group])
    ]
    return ImageSource(images, classes, expected)


class _Bounded(io.RawIOBase):
    """A tar, unpacked as it is read, that ends in an error where it grows beyond what images do.

    Images are compressed already, so an archive of them is hardly larger than its file. A bomb is: 1 MB of xz
    can hold 7 GB, and the header of a tar can ask for all of it at once.
    """

    FREE, PER_BYTE = 2**26, 64

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            magic = file.read(6)
        openers = {b"\xfd7zXZ\0": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
        opener = next((how for start, how in openers.items() if magic.startswith(start)), open)
        self._file: IO[bytes] = opener(path, "rb")  # type: ignore[operator]
        self._most = self.FREE + self.PER_BYTE * path.stat().st_size

    def read(self, size: int = -1, /) -> bytes:
        self._check(self._file.tell() + size)
        return self._file.read(self._most if size < 0 else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check(offset if whence == io.SEEK_SET else 0)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def _check(self, end: int) -> None:
        if end > self._most:
            raise tarfile.TarError(f"it unpacks to more than {self._most} bytes")


def _open_asked(asked: Asked) -> ArraySource | ImageSource:
    return open_cifar10(Path(asked.place), asked.one_of("split", tuple(BATCHES), "test"), asked.expected)


KIND = Kind("cifar10:DIR", lambda asked: asked.scheme == "cifar10", _open_asked, options=("split",))
