"""What `Model.to_module` gave, trained in a loop of the user's own or not, back to a `Model`."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import fx

from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import name_placeholders
from nncompress.ir.graph.network import Network
from nncompress.ir.graph.tracing import named_dims, trace


def model_of(network: Network) -> Model:
    """The model that a network is, with its history; trained or not, the network stays as it is.

    Raises:
        UsageError: it was edited so that it does not run any more.
    """
    held = copy.deepcopy(network).cpu().eval()
    shell = Model(fx.GraphModule({}, fx.Graph()), held.inputs, held.outputs, held.dynamic)
    shell.metadata = held.metadata  # the sizes that it runs at
    dims = named_dims(held.dynamic)
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str)} for s in held.inputs)
    model = Model.from_exported(
        trace(held, shell.example_inputs(), {}, (shapes,) if dims else None),
        history=held.history,
        metadata=held.metadata,
        inputs=held.inputs,
        copy_weights=True,
    )
    if len(model.outputs) != len(held.outputs):
        raise UsageError(
            "the network gives other outputs than when it was made",
            got=", ".join(model.outputs),
            expected=", ".join(held.outputs),
        )
    model.inputs = tuple(replace(spec, name=old.name) for spec, old in zip(model.inputs, held.inputs))
    name_placeholders(model.graph_module, model.inputs)
    model.outputs = held.outputs
    return model
