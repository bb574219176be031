"""The CIFAR ResNets as an architecture file: `--arch benchmarks/networks/cifar_resnet.py:resnet20`."""

from nncompress.zoo import resnet20, resnet56  # noqa: F401
