"""The files beside an artifact that its weights are kept in."""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

from nncompress.errors import ModelFileError, UnsafeFileError

_LONGEST = 4000  # characters of a path


def stored_bytes(path: Path) -> int:
    """The bytes of an artifact, with the files that it refers to.

    Raises:
        ModelFileError, UnsafeFileError: as `external_files`.
    """
    return sum(file.stat().st_size for file in (path, *external_files(path)))


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside `path` that its weights are kept in: of an `.xml` its `.bin`, of an ONNX file any.

    Raises:
        ModelFileError: it is no ONNX file, or one of them is missing.
        UnsafeFileError: one of them is outside the folder of `path`, by its name or through a link.
    """
    suffix = path.suffix.lower()
    if suffix in (".ort", ".pte", ".xml"):
        beside = path.with_suffix(".bin")
        return (beside,) if suffix == ".xml" and beside.is_file() else ()
    known = path.stat()
    folder = path.resolve().parent
    locations = _locations(path.resolve(), known.st_mtime_ns, known.st_size)
    for location in locations:
        if not isinstance(location, str) or "\0" in location:  # protobuf gives bytes where it is not text
            raise ModelFileError(f"{path} keeps weights in a file whose name is not text", got=repr(location))
        if len(location) > _LONGEST or any(len(part.encode()) > 255 for part in location.split("/")):
            raise ModelFileError(
                f"{path} keeps weights in a file whose name no file can have",
                got=f"{location[:40]}…, {len(location)} characters",
            )
        if not (folder / location).resolve().is_relative_to(folder) or Path(location).is_absolute():
            raise UnsafeFileError(
                f"{path} keeps weights outside its own folder",
                got=location,
                expected="a file beside the model",
                remedy="save the model in one file, or its data beside it",
            )
        if not (folder / location).is_file():
            raise ModelFileError(
                f"{path} keeps weights in {location}, which is not beside it",
                expected=f"{path.parent / location}",
                remedy="copy both files, side by side",
            )
    return tuple(folder / location for location in locations)


@lru_cache(maxsize=64)
def _locations(path: Path, changed_ns: int, size: int) -> list[str]:
    """What an ONNX file, as it was then, names: it is read once, however often it is opened."""
    with path.open("rb") as file:
        if size == 0:
            raise ModelFileError(f"{path} is empty", expected="an ONNX file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:  # the key that every external tensor carries: usually none does
                return []
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as problem:  # protobuf raises all kinds for a damaged file
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise ModelFileError(
            f"{path} is not a model that can be read", got=reason[:300], expected="an ONNX file"
        ) from problem
    found = {
        entry.value
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(found, key=str)
