"""ResNet-50 as an architecture file: `--arch benchmarks/networks/imagenet_resnet.py:resnet50`."""

from nncompress.zoo import resnet50  # noqa: F401
