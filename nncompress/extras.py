"""The optional runtimes: which package brings one, which extra of ours installs it.

    need("mobile")      # raises MissingExtraError where executorch is not installed

Nothing here imports a runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, util

from nncompress.errors import MissingExtraError


@dataclass(frozen=True)
class Extra:
    """An extra of this package.

    Attributes:
        package: the distribution that it installs.
        module: its top package, which has to be there.
        offers: what it adds, in words.
    """

    package: str
    module: str
    offers: str


EXTRAS = {
    "train": Extra("kornia", "kornia", "augmented images for `train` and `cycle`"),
    "studies": Extra("matplotlib", "matplotlib", "plots of `reproduce`"),
    "mobile": Extra("executorch", "executorch", "ExecuTorch with XNNPACK: .pte files for phones"),
    "openvino": Extra("openvino", "openvino", "OpenVINO: .onnx and .xml on CPUs, in bfloat16 where they can"),
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
    """Go on only with the extra.

    Args:
        what: what needs it: "model.pte".
    Raises:
        MissingExtraError: it is not installed.
    """
    if not installed(extra):
        wanted = EXTRAS[extra]
        raise MissingExtraError(
            f"{what} needs {wanted.package}, which is not installed", remedy=command(extra)
        )
