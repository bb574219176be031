"""How many samples may run through a model together."""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.analysis.observe.budget import BUDGET
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.shapes import Shapes

RUNNING = 48 << 20  # bytes that a run holds at a time: three values or so


def largest_batch(model: Model) -> int:
    """Samples whose values, as far as a run holds them at a time, fit in the budget; at least one."""
    return max(1, BUDGET // max(frontier_bytes(model), 1))


def quick_batch(model: Model) -> int:
    """Samples that run through a model in least CPU time each; at least one.

    Values beyond some 16 MB are mapped and unmapped by the allocator each time, page by page: ResNet-50 at
    224² took 0.23 s per sample in batches of 32, and 0.16 s in batches of 4.
    """
    return max(1, RUNNING // max(frontier_bytes(model), 1))


def frontier_bytes(model: Model) -> int:
    """The most bytes per sample that a walk through the graph holds at a time."""
    shapes = Shapes(model)
    waiting = {node: len(node.users) for node in model.graph.nodes}
    held = peak = 0
    size = {}
    for node in model.graph.nodes:
        value = node.meta.get("val")
        own = node.op != "get_attr" and isinstance(value, Tensor)
        size[node] = torch.Size(shapes.of(node)).numel() * value.element_size() if own else 0
        held += size[node]
        peak = max(peak, held)
        for source in node.all_input_nodes:
            waiting[source] -= 1
            if not waiting[source]:
                held -= size[source]
    return peak
