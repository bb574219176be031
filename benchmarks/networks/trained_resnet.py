"""The trained CIFAR-10 ResNets that several benchmarks compress, with the data they use."""

from __future__ import annotations

from pathlib import Path

import nncompress
from nncompress.data import Dataset
from nncompress.ir import Model


def trained_resnet(name: str, folder: Path) -> tuple[Model, Dataset, Dataset]:
    """The model, images to compress it with and images to test it on.

    Args:
        name: "resnet20" or "resnet56".
        folder: holds NAME.safetensors, lossless_train4660.npz and lossless_test846.npz.
    """
    model = nncompress.load(
        folder / f"{name}.safetensors",
        arch=f"{Path(__file__).parent / 'cifar_resnet.py'}:{name}",
        input="1x3x32x32",
        normalize="imagenet",
    )
    train, test = (
        nncompress.dataset(str(folder / f"lossless_{part}.npz"), model) for part in ("train4660", "test846")
    )
    return model, train, test
