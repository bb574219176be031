"""What an op computes differently in training, it is told by a flag."""

from __future__ import annotations

from torch import fx

from nncompress.ir.graph.ops import DROPOUTS, RECURRENT, op_name

# op -> the position of its training flag
TRAINING_FLAG = {
    "batch_norm": 5,
    **dict.fromkeys(DROPOUTS, 2),
    **dict.fromkeys(RECURRENT, 6),  # dropout between layers; cuDNN's gradient
}


def training_flag(node: fx.Node) -> int | None:
    """The position of its training flag.

    None without one, and of a batch norm that keeps no statistics: it takes the batch's in either mode.
    """
    if node.op != "call_function" or (op_name(node) == "batch_norm" and node.args[3] is None):
        return None
    packed = str(node.target).endswith(".data")  # a packed sequence is two arguments
    position = TRAINING_FLAG.get(op_name(node))
    return position + 1 if packed and position is not None else position
