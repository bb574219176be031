"""A model that draws random numbers when it is run gives no answer that could be compared with another's.

Nothing that is promised here holds of it: two runs differ, a pass is lost in its noise, runtimes draw
other numbers. So it is refused when it is loaded, with the place of the draw and what takes it away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.places import place

_REMEDY = (
    "take it out of forward() where self.training is false (F.dropout: training=self.training), or make the "
    "numbers an input; a .pt2 is exported after model.eval()"
)


def refuse_random_numbers(model: Model, path: object) -> None:
    """Refuse a model whose graph draws random numbers.

    Raises:
        UnsupportedError: it does; the message says which op of which layer.
    """
    draws = [node for node in model.graph.nodes if draws_random_numbers(node)]
    if draws:
        more = f" and {len(draws) - 1} more" if len(draws) > 1 else ""
        raise UnsupportedError(
            f"{path} draws random numbers whenever it is run, so no two of its answers can be compared",
            got=f"{place(draws[0])}{more}",
            remedy=_REMEDY,
        )


def changing_answers(path: object) -> UnsupportedError:
    """What refuses a source whose runs differ though its graph draws nothing: a draw became a constant."""
    return UnsupportedError(
        f"{path} gives other outputs on every run, of the same inputs",
        got="random numbers of Python or NumPy, a clock or a counter in forward()",
        remedy=_REMEDY,
    )


def draws_random_numbers(node: fx.Node) -> bool:
    """An op that torch marks as random, and that is not switched off: dropout in evaluation mode is."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = _arguments(node)
    if any(given.get(flag) is False for flag in ("train", "training")):
        return False
    layers, rate = given.get("num_layers"), given.get("dropout", given.get("dropout_p"))
    return (
        rate != 0 and layers != 1
    )  # a recurrent layer drops between layers; attention has a rate and no flag


def _arguments(node: fx.Node) -> dict[str, Any]:
    """By the names of the schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    by_name = {a.name: a.default_value for a in schema if a.has_default_value()}
    return by_name | dict(zip((a.name for a in schema), node.args)) | dict(node.kwargs)
