"""Fisher information of single weights: how much the outputs mind that one moves.

With outputs taken as the mean of a normal distribution of unit variance, the diagonal of the Fisher
information is F_i = E[Σ_k (∂y_k / ∂w_i)²], and an error Δ moves the outputs by Σ F_i Δ_i² in the mean, where
errors are independent (Tu et al. 2016, "Reducing the model order of deep neural networks using information
theory", who give each weight its bits by it). With random signs ε, (∂ Σ ε_k y_k / ∂w_i)² has F_i as its
expectation, over the outputs of a batch as over those of one sample: one backward pass per batch is a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nncompress.analysis.curvature.autograd import finite, gradients_wanted, in_chunks, output_scales
from nncompress.analysis.observe.walk import Inputs
from nncompress.errors import UnsupportedError
from nncompress.ir.formats.qdq import StraightThrough
from nncompress.ir.graph.model import Model
from nncompress.progress import NullProgress, Progress

CHUNK = 64  # samples per backward pass, at most


def fisher_information(
    model: Model,
    names: Sequence[str],
    batches: Iterable[Inputs],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    total: int | None = None,
) -> dict[str, Tensor]:
    """Per stored float tensor, the information of each of its values, float64 of its shape.

    Every output counts relative to its own variance in the first batch: the unit is "share of the outputs'
    variance per square of the weight's unit".

    Raises:
        UnsupportedError: the model cannot be differentiated, or a gradient is not finite.
    """
    progress = progress or NullProgress()
    generator = torch.Generator().manual_seed(seed)
    tensors = [model.tensor(name) for name in names]
    runner = StraightThrough(model.graph_module)
    sums = [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in tensors]
    scales: list[Tensor] = []
    samples = 0
    try:
        with gradients_wanted(tensors):
            for inputs in batches:
                with torch.no_grad():
                    scales = scales or output_scales(runner.run(*inputs))
                for chunk in in_chunks(model, inputs, CHUNK):
                    progress.step("measuring what the output minds", samples, total)
                    with torch.enable_grad():
                        score = sum(
                            (y * _signs(y, generator) / scale).sum()
                            for y, scale in zip(runner.run(*chunk), scales)
                            if isinstance(y, Tensor) and y.requires_grad
                        )
                    if not isinstance(score, Tensor):
                        raise RuntimeError("no output depends on a weight")
                    gradients = torch.autograd.grad(score, tensors, allow_unused=True)
                    for name, done, gradient in zip(names, sums, gradients):
                        if gradient is not None:
                            done += finite(gradient, name).double().square()
                    samples += len(chunk[0])
    except RuntimeError as error:
        raise UnsupportedError(
            "this model cannot be differentiated, so nobody knows which weights matter",
            got=str(error).splitlines()[0],
            remedy="give every weight the same bits: --weight-bits 4",
        ) from error
    progress.step("measuring what the output minds", samples, total)
    return {name: total_ / max(samples, 1) for name, total_ in zip(names, sums)}


def _signs(output: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
