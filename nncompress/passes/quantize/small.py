"""Layers too small for int8 to pay: a sentence for the user, who would otherwise learn it from `bench`."""

from __future__ import annotations

from collections.abc import Sequence

from nncompress.analysis.cost import node_macs
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer

# Multiply-adds of a layer, below which none was faster in int8 (`benchmarks/int8/small.py`): ONNX Runtime on
# x86 with AVX512-VNNI, batch 1, one thread.
PAYS_FROM = 50_000


def too_small(model: Model, integer: Sequence[Layer]) -> str | None:
    """What to tell where even the largest of the `integer` layers is below that size; else None."""
    if not integer:
        return None
    shapes = Shapes(model)
    largest = max(node_macs(layer.node, shapes) for layer in integer) // (model.fixed_batch or 1)
    if largest >= PAYS_FROM:
        return None
    return (
        f"no layer has more than {largest:,} multiply-adds per sample: where measured, int8 made those "
        f"below {PAYS_FROM:,} smaller, not faster; nncompress bench tells what it does here"
    )
