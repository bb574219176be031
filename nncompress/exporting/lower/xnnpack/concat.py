"""Concatenations for XNNPACK, which joins 8-bit values of one scale and zero point.

Every value that is joined, what it is joined to, and whatever only moves values between these get the qparams
that cover all of their ranges. ExecuTorch would otherwise write a program that it cannot load.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from nncompress.analysis.int8_plan import SAME_VALUES
from nncompress.ir.formats.qdq import LEVELS, QParams, is_dequantized, is_dynamic
from nncompress.ir.graph.ops import op_name


def share_grids(graph: fx.Graph) -> None:
    """Give the inputs and the output of every 8-bit concatenation the same qparams, in place."""
    leader: dict[fx.Node, fx.Node] = {}

    def first(quantize: fx.Node) -> fx.Node:
        while leader.setdefault(quantize, quantize) is not quantize:
            quantize = leader[quantize]
        return quantize

    for node in graph.nodes:
        cat = op_name(node) in ("cat", "concat")
        sources: Any = node.all_input_nodes if cat else node.args[:1]
        written = [n for n in node.users if op_name(n) == "quantize_per_tensor" and not is_dynamic(n)]
        if not written or not all(is_dequantized(source) for source in sources):
            continue
        if cat or (op_name(node) in SAME_VALUES and QParams.of(written[0]) == QParams.of(sources[0])):
            for other in [source.args[0] for source in sources] + written[1:]:
                leader[first(other)] = first(written[0])
    for group in {first(each): [n for n in leader if first(n) is first(each)] for each in leader}.values():
        every = [QParams.of(quantize) for quantize in group]
        if len(set(every)) > 1:
            _set(group, _covering(every))


def _covering(every: list[QParams]) -> QParams:
    lows = [-each.zero_point * each.scale for each in every]
    return QParams.covering(
        min(lows), max(low + LEVELS * each.scale for low, each in zip(lows, every, strict=True))
    )


def _set(group: list[fx.Node], qparams: QParams) -> None:
    for quantize in group:
        for node in (quantize, *quantize.users):
            least: Any = node.args[3]  # some are signed
            node.args = (node.args[0], qparams.scale, qparams.zero_point + least, *node.args[3:])
