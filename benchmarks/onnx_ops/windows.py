"""Pads, pools, convolutions, resizing."""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch.nn import functional as F

from benchmarks.onnx_ops.chain import OPS, Chain, op

PADS = {"pad(0)": 0.0, "pad(1)": 1.0, "pad(-inf)": -math.inf}
for name, value in PADS.items():

    def _pad(c: Chain, value: float = value) -> None:
        result = F.pad(c.x, (1, 0, 2, 1), value=value)
        c.then(result, "Pad", c.ints(0, 0, 2, 1, 0, 0, 1, 0), c.floats(value), mode="constant")

    OPS[name] = _pad


@op("pad(0;all sides)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1)), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="constant")


@op("pad(channels)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (0, 0, 0, 0, 1, 2)), "Pad", c.ints(0, 1, 0, 0, 0, 2, 0, 0), c.floats(0.0))


@op("pad(negative)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (-1, 1, 1, -1)), "Pad", c.ints(0, 0, 1, -1, 0, 0, -1, 1), c.floats(0.0))


@op("pad(reflect)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1), "reflect"), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")


@op("pad(edge)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1), "replicate"), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")


for kernel, stride, padding, ceil in itertools.product((2, 3), (1, 2), (0, 1), (0, 1)):
    label = f"{kernel},{stride},{padding}{',ceil' if ceil else ''}"
    pads = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "ceil_mode": ceil}

    def _max_pool(c: Chain, pads: Any = pads, k: Any = (kernel, stride, padding, 1, bool(ceil))) -> None:
        c.then(F.max_pool2d(c.x, *k), "MaxPool", **pads)

    OPS[f"max_pool({label})"] = _max_pool
    for counted in (0, 1):

        def _avg_pool(
            c: Chain,
            pads: Any = pads,
            k: Any = (kernel, stride, padding, bool(ceil), bool(counted)),
            n: int = counted,
        ) -> None:
            c.then(F.avg_pool2d(c.x, *k), "AveragePool", count_include_pad=n, **pads)

        OPS[f"avg_pool({label}{',counted' if counted else ''})"] = _avg_pool


@op("max_pool(dilated)")
def _(c: Chain) -> None:
    c.then(F.max_pool2d(c.x, 2, 1, 0, 2), "MaxPool", kernel_shape=[2, 2], strides=[1, 1], dilations=[2, 2])


@op("lp_pool")
def _(c: Chain) -> None:
    c.then(F.lp_pool2d(c.x, 2, 2), "LpPool", kernel_shape=[2, 2], strides=[2, 2], p=2)


@op("global_avg_pool")
def _(c: Chain) -> None:
    c.then(c.x.mean((2, 3), keepdim=True), "GlobalAveragePool")


@op("global_max_pool")
def _(c: Chain) -> None:
    c.then(c.x.amax((2, 3), keepdim=True), "GlobalMaxPool")


CONVS = {  # outputs, kernel, stride, padding, dilation, groups
    "conv(1x1)": (5, 1, 1, 0, 1, 1),
    "conv(3,pad 1)": (5, 3, 1, 1, 1, 1),
    "conv(3,stride 2)": (8, 3, 2, 1, 1, 1),
    "conv(2,dilated)": (4, 2, 1, 1, 2, 1),
    "conv(depthwise)": (0, 3, 1, 1, 1, 0),
    "conv(16)": (16, 3, 1, 1, 1, 1),
}
for name, numbers in CONVS.items():

    def _conv(c: Chain, numbers: Any = numbers) -> None:
        outputs, kernel, stride, padding, dilation, groups = numbers
        channels = c.x.shape[1]
        outputs, groups = outputs or channels, groups or channels
        weight, bias = c.weight(outputs, channels // groups, kernel, kernel), c.weight(outputs)
        result = F.conv2d(c.x, weight, bias, stride, padding, dilation, groups)
        how = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2, "group": groups}
        c.then(result, "Conv", c.constant(weight), c.constant(bias), **how)

    OPS[name] = _conv


@op("conv(asymmetric)")
def _(c: Chain) -> None:
    weight = c.weight(6, c.x.shape[1], 3, 2)
    result = F.conv2d(F.pad(c.x, (0, 1, 2, 0)), weight)
    c.then(result, "Conv", c.constant(weight), pads=[2, 0, 0, 1])


for stride, padding, extra in ((1, 0, 0), (2, 1, 1), (3, 0, 2)):

    def _conv_transpose(c: Chain, s: int = stride, p: int = padding, e: int = extra) -> None:
        weight, bias = c.weight(c.x.shape[1], 5, 3, 3), c.weight(5)
        result = F.conv_transpose2d(c.x, weight, bias, s, p, e)
        how = {"strides": [s] * 2, "pads": [p] * 4, "output_padding": [e] * 2}
        c.then(result, "ConvTranspose", c.constant(weight), c.constant(bias), **how)

    OPS[f"conv_transpose({stride},{padding},{extra})"] = _conv_transpose


for mode, coordinates in itertools.product(
    ("nearest", "linear", "cubic"), ("asymmetric", "half_pixel", "align_corners")
):
    if (mode == "nearest") != (coordinates == "asymmetric"):
        continue

    def _resize(c: Chain, mode: str = mode, coordinates: str = coordinates) -> None:
        torch_mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
        corners = {} if mode == "nearest" else {"align_corners": coordinates == "align_corners"}
        size = [2 * c.x.shape[2] + 1, 3 * c.x.shape[3]]
        result = F.interpolate(c.x, size, mode=torch_mode, **corners)
        how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        how |= {"nearest_mode": "floor"} if mode == "nearest" else {"cubic_coeff_a": -0.75}
        c.then(result, "Resize", "", "", c.ints(*c.x.shape[:2], *size), **how)

    OPS[f"resize({mode},{coordinates})"] = _resize


@op("depth_to_space")
def _(c: Chain) -> None:
    c.then(F.pixel_shuffle(c.x, 2), "DepthToSpace", blocksize=2, mode="CRD")
