"""What a model file is, told from its content; its name does not count."""

from __future__ import annotations

import os
import re
import shlex
import zipfile
from enum import Enum
from pathlib import Path

from nncompress.errors import ModelFileError, UnsupportedError
from nncompress.files.bounded_text import Unreadable, check_regular
from nncompress.files.folders import files_in, said_beside
from nncompress.loading.state_dict.shards import INDEX


class FileKind(Enum):
    """The kinds of file that a loader reads."""

    PT2 = "a torch.export archive"
    PICKLE = "a file of torch.save"
    SAFETENSORS = "a safetensors file"
    SHARDS = "safetensors files that are listed in an index"
    ONNX = "an ONNX model"
    TORCHSCRIPT = "a TorchScript archive"
    HUGGINGFACE = "a directory of transformers"


_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # torch's magic number, pickled
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own limit

_UNPACK = "unpack it, and give the model that is in it"
_CONVERT = "write it as .onnx where it comes from (of TensorFlow and Keras: tf2onnx), and give that"
_DATA = "give it to --data instead, if it holds data"
_SAVE = "write the model with torch.export.save, torch.save or torch.onnx.export, and give that"
_NOT_A_MODEL_OF_TORCH = [
    (0, b"\x89HDF", "an HDF5 file (Keras)", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", _DATA),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"GGUF", "a GGUF file (llama.cpp)", "give the model that it was converted from"),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT),
    (0, b"\x89PNG", "an image", _SAVE),
    (0, b"\xff\xd8\xff", "an image", _SAVE),
    (0, b"\x7fELF", "a compiled library", _SAVE),
]
_SUFFIXES = (".pt2", ".pt", ".pth", ".safetensors", ".onnx")
_EXPECTED = "a .pt2 (torch.export.save), a torch.save file, .safetensors or .onnx"


def file_kind(path: str | Path) -> FileKind:
    """Which loader reads the file.

    Raises:
        ModelFileError: it is missing, empty, cut off, or no model of PyTorch.
        UnsupportedError: it is a model in a form that is no source of compression (ExecuTorch).
    """
    path = Path(path)
    if os.path.isfile(path / "config.json"):  # which no name, however odd, makes raise
        return FileKind.HUGGINGFACE
    if os.path.isfile(path / INDEX) or path.name.endswith(INDEX.partition(".")[2]):
        return FileKind.SHARDS
    if path.name.endswith(".bin.index.json"):
        raise _not_a_model(
            path,
            "an index of pickled shards",
            "where the model is: model.save_pretrained('folder'), which writes safetensors",
        )
    head, size = _head(path)
    for offset, magic, what, remedy in _NOT_A_MODEL_OF_TORCH:  # a tar may end as the archive that is in it
        if head[offset : offset + len(magic)] == magic:
            raise _not_a_model(path, what, remedy)
    if _ends_as_zip(path):
        return _zip_kind(path)
    if head.startswith(b"PK\x03\x04"):
        raise _not_a_model(path, "a zip archive whose end is missing: the file was cut off", "copy it again")
    if head.startswith(_TORCH_LEGACY):
        return FileKind.PICKLE
    if _is_safetensors(path, head, size):
        return FileKind.SAFETENSORS
    if head[4:8] == b"ET12":
        raise _artifact(path, "an ExecuTorch program")
    if head[4:8] == b"ORTM":
        raise _artifact(path, "a model in ONNX Runtime's mobile format")
    if head.startswith(b"<?xml") and b"<net " in head:
        raise _artifact(path, "an OpenVINO model")
    if _is_onnx(head):
        return FileKind.ONNX
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise _not_a_model(path, "a pickle that torch.save did not write", "save it with torch.save")
    raise _not_a_model(path, *_text(path, head))


def _head(path: Path) -> tuple[bytes, int]:
    try:
        size = check_regular(path)
    except Unreadable as reason:
        raise _no_file(path, str(reason)) from reason
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", got=str(error.strerror or error)) from error
    if not head:
        raise ModelFileError(f"{path} is empty", expected=_EXPECTED, remedy="save or copy it again")
    return head, size


def _no_file(path: Path, reason: str) -> ModelFileError:
    address = re.fullmatch(r"(\w{2,}):/+(.+)", path.as_posix())  # of which a path keeps one slash
    if address:
        url = f"{address[1]}://{address[2]}"
        how = f"curl -LO {shlex.quote(url)}" if address[1] in ("http", "https") else "and give its path"
        return ModelFileError(
            f"{url} is an address, and models are read from files here",
            expected=_EXPECTED,
            remedy=f"download it first: {how}",
        )
    if reason == "no such file or directory":
        code = path.name.rpartition(":")[0]
        if code and path.with_name(code).is_file():
            return ModelFileError(
                f"{path} names what builds a network, and MODEL is the file of its weights",
                expected=_EXPECTED,
                remedy=f"nncompress COMMAND weights.pt --arch {shlex.quote(str(path))}",
            )
        if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists() and not path.suffix:
            return ModelFileError(
                f"{path} does not exist, and is no id in HuggingFace's cache",
                expected=_EXPECTED,
                remedy=f"check the path; what HuggingFace has of this name comes by: hf download {path}",
            )
        return ModelFileError(
            f"{path} does not exist",
            expected=_EXPECTED,
            remedy=said_beside(path, _SUFFIXES),
        )
    if reason == "a directory":
        files = files_in(path, (*_SUFFIXES, ".bin"))
        inside = f"name one of the files in it: {', '.join(files[:5])}" if files else _NO_MODELS
        return ModelFileError(f"{path} is a directory", expected=_EXPECTED, remedy=inside)
    return ModelFileError(
        f"{str(path)[:100]} is no file that can be read",
        got=reason,
        expected=_EXPECTED,
        remedy="give the path of a file",
    )


_NO_MODELS = "name a file, or a folder that save_pretrained of transformers wrote (with config.json)"


def _ends_as_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the end of an archive that spans several disks: `_zip_kind` says so
        return True


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _not_a_model(path, f"a damaged zip archive ({error})", "copy it again") from error
    if not infos:
        raise _not_a_model(path, "an empty zip archive", "save or copy it again")
    if min(info.header_offset for info in infos) != 0:  # the end of a member that is itself an archive
        raise _not_a_model(path, "a zip archive whose end is missing: the file was cut off", "copy it again")
    names = {info.filename.split("/", 1)[-1] for info in infos}
    if {"models/model.json", "archive_format"} & names:
        return FileKind.PT2
    if "serialized_exported_program.json" in names:
        raise _not_a_model(
            path,
            "a .pt2 of torch before 2.8, whose weights are pickled",
            "load and save it again with torch.export",
        )
    if "constants.pkl" in names:
        return FileKind.TORCHSCRIPT
    if "data.pkl" in names:
        return FileKind.PICKLE
    if any(name.endswith(".npy") for name in names):
        raise _not_a_model(path, "NumPy arrays (.npz)", _DATA)
    if {"metadata.json", "config.json", "model.weights.h5"} <= names:
        raise _not_a_model(path, "a Keras archive", _CONVERT)
    raise _not_a_model(path, f"a zip archive of {', '.join(sorted(names)[:3])}", _UNPACK)


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    """Eight bytes of length, then a JSON object of that length, then the tensors."""
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or length > _MAX_SAFETENSORS_HEADER:
        return False
    if 8 + length > size:
        raise _not_a_model(path, "a safetensors file that was cut off", "copy it again")
    return True


def _is_onnx(head: bytes) -> bool:
    """A protobuf that starts with field 1 (`ir_version`, a small number) and goes on with one of the next."""
    return (
        len(head) > 3 and head[0] == 0x08 and 1 <= head[1] < 32 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"
    )


def _text(path: Path, head: bytes) -> tuple[str, str]:
    """What it is and what to do, of a file that is no known binary."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not fetched", "run git lfs pull"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page: the download did not give the file", "download it again"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 1024 else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character.isspace() for character in text):
        first = text.strip().splitlines()[0][:60] if text.strip() else ""
        built = f"code builds a network: give the file of its weights, and --arch {path}:NAME"
        return f"a text file: {first!r}", built if path.suffix == ".py" else _SAVE
    return "bytes of no kind known here", _SAVE


def _not_a_model(path: Path, what: str, remedy: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a model that can be loaded", got=what, expected=_EXPECTED, remedy=remedy
    )


def _artifact(path: Path, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{path} is {what}, which is a result of export and not a source of compression",
        remedy="load the PyTorch model it was exported from; eval and bench take this file as it is",
    )
