"""Put factors into the graph in the place of a weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.edit.nodes import add_tensor, read_tensor, replace_node
from nncompress.ir.layers.weights import argument
from nncompress.passes.factors.forms.base import Form


def replace_layer(
    model: Model, form: Form, weights: Sequence[Tensor], bias: Tensor | None = None
) -> list[str]:
    """Every layer of `form`'s target runs the stages with these weights; all of them share the tensors.

    Args:
        weights: one per stage, of the shapes that the form's `stages` say.
        bias: in place of the bias that the target's only layer has, or has not; None keeps it.

    Returns: the names of the stored weights. `Model.refresh()` has to follow.
    """
    target = form.target
    # "layer.conv.weight" becomes "layer.conv.0.weight", …; a bare parameter "proj" becomes "proj_0.weight", …
    prefix = f"{target.name}_" if target.name == target.weight.name else f"{target.name}."
    names = [add_tensor(model, f"{prefix}{i}.weight", w) for i, w in enumerate(weights)]
    for layer in target.layers:
        node = layer.node
        source = argument(node, layer.roles.bias) if layer.roles.bias is not None else None
        if bias is not None:
            name = add_tensor(model, f"{prefix}{len(weights) - 1}.bias", bias)
            source = read_tensor(model, name, node)
        assert source is None or isinstance(source, fx.Node)
        replace_node(node, form.insert(model, layer, names, source))
    return names
