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
from typing import TYPE_CHECKING

from nncompress.analysis.int8_plan import plan_activations, results
from nncompress.ir.graph.ops import PRODUCTS

if TYPE_CHECKING:
    from torch import fx

    from nncompress.ir import Model
    from nncompress.ir.layers.weights import Layer

INT8, FLOAT = "int8", "float"


@dataclass(frozen=True)
class Times:
    """Seconds: of a layer in floats and between bytes, or of the conversion of a value to either."""

    floats: float
    int8: float


def layers_in_float(
    model: Model,
    layers: Sequence[Layer],
    seconds: Mapping[str, Times],
    conversion: Callable[[fx.Node], Times],
    *,
    float_results: bool = False,
) -> set[str]:
    """The names of those of `layers` with which in float the model takes least time; as few as can be.

    Args:
        layers: that could run in int8.
        seconds: of each layer by its name; one that is missing goes with its neighbours.
        conversion: of a value: `int8` quantizes it, `floats` dequantizes it.
        float_results: as in `plan_activations`.
    """
    from networkx import DiGraph, minimum_cut  # torch needs it, too

    plan = plan_activations(model, layers, float_results=float_results)
    by_node = {layer.node: layer for layer in layers}
    result_of = results(float_results=float_results)
    makers = {result_of(node): node for node in (*by_node, *plan.computed)}

    cut = DiGraph()
    cut.add_nodes_from((INT8, FLOAT))
    for node, layer in by_node.items():
        cut.add_node(node)
        if layer.name in seconds:
            cut.add_edge(INT8, node, capacity=seconds[layer.name].floats)
            cut.add_edge(node, FLOAT, capacity=seconds[layer.name].int8)
    first: dict[str, fx.Node] = {}
    for node, layer in by_node.items():  # a stored weight is bytes or floats for all that read it
        other = first.setdefault(layer.weight.name, node)
        cut.add_edges_from([(node, other), (other, node)] if node is not other else [])
    for value in plan.points:
        maker, times = makers.get(value, FLOAT), conversion(value)
        readers = {user if user in by_node else makers.get(result_of(user), FLOAT) for user in value.users}
        cut.add_edge(("rounded", value), maker, capacity=times.int8)
        cut.add_edges_from((reader, ("rounded", value)) for reader in readers - {FLOAT})
        if maker == FLOAT:
            continue
        # An op stays in 8 bits where all that it reads is.
        cut.add_edges_from((reader, maker) for reader in readers & plan.computed)
        free = maker in by_node and (float_results or by_node[maker].kind in PRODUCTS)
        if not free:  # else the layer gives floats where these are read
            cut.add_edge(maker, ("floats", value), capacity=times.floats)
            cut.add_edges_from((("floats", value), reader) for reader in readers)
    _, (_, in_float) = minimum_cut(cut, INT8, FLOAT)
    return {layer.name for node, layer in by_node.items() if node in in_float}
