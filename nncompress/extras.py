"""The optional runtimes: which package brings one, which extra of ours installs it.

    need("mobile")      # raises MissingExtraError where executorch is not installed

Only `need` imports one: what is installed may lack a library of the system, and is then as good as missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata, util

from nncompress.errors import MissingExtraError

SLOWEST_IMPORT = 60  # seconds
LACKING = (ImportError, OSError)  # what an import raises of a package that lacks a part of it, or a library


@dataclass(frozen=True)
class Extra:
    """An extra of this package.

    Attributes:
        package: the distribution that it installs.
        module: its top package, which has to be there.
        offers: what it adds, in words.
        without: a module that is hidden from it while it is imported.
    """

    package: str
    module: str
    offers: str
    without: str = ""


EXTRAS = {
    "train": Extra("kornia", "kornia", "augmented images for `train` and `cycle`"),
    "studies": Extra("matplotlib", "matplotlib", "plots of `reproduce`"),
    "mobile": Extra("executorch", "executorch", "ExecuTorch with XNNPACK: .pte files for phones"),
    "openvino": Extra(
        "openvino",
        "openvino",
        "OpenVINO: .onnx and .xml on CPUs, in bfloat16 where they can",
        # which counts its uses in the user's home and tells its makers; there is a stub for when it is absent
        # (openvino/tools/ovc/telemetry_utils.py)
        without="openvino_telemetry",
    ),
    "huggingface": Extra("transformers", "transformers", "directories of `save_pretrained` as MODEL"),
    "torchvision": Extra("torchvision", "torchvision", "`torchvision:NAME` as MODEL, with `--weights FILE`"),
    "timm": Extra("timm", "timm", "`timm:NAME` as MODEL, with `--weights FILE`"),
    "parquet": Extra("pyarrow", "pyarrow", "`--data table.parquet`"),
    "audio": Extra("soundfile", "soundfile", "`--data` of .flac, .ogg and .mp3"),
    "search": Extra("optuna", "optuna", "`optimize` varies strengths of several layers at once"),
    "detection": Extra("pycocotools", "pycocotools", "`--metric map`, as COCO defines it"),
    "text": Extra("tokenizers", "tokenizers", "`--data table.csv?text=…&tokenizer=DIR`"),
    "cuda": Extra("onnxruntime-gpu", "onnxruntime", "ONNX Runtime on NVIDIA GPUs"),
}


def version(package: str) -> str | None:
    """Of an installed distribution, None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def module_version(module: str) -> str | None:
    """Of an installed runtime by its module, whose distribution may have several names (onnxruntime-gpu)."""
    names = (module, *(each.package for each in EXTRAS.values() if each.module == module))
    return next((found for name in names if (found := version(name))), None)


def command(extra: str) -> str:
    """What a user types to add it."""
    return f"pip install 'nncompress[{extra}]'"


def installed(extra: str) -> bool:
    """Its package is there and its module can be found."""
    wanted = EXTRAS[extra]
    try:
        return version(wanted.package) is not None and util.find_spec(wanted.module) is not None
    except ImportError:
        return False


def need(extra: str, what: str) -> None:
    """Import the module of an extra, or go no further.

    Args:
        what: what needs it: "model.pte".
    Raises:
        MissingExtraError: it is not installed, or cannot be imported.
    """
    wanted = EXTRAS[extra]
    if not installed(extra):
        raise MissingExtraError(
            f"{what} needs {wanted.package}, which is not installed", remedy=command(extra)
        )
    try:
        with _hidden(wanted.without):
            import_module(wanted.module)
    except LACKING as error:
        raise broken(extra, what, error) from error


def broken(extra: str, what: str, error: BaseException) -> MissingExtraError:
    """What to say where it is installed, and importing it, or a part of it, failed."""
    return MissingExtraError(
        f"{what} needs {EXTRAS[extra].package}, which is installed and cannot be imported",
        got=str(error),
        remedy=again(extra),
    )


def again(extra: str) -> str:
    """What a user types where it is installed and does not load."""
    return reinstall(EXTRAS[extra].package)


def reinstall(package: str) -> str:
    return f"pip install --force-reinstall {package}"


@cache
def fault(module: str) -> str:
    """Why importing it fails, in a process of its own, as broken ones may end it; "" where it does not."""
    command = [sys.executable, "-P", "-c", f"import {module}"]  # not a file of that name in this folder
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SLOWEST_IMPORT)
    except subprocess.TimeoutExpired:
        return f"it takes more than {SLOWEST_IMPORT} s"
    if not tried.returncode:
        return ""
    return (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """As if it were not installed; unless the user's own program has imported it."""
    if not module or module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # how Python says that there is no such module
    try:
        yield
    finally:
        del sys.modules[module]
