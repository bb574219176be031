"""What makes the channels of an activation, and can make them smaller: the norm or the layer before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.ops import PRODUCTS, op_name
from nncompress.ir.layers.weights import Layer, Weight, argument, layers, owns_tensors, reads


@dataclass(frozen=True)
class Source:
    """A node whose last dim are channels, with the stored tensors that scale and shift them."""

    model: Model
    node: fx.Node
    vectors: tuple[str, ...] = ()
    layer: Layer | None = None

    def divide(self, scales: Tensor) -> None:
        """Make its channels smaller by `scales`, float64 [channels], in place."""
        if self.layer is not None:
            weight = self.layer.weight.value().double()
            by_output = [1] * weight.dim()
            by_output[self.layer.roles.outputs] = -1
            self.layer.weight.assign(weight / scales.reshape(by_output))
            _divide(self.layer.bias, scales)
        elif not self.vectors:  # a norm without weights gets them
            name = edit.add_tensor(self.model, f"{self.node.name}.weight", (1 / scales).float())
            edit.set_argument(self.node, 2, edit.read_tensor(self.model, name, self.node))
        for name in self.vectors:
            tensor = self.model.tensor(name)
            with torch.no_grad():
                tensor.copy_((tensor.double() / scales).to(tensor.dtype))


def _divide(vector: Weight | None, scales: Tensor) -> None:
    if vector is not None:
        vector.assign(vector.value().double() / scales)


def sources(model: Model) -> Iterator[Source]:
    """Norms, and products whose float weights are their own, in graph order."""
    by_node = {layer.node: layer for layer in layers(model)}
    for node in model.graph.nodes:
        layer = by_node.get(node)
        if layer is not None:
            if is_matrix(layer) and owns_tensors(model, layer) and _has_vector(layer):
                yield Source(model, node, layer=layer)
        elif node.op == "call_function":
            names = norm_vectors(model, node)
            if names is not None:
                yield Source(model, node, tuple(names))


def is_matrix(layer: Layer) -> bool:
    """A product with one float32 matrix."""
    weight = layer.weight.value()
    return layer.kind in PRODUCTS and weight.dim() == 2 and weight.dtype == torch.float32


def _has_vector(layer: Layer) -> bool:
    return layer.bias is None or layer.bias.value().shape == layer.node.meta["val"].shape[-1:]


def norm_vectors(model: Model, node: fx.Node) -> list[str] | None:
    """The stored vectors [width] with which a norm scales and shifts its outputs.

    [] of one that has none yet, None of what is no norm over the last dim with vectors of its own.
    """
    name = op_name(node)
    if name in ("layer_norm", "rms_norm"):
        given = [argument(node, position) for position in ((2, 3) if name == "layer_norm" else (2,))]
        if len(argument(node, 1)) != 1 or (given[0] is None and any(given)):  # type: ignore[arg-type]
            return None
    elif name == "mul":  # an RMS norm that is spelt out
        given = [each for each in node.args[:2] if isinstance(each, fx.Node) and each.op == "get_attr"]
        if len(given) != 1:
            return None
    else:
        return None
    names = []
    for each in given:
        if each is None:
            continue
        if not isinstance(each, fx.Node) or each.op != "get_attr" or len(each.users) > 1:
            return None
        tensor = model.tensor(str(each.target))
        if tensor.shape != node.meta["val"].shape[-1:] or tensor.dtype != torch.float32:
            return None
        if reads(model, str(each.target)) > 1:
            return None
        names.append(str(each.target))
    return names
