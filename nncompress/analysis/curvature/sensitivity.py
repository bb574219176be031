"""How much the model's output minds an error at a node: second moments of output gradients, without labels.

For a small error δ at a node the outputs change by J δ, and E|J δ|² = E[δᵀ Jᵀ J δ]. The gradient of ε·y with
a random ε of unit covariance is Jᵀ ε, and E[Jᵀ ε εᵀ J] = Jᵀ J: one backward pass per batch estimates the
Gauss-Newton matrix of every node at once (Martens and Grosse 2015 sample it the same way).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.autograd import finite, in_chunks, output_scales
from nncompress.analysis.observe.gradient_hooks import GradientHooks
from nncompress.analysis.observe.walk import Inputs
from nncompress.analysis.products import add_products
from nncompress.errors import UnsupportedError
from nncompress.ir.graph.model import Model
from nncompress.progress import NullProgress, Progress

CHUNK = 16  # samples per backward pass, at most


def output_gradients(
    model: Model,
    nodes: Sequence[tuple[fx.Node, int]],
    batches: Iterable[Inputs],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    total: int | None = None,
) -> dict[fx.Node, Tensor]:
    """The Gauss-Newton matrix of each node's channels, summed over positions, mean over samples.

    Every output counts relative to its own variance, so the unit is "share of the outputs' variance".

    Args:
        nodes: pairs of a node and its channel dim.

    Returns: float64 [channels, channels] per node; zero for a node that no output depends on.

    Raises:
        UnsupportedError: the model cannot be differentiated, or a gradient is not finite.
    """
    progress = progress or NullProgress()
    generator = torch.Generator().manual_seed(seed)
    dims = dict(nodes)
    hooks = GradientHooks(model, {}, dims)
    found: dict[fx.Node, Tensor] = {}
    scales: list[Tensor] = []
    samples = 0
    try:
        for inputs in batches:
            with torch.no_grad():
                scales = scales or output_scales(model.outputs_of(*inputs))
            for chunk in in_chunks(model, inputs, CHUNK):
                progress.step("measuring what the output minds", samples, total)
                for node, gradient in _backward(hooks, chunk, scales, generator).items():
                    rows = gradient.movedim(dims[node], -1).flatten(0, -2)
                    found[node] = with_products(found.get(node, torch.zeros(())), rows)
                samples += len(chunk[0])
    except RuntimeError as error:
        raise UnsupportedError(
            "this model cannot be differentiated",
            got=str(error).splitlines()[0],
            remedy="minimise the error of each layer instead: nncompress factorize MODEL --minimize layer",
        ) from error
    progress.step("measuring what the output minds", samples, total)
    return {node: moment / max(samples, 1) for node, moment in found.items()}


def with_products(total: Tensor, rows: Tensor) -> Tensor:
    """A total, float64 [d, d] (at first a single 0), with the outer products of gradients [n, d] added.

    Products are made in float32 at least: gradients have no large mean, beside which differences would drown.
    Their size is taken out of them, as squares of small ones have no place there.
    """
    if rows.is_complex():  # two numbers each
        rows = torch.cat([rows.real, rows.imag])
    if not total.dim():
        total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    least, most = torch.aminmax(rows) if rows.numel() else rows.new_zeros(2)
    size = torch.maximum(most, -least)
    if size != 0:  # NaN, too, which is in all of it
        scaled = rows / size
        products = scaled.new_zeros(1, *total.shape)
        add_products(products, scaled[None])
        total.add_(products[0], alpha=float(size) ** 2)
    return total


def _backward(
    hooks: GradientHooks, inputs: Inputs, scales: list[Tensor], generator: torch.Generator
) -> dict[fx.Node, Tensor]:
    with torch.enable_grad():
        projected = [
            (y * torch.randn(y.shape, generator=generator).to(y) / scale).sum()
            for y, scale in zip(hooks.outputs(*inputs), scales)
            if isinstance(y, Tensor) and y.requires_grad
        ]
        if not projected:
            raise RuntimeError("no output depends on a layer")
        gradients = hooks.gradients(torch.stack(projected).sum())[1]
    return {node: finite(gradient, node.name) for node, gradient in gradients.items()}
