"""What an op is called, and which ops are of one kind: said here once, for whoever asks.

In evaluation, that is: what `training_flag` is about does nothing then.
"""

from __future__ import annotations

import torch
from torch import fx

DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
COPIES = frozenset({"contiguous", "clone", "alias", "detach"})
RESHAPES = frozenset(  # the same values in the same order
    {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"}
)
REORDERS = frozenset({"permute", "transpose", "t"})
# every value of the result is one of the operand's, none is computed
MOVES = COPIES | RESHAPES | REORDERS | {"slice", "select", "expand"}
CLAMPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})
# f(s x) = s f(x) for s > 0, value by value
HOMOGENEOUS = DROPOUTS | COPIES | {"relu", "leaky_relu"}
# the same of images [N, C, size…], where no channel looks at another
HOMOGENEOUS_PER_CHANNEL = frozenset(
    {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
    | {"adaptive_avg_pool2d", "upsample_nearest2d"}
)
PRODUCTS = frozenset({"linear", "addmm", "mm", "matmul"})  # with a weight
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
NORMS = frozenset({"batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"})


def op_name(node: fx.Node) -> str:
    """The op's name without namespace and overload: `aten.add_.Tensor` -> "add_"; "" of what is no op.

    An input or a buffer may be called "mean" or "cat".
    """
    target = node.target
    if node.op != "call_function":
        return ""
    if isinstance(target, torch._ops.OpOverload):
        if (
            target is torch.ops.aten.view.dtype
        ):  # the same bytes as another type, where a view has other sizes
            return "view_dtype"
        return target._schema.name.split("::")[-1]
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name()
    return getattr(target, "__name__", str(target))
