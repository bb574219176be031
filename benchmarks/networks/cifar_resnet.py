"""The CIFAR ResNets as an architecture file: `--arch benchmarks/networks/cifar_resnet.py:resnet20`."""

from pathlib import Path

import nncompress
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.zoo import resnet20, resnet56  # noqa: F401


def trained(folder: Path, name: str) -> tuple[Model, Dataset, Dataset]:
    """The network with `NAME-jpeg.safetensors` of the folder, its test images and its training images."""
    weights = folder / f"{name}-jpeg.safetensors"
    model = nncompress.load(weights, arch=f"{__file__}:{name}", input="1x3x32x32")
    test, train = (
        nncompress.dataset(f"cifar10:{folder}?split={part}", model, "imagenet") for part in ("test", "train")
    )
    return model, test, train
