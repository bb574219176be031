"""Structured pruning with layer-wise repair as two papers describe it, rebuilt from their texts.

Both prune the channels inside residual blocks, the same share of every block, as many as the budget asks for;
the stream between the blocks stays whole. What reads the pruned channels is changed in closed form, from
statistics of the original network on calibration data. The texts that were at hand leave batch norms open:
they are measured anew, as far as that helps on samples held out.

GRAIL (Tang et al. 2026, arXiv 2602.23795): the channels whose filters have the largest norm stay (the paper
takes any selector). The hidden channels are reconstructed from those left by ridge regression on their Gram
matrix over all positions (1e-3 of its mean diagonal), and the map is merged into the layer that reads them.
Not rebuilt: folding of channels, and for language models statistics of the pruned prefix.

OSSCAR (Meng et al. 2024, ICML): of the layer that reads them, the squared error of its output on its patches.
Channels go one by one, the one that adds least to the error with the others at their optimum; then channels
that went are exchanged for some that did not while that helps; the weights left are the optimum. Not rebuilt:
exchanges of several channels at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.compensation import Cut, Fitted
from nncompress.analysis.compensation.batch_norms import reestimate
from nncompress.analysis.compensation.held_out import fit_and_decide, output_error
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.importance import Choice, separate_choices
from nncompress.analysis.importance.elimination import Quadratic, eliminate, refit
from nncompress.analysis.observe.moments import InputMoments, with_ridge
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes.cut import apply_cut, proven_cut

RIDGE = 1e-3
NEAR = 4  # channels on each side of the cut that are exchanged

# From the layer that makes the channels, the one that reads them, second moments [in·K, in·K] of its patches
# and how many are to go: which go, and the reading layer's new matrix.
Method = Callable[[Layer, Layer, Tensor, int], tuple[list[int], Tensor]]


def grail(model: Model, data: Dataset, share: float) -> Model:
    return _pruned(model, data, share, _grail)


def osscar(model: Model, data: Dataset, share: float) -> Model:
    return _pruned(model, data, share, _osscar)


def _grail(maker: Layer, reader: Layer, second: Tensor, gone: int) -> tuple[list[int], Tensor]:
    matrix = reader.matrix().double()
    channels = maker.weight.value().shape[0]
    order = maker.matrix().norm(dim=1).argsort()
    removed, kept = sorted(order[:gone].tolist()), sorted(order[gone:].tolist())
    kernel = matrix.shape[1] // channels
    gram = torch.einsum("akbk->ab", second.reshape(channels, kernel, channels, kernel)) / kernel
    inner = gram[kept][:, kept]
    inner = inner + RIDGE * inner.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
    back = torch.linalg.solve(inner, gram[kept]).T  # [channels, kept]: h ≈ back · h_kept
    merged = torch.zeros(len(matrix), channels, kernel, dtype=torch.float64)
    merged[:, kept] = torch.einsum("oct,ck->okt", matrix.reshape(-1, channels, kernel), back)
    return removed, merged.flatten(1)


def _osscar(maker: Layer, reader: Layer, second: Tensor, gone: int) -> tuple[list[int], Tensor]:
    matrix = reader.matrix().double()
    channels = maker.weight.value().shape[0]
    columns = np.arange(matrix.shape[1]).reshape(channels, -1)
    ones = torch.eye(len(matrix), dtype=torch.float64)
    order, _ = eliminate([Quadratic(matrix, second, ones, columns)], channels)
    removed = set(order[:gone])
    moment = with_ridge(second)

    def error(out: set[int]) -> float:
        kept = np.setdiff1d(np.arange(channels), sorted(out))
        change = matrix - refit(matrix, second, columns[kept].ravel())
        return float(((change @ moment) * change).sum())

    least = error(removed)
    for back in order[max(0, gone - NEAR) : gone]:  # those that went last for those that would have gone next
        for out in order[gone : gone + NEAR]:
            tried = (removed - {back}) | {out}
            if back in removed and out not in removed and (now := error(tried)) < least:
                removed, least = tried, now
    kept = np.setdiff1d(np.arange(channels), sorted(removed))
    return sorted(removed), refit(matrix, second, columns[kept].ravel())


def _pruned(given: Model, data: Dataset, share: float, method: Method) -> Model:
    model = given.copy()
    couplings = find_couplings(model)
    choices = [c for c in separate_choices(model, couplings)[0] if c.kind == "group"]
    most = share * cost(model).macs
    batches = data.input_batches(64, None)
    readers = {c.name: [c.consumers[0].layer] for c in choices}
    moments = InputMoments(model, readers, batches)
    by_name = {layer.weight.name: layer for layer in layers(model)}
    low, high = 0.0, 1.0
    for _ in range(8):  # the share of every block's channels that meets the budget
        middle = (low + high) / 2
        gone = {c.name: min(round(middle * c.size), c.size - 1) for c in choices}
        tried = _cut(model, couplings, {n: list(range(k)) for n, k in gone.items() if k}, {})
        low, high = (middle, high) if cost(tried).macs > most else (low, middle)
    units: dict[str, list[int]] = {}
    weights: dict[str, Tensor] = {}
    for choice in choices:
        count = min(round(high * choice.size), choice.size - 1)
        if count:
            maker, reader = _maker(choice, by_name), choice.consumers[0].layer
            known = moments[choice.name]
            units[choice.name], matrix = method(maker, reader, known.second[0], count)
            weights[reader.weight.name] = reader.from_matrix(matrix).to(reader.weight.value().dtype)
    small = _cut(model, couplings, units, weights)
    fit, held = fit_and_decide(model, data, 64, None)
    reestimate(small, fit, output_error(model, small.outputs_of, held))
    return small


def _maker(choice: Choice, by_name: dict[str, Layer]) -> Layer:
    return next(
        by_name[m.tensor]
        for m in choice.members
        if m.tensor in by_name and m.dim == by_name[m.tensor].roles.outputs
    )


def _cut(model: Model, couplings, units: dict[str, list[int]], weights: dict[str, Tensor]) -> Model:  # type: ignore[no-untyped-def]
    cut, proven = proven_cut(couplings, Cut(units))
    return apply_cut(model, cut, Fitted(weights, []), proven, verify=bool(weights))[0]
