"""Fourier transforms. A complex number of an ONNX file is a last dim of two; of one: imaginary part 0."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value, scalar

AXIS_IS_OPERAND = 20  # from this opset on


@rule("DFT")
def transform(call: Call) -> Value:
    x, inverse, half = call.tensor(0), bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    size = int(scalar(call.array(1, "its length"))) if call.has(1) else None
    if call.opset < AXIS_IS_OPERAND:
        axis = call.get("axis", 1)
    else:
        axis = int(scalar(call.array(2, "its axis"))) if call.has(2) else -2
    axis %= x.dim()
    if axis == x.dim() - 1:
        raise call.refusal("along the dim of real and imaginary parts")
    real = x.shape[-1] == 1
    if inverse and half:
        return torch.fft.irfft(_complex(x), size, axis).unsqueeze(-1)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(_complex(x), size, axis))
    if half and not real:
        raise call.refusal("half of the results, of complex numbers")
    function = torch.fft.rfft if half else torch.fft.fft
    return torch.view_as_real(function(x.squeeze(-1) if real else _complex(x), size, axis))


@rule("STFT")
def short_time_transform(call: Call) -> Value:
    x, step, half = call.tensor(0), int(scalar(call.array(1, "its step"))), bool(call.get("onesided", 1))
    real = x.dim() == 2 or x.shape[-1] == 1
    signal = (x if x.dim() == 2 else x.squeeze(-1)) if real else _complex(x)
    window = call.optional(2)
    if call.has(3):
        size = int(scalar(call.array(3, "the length of its frames")))
    elif window is not None:
        size = int(window.shape[0])
    else:
        raise call.refusal("neither a window nor the length of its frames is given")
    frames = signal.unfold(1, size, step)  # [batch, frames, size]
    frames = frames if window is None else frames * window
    if half and not real:
        raise call.refusal("half of the results, of complex numbers")
    return torch.view_as_real((torch.fft.rfft if half else torch.fft.fft)(frames))


def _complex(x: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        x = torch.cat([x, torch.zeros_like(x)], -1)
    return torch.view_as_complex(x.contiguous())
