"""Where in a model an op lies, for messages: graphs keep no names of modules without weights."""

from __future__ import annotations

from torch import fx

from nncompress.ir import Model
from nncompress.ir.graph.normalize import op_name
from nncompress.ir.layers.weights import layer_name


def behind(model: Model, op: str) -> str:
    """ ", behind layer stem.conv": the layer whose result reaches the first such op; "" where there is none.

    Args:
        op: the op's name, as in "aten.linalg_qr.default", or that of what it was taken apart to.
    """
    wanted = op.replace("::", ".").removeprefix("aten.").partition(".")[0].strip("_")
    node = next(
        (n for n in model.graph.nodes if n.op == "call_function" and op_name(n).strip("_") == wanted), None
    )
    seen: set[fx.Node] = set()
    ahead = [] if node is None else [node]
    while ahead:
        each = ahead.pop(0)
        stored = [n for n in each.all_input_nodes if n.op == "get_attr"]
        if stored:
            name = layer_name(str(stored[-1].target))
            return f", in {name}" if each is node else f", behind layer {name}"
        ahead += [n for n in each.all_input_nodes if n not in seen]
        seen.update(each.all_input_nodes)
    return ""
