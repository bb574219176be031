"""A table that is the output layer, too, gets a copy for that: each can then take up other factors."""

from __future__ import annotations

import torch

from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.graph.places import layer_name
from nncompress.ir.layers.weights import layers


def part_tables(model: Model) -> list[str]:
    """In place; the names of the embeddings whose tables are stored twice then."""
    found = list(layers(model))
    tables = {layer.weight.name for layer in found if layer.kind == "embedding"}
    parted = []
    for layer in found:
        name = layer.weight.name
        if layer.kind not in PRODUCTS or layer.weight.quantized or name not in tables:
            continue
        parted.append(layer_name(name))
        own = _own_name(model, name)
        edit.set_argument(layer.node, layer.roles.weight, edit.read_tensor(model, own, layer.node))
    if parted:
        model.refresh()
    return parted


def _own_name(model: Model, name: str) -> str:
    """A copy of a stored tensor, under another name that the tensor has, or a new one."""
    tensor = model.tensor(name)
    for other in edit.names_of(model, tensor):
        if other != name:
            prefix, _, leaf = other.rpartition(".")
            copy = torch.nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
            model.graph_module.get_submodule(prefix)._parameters[leaf] = copy
            return other
    return edit.add_tensor(model, f"{layer_name(name)}_as_output.weight", tensor.detach())
