"""A strided first convolution over few channels, as a dense one over four times as many.

An int8 convolution gathers its input channel by channel; with the 3 channels of an image that gathering costs
more than the arithmetic. Moving each 2×2 block of pixels into the channels makes a stride-2 convolution over
[C, H, W] a stride-1 convolution over [4 C, H/2, W/2] with the same products, plus products with zeros:

    input row 2 o + k − p  =  row o + (k + s) div 2 − (p + s) / 2 of the blocks, in half (k + s) mod 2,

where s is 0 or 1 so that p + s is even.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MOST_CHANNELS = 4


def spread_kernel(weight: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    """[out, C, kh, kw] for padding (top, left) -> [out, 4 C, kh', kw'] over blocks.

    Channel (a · 2 + b) · C + c of the blocks is pixel (a, b) of channel c, as ONNX SpaceToDepth has it.
    """
    out, channels, *kernel = weight.shape
    shift = [p % 2 for p in pads]
    sizes = [(k + s + 1) // 2 for k, s in zip(kernel, shift)]
    wide = np.zeros((out, channels, 2 * sizes[0], 2 * sizes[1]), weight.dtype)
    wide[:, :, shift[0] : shift[0] + kernel[0], shift[1] : shift[1] + kernel[1]] = weight
    blocks = wide.reshape(out, channels, sizes[0], 2, sizes[1], 2)
    return np.ascontiguousarray(
        blocks.transpose(0, 3, 5, 1, 2, 4).reshape(out, 4 * channels, *sizes)
    )  # [o, a, b, c, h, w]


def block_pads(kernel: int, size: int, begin: int, end: int) -> tuple[int, int]:
    """Padding of the convolution over blocks along one axis of `size` pixels (even), in blocks."""
    shift = begin % 2
    outputs = (size + begin + end - kernel) // 2 + 1
    before = (begin + shift) // 2
    needed = outputs + (kernel + shift + 1) // 2 - 1
    return before, needed - before - size // 2


def fits(conv: ir.Node, weight: np.ndarray, shape: ir.Shape | None) -> bool:
    """Is it a stride-2 convolution of few channels on an image of even, known size?"""
    if weight.ndim != 4 or weight.shape[1] > MOST_CHANNELS or shape is None or len(shape) != 4:
        return False
    height, width = shape[2], shape[3]
    if not isinstance(height, int) or not isinstance(width, int) or height % 2 or width % 2:
        return False
    wanted = {"strides": [2, 2], "dilations": [1, 1]}
    given = {
        name: list(conv.attributes[name].as_ints()) if name in conv.attributes else [1, 1] for name in wanted
    }
    padded = "auto_pad" in conv.attributes and conv.attributes["auto_pad"].as_string() != "NOTSET"
    grouped = "group" in conv.attributes and conv.attributes["group"].as_int() != 1
    pads = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0, 0, 0, 0]
    ends = [
        block_pads(k, s, b, e)[1] for k, s, b, e in zip(weight.shape[2:], (height, width), pads[:2], pads[2:])
    ]
    return given == wanted and not padded and not grouped and min(ends) >= 0
