"""A TorchScript archive opened without running anything of it."""

from __future__ import annotations

import io
import shutil
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nncompress.errors import ModelFileError, UnsafeFileError
from nncompress.files.atomic import is_full
from nncompress.files.pickle_scan import scan_pickles
from nncompress.loading.stored_zip import check_members

MOST_CODE = 2**26  # bytes of all members that are deflated: the code, and where it came from
MOST_DEFLATE = 1032  # times its bytes that a deflated member can unpack to


def read_torchscript(path: Path) -> torch.jit.ScriptModule:
    """The module of the archive, on the CPU, in eval mode.

    `torch.jit.load` compiles the code, which runs nothing, and fills the objects, which does where a class
    says how (`__setstate__`, classes of C++ libraries); archives with those are refused.

    Raises:
        UnsafeFileError: opening it would run its code.
        ModelFileError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path, deflated=MOST_DEFLATE)
            _refuse_running_code(archive, path)
            with TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                copied = _without_positions(archive, Path(folder))
                return torch.jit.load(str(copied), map_location="cpu").eval()  # sets what may be no flag
    except UnsafeFileError:
        raise
    except OSError as error:
        if is_full(error):  # of the copy
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # zipfile, pickletools and torch raise all kinds for a damaged file
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelFileError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return ModelFileError(
        f"{path} is damaged",
        got=f"{type(error).__name__}: {reason}"[:300],
        expected="a TorchScript archive",
        remedy="copy or save the file again",
    )


def _refuse_running_code(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse what would run code, and tensors that show more than is stored, which torch takes as they say.

    Raises:
        UnsafeFileError, ValueError: it is so.
    """
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if (
        sum(info.file_size for info in members.values() if info.compress_type != zipfile.ZIP_STORED)
        > MOST_CODE
    ):
        raise ValueError(f"more than {MOST_CODE} bytes of code")
    code = [info for name, info in members.items() if name.startswith("code/")]
    if any(b"__setstate__" in archive.read(info) for info in code):
        raise _unsafe(path, "a class with __setstate__, as packed weights of quantized layers have")
    for folder in ("data", "constants"):
        content = archive.read(members[f"{folder}.pkl"])
        scan = scan_pickles(io.BytesIO(content), 1, path.stat().st_size)
        foreign = sorted(name for name in scan.names if name.startswith("__torch__.torch.classes"))
        if foreign:
            raise _unsafe(path, f"objects of a C++ library: {', '.join(foreign)[:200]}")
        for key, size in scan.stored.items():
            stored = members[f"{folder}/{key}"].file_size
            if max(size, scan.viewed.get(key, 0)) > stored:
                raise ValueError(f"a tensor of {size} bytes of which {stored} are stored")


def _without_positions(archive: zipfile.ZipFile, folder: Path) -> Path:
    """A copy without the lines of source that operators came from.

    torch reads these to word its errors, and a damaged one ends the process there.
    """
    copied = folder / "copied.pt"
    with zipfile.ZipFile(copied, "w") as copy:
        for info in archive.infolist():
            if not info.filename.endswith(".debug_pkl"):
                with archive.open(info) as source, copy.open(info.filename, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    return copied


def _unsafe(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path} is not opened: code of it would run by that",
        got=what,
        expected="TorchScript modules whose weights are plain tensors",
        remedy="save the float model as TorchScript, or a torch.export of it; quantize that",
    )
