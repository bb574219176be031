"""The inverse of a short-time Fourier transform: the exporter says it with indices that runtimes refuse."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def istft(
    x: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """Frames that are laid over each other, over what their windows sum to."""
    if return_complex or onesided is False:
        raise ValueError("a complex signal")
    hop, size = hop_length or n_fft // 4, win_length or n_fft
    window = x.real.new_ones(size) if window is None else window
    if size < n_fft:
        before = (n_fft - size) // 2
        window = torch.nn.functional.pad(window, (before, n_fft - size - before))
    frames = _points(x, n_fft) * (math.sqrt(n_fft) if normalized else 1.0)
    whole = n_fft + hop * (x.shape[-1] - 1)
    start = n_fft // 2 if center else 0
    end = whole - start if length is None else start + length

    def laid(each: Tensor) -> Tensor:
        places = torch.eye(n_fft, dtype=each.dtype)[:, None]
        return torch.nn.functional.conv_transpose1d(each.mT, places, stride=hop)[:, 0, start:end]

    batch = frames if x.dim() == 3 else frames.reshape(-1, *frames.shape[-2:])
    signal = laid(batch * window) / laid((window * window).expand(1, *batch.shape[1:]))
    if length is not None and end > whole:
        signal = torch.nn.functional.pad(signal, (0, end - whole))
    return signal if x.dim() == 3 else signal.reshape(*x.shape[:-2], -1)


def _points(x: Tensor, count: int) -> Tensor:
    """`torch.fft.irfft` over the dim before the last, put last: as products, since it asks for sizes."""
    places = torch.arange(count // 2 + 1)
    angle = (torch.arange(count)[:, None] * places % count).to(x.real.dtype) * (2 * math.pi / count)
    alone = (places == 0) | (2 * places == count)  # all others have a mirror image
    twice = 2 - alone.to(x.real.dtype)
    cos, sin = (twice * wave(angle) / count for wave in (torch.cos, torch.sin))
    linear = torch.nn.functional.linear
    return linear(x.real.mT, cos) - linear(x.imag.mT, sin)
