"""Re-estimate batch-norm statistics on data, as far as that brings the outputs closer to the original's.

Statistics of few records are noisy: where little was removed the old ones are better (measured: up to 4
points of accuracy lost), where much was removed the new ones are. So old and new are blended, and the blend
that is closest to the original on records that were not used for the new ones is kept; it may be all old.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.layerwise import Inputs
from nncompress.analysis.observe.outputs import Outputs
from nncompress.ir import Model
from nncompress.ir.graph.normalize import op_name
from nncompress.ir.layers.weights import argument

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT = 4  # every fourth batch decides


def renormalize(model: Model, original: Model, batches: Sequence[Inputs]) -> tuple[float, float, float]:
    """Blend the statistics in place.

    Args:
        model: the changed model; original: what its outputs should be; batches: calibration inputs.

    Returns: the blend (0 is all old, 1 all new), and the squared error relative to the original's outputs
        before and after, on the held-out batches. (0, 0, 0) where there are no batch norms or one batch only.
    """
    norms = [n for n in model.graph.nodes if n.op == "call_function" and op_name(n) == "batch_norm"]
    stored = {n: _statistics(n) for n in norms}
    norms = [n for n in norms if stored[n] is not None]
    held = batches[HELD_OUT - 1 :: HELD_OUT]
    if not norms or not held:
        return 0.0, 0.0, 0.0
    with torch.no_grad():
        wanted = Outputs(original, held)
        runner = _BatchStatistics(model, set(norms))
        for number, batch in enumerate(batches):
            if number % HELD_OUT != HELD_OUT - 1:
                runner.run(*batch)
        old = {name: model.tensor(name).clone() for n in norms for name in stored[n] or ()}
        new: dict[str, Tensor] = {}
        for node in norms:
            mean_name, variance_name = stored[node]  # type: ignore[misc]
            new[mean_name], new[variance_name] = runner.estimate(node)
        errors = {}
        for blend in BLENDS:
            _blend(model, old, new, blend)
            errors[blend] = _error(model, wanted)
        best = min(BLENDS, key=lambda blend: errors[blend])
        _blend(model, old, new, best)
    return best, errors[0.0], errors[best]


def _statistics(node: fx.Node) -> tuple[str, str] | None:
    mean, variance = argument(node, 3), argument(node, 4)
    if isinstance(mean, fx.Node) and isinstance(variance, fx.Node) and mean.op == variance.op == "get_attr":
        return str(mean.target), str(variance.target)
    return None


def _blend(model: Model, old: dict[str, Tensor], new: dict[str, Tensor], blend: float) -> None:
    for name, value in old.items():
        model.tensor(name).copy_(value * (1 - blend) + new[name].to(value.dtype) * blend)


def _error(model: Model, wanted: Outputs) -> float:
    error = size = 0.0
    for batch, targets in wanted:
        for got, target in zip(model.outputs_of(*batch), targets):
            if target.is_floating_point():
                error += float((got - target).double().square().sum())
                size += float(target.double().square().sum())
    return error / max(size, 1e-30)


class _BatchStatistics(fx.Interpreter):
    """Normalises with the statistics of each batch, as in training, and averages them."""

    def __init__(self, model: Model, norms: set[fx.Node]) -> None:
        super().__init__(model.graph_module)
        self._norms = norms
        self._sums: dict[fx.Node, tuple[Tensor, Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._norms:
            return super().run_node(n)
        value = self.fetch_args_kwargs_from_env(n)[0][0]
        rows = value.double().movedim(1, 0).flatten(1)
        mean, variance = rows.mean(1), rows.var(1, unbiased=False)
        before = self._sums.get(n, (torch.zeros_like(mean), torch.zeros_like(mean), 0))
        records = len(value)
        self._sums[n] = (
            before[0] + mean * records,
            before[1] + (variance + mean.square()) * records,
            before[2] + records,
        )
        arguments = list(self.fetch_args_kwargs_from_env(n)[0])
        arguments[3], arguments[4] = mean.to(value.dtype), variance.to(value.dtype)
        assert callable(n.target)
        return n.target(*arguments)

    def estimate(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Mean and variance over all batches seen."""
        total, squares, records = self._sums[node]
        mean = total / records
        return mean, (squares / records - mean.square()).clamp(min=0)
