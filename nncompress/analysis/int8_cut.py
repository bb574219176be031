"""Which layers to leave in float: the assignment that takes least time, conversions at its borders included.

A layer by itself may be slower in int8 than in float; one that is faster may not be worth the rounding
around it; one that is slower may save its neighbours that rounding. So all are decided at once, as a minimum
cut of a graph between "int8" (source) and "float" (sink):

    int8 -> layer              its seconds in float: the edge is cut where it is in float
    layer -> float             its seconds in int8
    reader -> value -> maker   a value that a float op makes is rounded once, whoever reads it in int8
    maker -> value' -> reader  a value that an int8 op makes is turned back once, whoever reads it in float

Source: Boykov, Veksler, Zabih 2001, "Fast approximate energy minimization via graph cuts", for the
construction; minimum cuts are exact for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from nncompress.analysis.int8_plan import plan_activations, results
from nncompress.ir.graph.ops import PRODUCTS

if TYPE_CHECKING:
    from torch import fx

    from nncompress.ir import Model
    from nncompress.ir.layers.weights import Layer

INT8, FLOAT = "int8", "float"
RESOLUTION = 2**80  # of all capacities together, as whole numbers: of any size in Python


@dataclass(frozen=True)
class Times:
    """Of a layer in floats and between bytes, or of the conversion of a value to either: seconds, or what
    else each costs."""

    floats: float
    int8: float


class Int8Cut:
    """Of some layers of a model, which to run in int8.

    Args:
        layers: that could run in int8.
        conversion: of a value: `int8` quantizes it, `floats` dequantizes it.
        float_results: as in `plan_activations`.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        conversion: Callable[[fx.Node], Times],
        *,
        float_results: bool = False,
    ) -> None:
        plan = plan_activations(model, layers, float_results=float_results)
        self._nodes = {layer.name: layer.node for layer in layers}
        self._edges: list[tuple[Any, Any, float]] = []  # of no end: the two are on one side
        by_node = {layer.node: layer for layer in layers}
        result_of = results(float_results=float_results)
        makers = {result_of(node): node for node in (*by_node, *plan.computed)}
        first: dict[str, fx.Node] = {}
        for node, layer in by_node.items():  # a stored weight is bytes or floats for all that read it
            other = first.setdefault(layer.weight.name, node)
            self._edges += [(node, other, inf), (other, node, inf)] if node is not other else []
        for value in plan.points:
            maker, times = makers.get(value, FLOAT), conversion(value)
            readers = {
                user if user in by_node else makers.get(result_of(user), FLOAT) for user in value.users
            }
            self._edges.append((("rounded", value), maker, times.int8))
            self._edges += [(reader, ("rounded", value), inf) for reader in readers - {FLOAT}]
            if maker == FLOAT:
                continue
            # An op stays in 8 bits where all that it reads is.
            self._edges += [(reader, maker, inf) for reader in readers & plan.computed]
            free = maker in by_node and (float_results or by_node[maker].kind in PRODUCTS)
            if not free:  # else the layer gives floats where these are read
                self._edges.append((maker, ("floats", value), times.floats))
                self._edges += [(("floats", value), reader, inf) for reader in readers]

    def least(self, costs: Mapping[str, Times]) -> tuple[set[str], float]:
        """The names of the layers with which in float all costs least, as few as can be; and that cost.

        Args:
            costs: of each layer by its name, in float and in int8; one that is missing goes with its
                neighbours.
        """
        from networkx import DiGraph, minimum_cut  # torch needs it, too

        cut = DiGraph()
        cut.add_nodes_from((INT8, FLOAT, *self._nodes.values()))
        below = 0.0  # what both take may be left out: the edges have to be positive
        for name, cost in costs.items():
            least = min(cost.floats, cost.int8)
            below += least
            cut.add_edge(INT8, self._nodes[name], capacity=cost.floats - least)
            cut.add_edge(self._nodes[name], FLOAT, capacity=cost.int8 - least)
        for start, end, capacity in self._edges:
            cut.add_edge(start, end, **({} if capacity == inf else {"capacity": capacity}))
        finite = [edge for edge in cut.edges.data("capacity") if edge[2] is not None]
        unit = sum(capacity for *_, capacity in finite) / RESOLUTION or 1.0
        for start, end, capacity in finite:  # sums of floats that differ in the last digit mislead the cut
            cut[start][end]["capacity"] = round(capacity / unit)
        _, (_, in_float) = minimum_cut(cut, INT8, FLOAT)
        value = sum(c for start, end, c in finite if start not in in_float and end in in_float)
        return {name for name, node in self._nodes.items() if node in in_float}, value + below
