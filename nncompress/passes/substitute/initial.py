"""Initial weights of what stands for a convolution W [out, in, K…]: least squares, in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from nncompress.analysis.conjugate_gradients import conjugate_gradients
from nncompress.analysis.observe.moments import with_ridge

ROUNDS = 30  # of alternating least squares
STEPS = 20  # of conjugate gradients in each, for a kernel within the stack
RIDGE = 1e-9  # share of a mean eigenvalue, so that every system can be solved


def separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise [in, 1, K…] and pointwise [out, in, 1…]: the best rank 1 of each input channel's [out, K…].

    The sign is such that a depthwise filter sums to 0 or more.
    """
    matrices = weight.double().movedim(1, 0).flatten(2)  # [in, out, K]
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    filters, mixes = vh[:, 0], u[:, :, 0] * s[:, :1]
    sign = torch.where(filters.sum(1) < 0, -1.0, 1.0)[:, None]
    depthwise = (filters * sign).reshape(weight.shape[1], 1, *weight.shape[2:])
    return depthwise, (mixes * sign).T.reshape(weight.shape[0], weight.shape[1], *(1,) * (weight.dim() - 2))


def kernel_composing(weight: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """1×L [channels, in, 1, L] then K×1 [out, channels, K, 1]: the best rank of the matrix [in·L, out·K]."""
    outputs, inputs, height, width = weight.shape
    matrix = weight.double().permute(1, 3, 0, 2).reshape(inputs * width, outputs * height)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:channels].sqrt()
    first, second = (u[:, :channels] * root).T, vh[:channels] * root[:, None]
    if channels > len(s):  # more channels than ranks: the rest starts at 0
        first = torch.cat([first, first.new_zeros(channels - len(s), first.shape[1])])
        second = torch.cat([second, second.new_zeros(channels - len(s), second.shape[1])])
    vertical = second.reshape(channels, outputs, height).permute(1, 0, 2)
    return first.reshape(channels, inputs, 1, width), vertical.reshape(outputs, channels, height, 1)


def stacked(weight: Tensor, channels: int, seed: int = 0) -> list[Tensor]:
    """3×3 kernels in a row whose composition is K×K, K odd: [channels, in, 3, 3], …, [out, channels, 3, 3].

    Each in turn is the least-squares solution given the others, from random orthogonal-like beginnings.
    """
    weight = weight.double()
    outputs, inputs, size, _ = weight.shape
    count = (size - 1) // 2
    generator = torch.Generator().manual_seed(seed)
    widths = [inputs, *[channels] * (count - 1), outputs]
    kernels = [
        torch.randn(b, a, 3, 3, generator=generator, dtype=torch.float64) / (3 * a**0.5)
        for a, b in pairwise(widths)
    ]
    for _ in range(ROUNDS):
        for position in range(count):
            before = compose(kernels[:position]) if position else None
            after = compose(kernels[position + 1 :]) if position + 1 < count else None
            kernels[position] = _solve(weight, before, after, kernels[position])
    return _balanced(kernels)


def dense(parts: list[Tensor]) -> Tensor:
    """The one kernel [out, in, K…] that a depthwise and a pointwise convolution amount to."""
    depthwise, pointwise = parts
    return pointwise * depthwise.transpose(0, 1)


def compose(kernels: list[Tensor]) -> Tensor:
    """The one kernel [out, in, …] that these, applied in order without anything in between, amount to."""
    whole = kernels[0]
    for kernel in kernels[1:]:
        reach = kernel.shape[2] - 1, kernel.shape[3] - 1
        # Σ_m kernel[o, m] * whole[m, i], a full convolution: inputs are taken as a batch
        whole = torch.nn.functional.conv2d(whole.transpose(0, 1), kernel.flip(2, 3), padding=reach).transpose(
            0, 1
        )
    return whole


def _solve(weight: Tensor, before: Tensor | None, after: Tensor | None, now: Tensor) -> Tensor:
    """The 3×3 kernel X that minimises ‖weight − after ∗ X ∗ before‖; None stands for the identity.

    At an end of the stack that is one linear system; within it, conjugate gradients go from `now`.
    """
    if before is not None and after is not None:
        return _solve_between(weight, before, after, now)
    if before is not None:
        # weight[o] = Σ_m X[o, m] ∗ before[m]: one system for all o, unknowns (m, 3, 3)
        design = _shifts(before).flatten(0, 1).flatten(1)  # [m·9, in·K·K]
        return _least_squares(design, weight.flatten(1)).reshape(len(weight), -1, 3, 3)
    assert after is not None
    design = _shifts(after.transpose(0, 1)).flatten(0, 1).flatten(1)  # [m·9, out·K·K]
    found = _least_squares(design, weight.transpose(0, 1).flatten(1))
    return found.reshape(weight.shape[1], -1, 3, 3).transpose(0, 1)


def _shifts(kernel: Tensor) -> Tensor:
    """kernel [m, c, k, k] put at each of the 9 places in [k+2, k+2]: [m, 9, c, k+2, k+2]."""
    pad = torch.nn.functional.pad
    return torch.stack([pad(kernel, (x, 2 - x, y, 2 - y)) for y in range(3) for x in range(3)], 1)


def _least_squares(design: Tensor, wanted: Tensor) -> Tensor:
    """X that minimises ‖X design − wanted‖."""
    gram = with_ridge(design @ design.T, RIDGE)
    return torch.linalg.solve(gram, design @ wanted.T).T


def _solve_between(weight: Tensor, before: Tensor, after: Tensor, now: Tensor) -> Tensor:
    """The middle kernel by conjugate gradients on the normal equations."""
    x = torch.zeros_like(now, requires_grad=True)

    def image(value: Tensor) -> Tensor:
        return compose([before, value, after])

    def pull_back(residual: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(image(x), x, residual)[0]

    enough = 1e-16 * float(pull_back(weight).square().sum())
    residual = pull_back(weight - image(now))
    return conjugate_gradients(lambda value: pull_back(image(value)), residual, now, STEPS, enough)


def _balanced(kernels: list[Tensor]) -> list[Tensor]:
    """The same composition, all kernels of equal norm."""
    norms = [float(k.norm()) for k in kernels]
    if min(norms) == 0:
        return kernels
    mean = 1.0
    for norm in norms:
        mean *= norm ** (1 / len(norms))
    return [k * (mean / norm) for k, norm in zip(kernels, norms)]
