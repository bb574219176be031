"""How long factors take in place of their layer, from this machine's table of latencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm

from nncompress import targets
from nncompress.analysis.weight_targets import Target
from nncompress.benchmarking.latency.layer import Latencies, measure
from nncompress.benchmarking.latency.layer_file import Chain, LayerShape, convolution, in_precision
from nncompress.benchmarking.latency.steps import Steps
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.benchmarking.latency.target import floats_in
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.factors.forms.base import Form, Ranks
from nncompress.passes.factors.forms.convolution import ConvolutionForm

TRIED = 12  # ranks that are measured per form, at most
MARGIN = 0.97  # of the dense layer's time: less is noise

Place = tuple[str, Ranks]  # a form's name and its ranks


@dataclass(frozen=True)
class Timing:
    """CPU seconds of a target's layers, as they are and as factors, for one sample and one thread."""

    dense: float
    factored: float

    @property
    def share(self) -> float:
        return self.factored / self.dense

    @property
    def pays(self) -> bool:
        return self.share < MARGIN


class LatencyOracle:
    """Timings of factors `where` the model will run; what this machine's table does not know is measured.

    Args:
        precision: in which the layers are timed; None: as the target computes floats by itself.

    Raises:
        UsageError, DeviceError: the target, or this processor, does not compute in that.
    """

    def __init__(self, shapes: Shapes, where: targets.Target, precision: str | None = None) -> None:
        self.where = where
        self._precision = "int8" if precision == "int8" else floats_in(where, precision) or ""
        self._shapes, self._table = shapes, LatencyTable(where)
        self._steps = Steps(self._table, self._precision)
        self._again: dict[tuple[object, ...], Latencies] = {}

    @property
    def unkept(self) -> str:
        """See `LatencyTable`."""
        return self._table.unkept

    def multiple(self, target: Target, round_to: int = 1) -> int:
        """Ranks are multiples of this: of `round_to`, at the ends of the steps of the kernel's latency."""
        return lcm(round_to, self._steps.of(target.layers))

    def timings(
        self, target: Target, forms: Mapping[str, Form], round_to: int = 1, rank: int | None = None
    ) -> dict[Place, Timing]:
        """Of the ranks on a grid that multiply less than the layer; they depend on its shape only.

        Args:
            round_to: as in `multiple`.
            rank: only this one, instead of the grid.
        """
        if not target.macs or any(layer.kind == "embedding" for layer in target.layers):
            return {}
        multiple = self.multiple(target, round_to)
        places = [
            (name, ranks)
            for name, form in forms.items()
            for ranks in (grid(form, target.macs, multiple) if rank is None else fixed(form, rank))
        ]
        if not places:
            return {}
        chains = [self._timed(_factored(forms[name], ranks)) for name, ranks in places]
        dense, factored = 0.0, [0.0] * len(places)
        for layer in target.layers:
            found = self._table.latencies(self._timed(_dense(target)), chains, self._shapes.of(layer.data))
            dense += found.reference
            factored = [f + found.reference * share for f, share in zip(factored, found.shares)]
        return {place: Timing(dense, each) for place, each in zip(places, factored)}

    def again(self, target: Target, form: Form, ranks: Ranks) -> Timing:
        """Measured in this process, whatever the table says; equal layers once."""
        reference, chain = self._timed(_dense(target)), self._timed(_factored(form, ranks))
        dense = factored = 0.0
        for layer in target.layers:
            key = (shape := self._shapes.of(layer.data), reference, chain)
            if key not in self._again:
                self._again[key] = measure(reference, [chain], shape, self.where, seed=1)
            found = self._again[key]
            dense, factored = dense + found.reference, factored + found.reference * found.shares[0]
        return Timing(dense, factored)

    def _timed(self, chain: Chain) -> Chain:
        return in_precision(chain, self._precision)


def grid(form: Form, macs: int, multiple: int = 1) -> list[Ranks]:
    """Ranks that need fewer MACs than the layer's, at most 12, all multiples of this."""
    if len(form.full_ranks) > 1:  # both ranks in proportion
        shares = [(i + 1) / TRIED for i in range(TRIED)]
        found = {tuple(_nearest(share * full, multiple) for full in form.full_ranks) for share in shares}
        possible = (r for r in found if all(a <= full for a, full in zip(r, form.full_ranks)))
        return sorted(ranks for ranks in possible if form.cost(ranks, "macs") < macs)
    most = min(form.full_ranks[0], (macs - 1) // form.cost((1,), "macs"))
    ranks = range(multiple, most + 1, multiple)
    count = min(len(ranks), TRIED)
    return [(ranks[round((i + 1) * len(ranks) / count) - 1],) for i in range(count)]


def fixed(form: Form, rank: int) -> Iterable[Ranks]:
    """This rank; a form that has fewer keeps all of them."""
    return [tuple(min(rank, full) for full in form.full_ranks)]


def _nearest(rank: float, multiple: int) -> int:
    return max(multiple, round(rank / multiple) * multiple)


def _dense(target: Target) -> Chain:
    weight = tuple(target.weight.value().shape)
    place = target.geometry
    if place is not None:
        return (convolution(place, weight),)
    return (LayerShape("MatMul", weight[::-1] if target.outputs_first else weight),)


def _factored(form: Form, ranks: Ranks) -> Chain:
    shapes = [stage.shape for stage in form.stages(ranks)]
    if isinstance(form, ConvolutionForm):
        return tuple(convolution(place, shape) for place, shape in zip(form.chain(), shapes))
    return tuple(
        LayerShape("MatMul", shape[::-1] if form.target.outputs_first else shape) for shape in shapes
    )
