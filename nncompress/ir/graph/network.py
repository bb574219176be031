"""A `Model` as an ordinary `nn.Module`, for a training loop of the user's own.

The module is the model's graph as Python code over parameters and buffers under their dotted names. What
differs between training and evaluation is read from the modules' own `training`: a batch norm's from the
module that holds its weights, so that `network.get_submodule("layer1.bn").eval()` freezes one; dropout's and
a recurrent layer's from the network. Tensors that the graph makes are made where the input lies, states of
zeros and what int8 stands for as precise as the weights are (after `to(dtype)`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _format_import_block
from torch.package import sys_importer

from nncompress.dtypes import dtype_name
from nncompress.ir.graph.inputs import InputSpec, check_sizes, least_batch_of
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.state import as_writes
from nncompress.ir.graph.training_flag import training_flag

_ROUNDED, _RESTORED = ("quantize_per", "choose_qparams"), "dequantize_per"
_TENSORS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Network(nn.Module):
    """What `Model.to_module` returns: positional or named tensors in, one tensor out, or a tuple of several.

    It starts in evaluation mode. It can be copied, pickled (as any module: loading it runs its code), moved,
    compiled, wrapped, and given to `nncompress.load` and `nncompress.compress`.

    Attributes:
        inputs, dynamic, outputs, history, metadata: as in `Model`.
        source: the forward as Python code.
    """

    _forward: Callable[..., tuple[Tensor, ...]]

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[InputSpec],
        outputs: Sequence[str],
        dynamic: Mapping[str, tuple[int, int | None]],
        history: Sequence[dict[str, Any]],
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__()
        tensors = copy.deepcopy(graph_module)
        for table in _TENSORS:
            self.__dict__[table] = tensors.__dict__[table]
        self.inputs, self.outputs, self.dynamic = tuple(inputs), tuple(outputs), dict(dynamic)
        self.history, self.metadata = copy.deepcopy(list(history)), copy.deepcopy(dict(metadata))
        self._stored = tuple(dict.fromkeys(_stored_as_integers(tensors.graph)))
        code = _trainable(tensors.graph).python_code("self")
        self.source = _format_import_block(code.globals, sys_importer) + code.src
        self._compile()
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it.

        Raises:
            UsageError: of sizes that it is not right for, as `Model.outputs_of`.
        """
        given = dict(zip((spec.name for spec in self.inputs), inputs)) | named
        specs = [spec for spec in self.inputs if spec.name in given]
        check_sizes(specs, [given[spec.name] for spec in specs], least=least_batch_of(self.metadata))
        outputs = self._forward(self, *inputs, **named)
        return outputs[0] if len(outputs) == 1 else outputs

    def train(self, mode: bool = True) -> Network:
        """As any module's; warns of weights that stay as they are, being int8."""
        if mode and self._stored:
            warnings.warn(
                f"weights stored as int8 do not train ({len(self._stored)}, {self._stored[0]} the first): "
                "train before quantize, or by nncompress train, which rounds with a gradient",
                stacklevel=2,
            )
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        return ", ".join([*map(str, self.inputs), f"-> {', '.join(self.outputs)}"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        """Also `to(dtype)`, `half()`, `double()`: inputs as precise as the weights stay so."""
        before = _precision(self)
        super()._apply(fn, recurse)
        after = _precision(self)
        if before is not None and after is not None and before[1] != after[1]:
            old, new = dtype_name(before[1]), dtype_name(after[1])
            self.inputs = tuple(
                replace(spec, dtype=new, samples=None) if spec.dtype == old else spec for spec in self.inputs
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()

    def _compile(self) -> None:
        names: dict[str, Any] = {"inf": float("inf"), "nan": float("nan"), "NoneType": type(None)}
        exec(self.source, names)
        self.__dict__["_forward"] = names["forward"]


def _trainable(given: fx.Graph) -> fx.Graph:
    """A copy of the graph whose training flags and devices are read when it runs."""
    graph = fx.Graph()
    outputs: Any = graph.graph_copy(given, {})
    graph.output(tuple(outputs))
    as_writes(graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    start = next(node for node in graph.nodes if node.op != "placeholder")
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    if inputs and any(isinstance(value, torch.device) for node in nodes for value in _values(node)):
        with graph.inserting_before(start):
            device = graph.call_function(getattr, (inputs[0], "device"))
        for node in nodes:
            node.args = tuple(device if isinstance(v, torch.device) else v for v in node.args)
            node.kwargs = {k: device if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}
    _follow_precision(graph, start, given.owning_module)
    flags: dict[str, fx.Node] = {}
    for node in nodes:
        if op_name(node) == "view":  # images may lie in memory channels last
            node.target = torch.ops.aten.reshape.default
        position = training_flag(node)
        if position is not None:
            owner = f"{_owner(node)}.training".lstrip(".")
            if owner not in flags:
                with graph.inserting_before(start):
                    flags[owner] = graph.create_node("get_attr", owner)
            node.update_arg(position, flags[owner])
    return graph


def _follow_precision(graph: fx.Graph, start: fx.Node, owner: nn.Module | None) -> None:
    """What is made or cast to be as precise as the weights (first states of a recurrent layer, whole numbers
    that are computed with), and what int8 values stand for, gets the precision that the weights have when it
    runs. Values are rounded to int8 from float32, the only precision that these ops know."""
    weight = _precision(owner)
    if weight is None:
        return
    rounded = [n for n in graph.nodes if op_name(n).startswith(_ROUNDED)]
    restored = [n for n in graph.nodes if op_name(n).startswith(_RESTORED)]
    apart = {*rounded, *restored}
    stated = [n for n in graph.nodes if n not in apart and any(v is weight[1] for v in _values(n))]
    if not (stated or rounded or restored):
        return
    with graph.inserting_before(start):
        dtype = graph.call_function(getattr, (graph.get_attr(weight[0]), "dtype"))
    for node in stated:
        node.args = tuple(dtype if value is weight[1] else value for value in node.args)
        node.kwargs = {key: dtype if value is weight[1] else value for key, value in node.kwargs.items()}
    for node in rounded:
        with graph.inserting_before(node):
            node.update_arg(0, graph.call_function(as_precise, (node.args[0], torch.float32)))
    for node in restored:
        with graph.inserting_after(node):
            precise = graph.call_function(as_precise, (node, dtype))
        node.replace_all_uses_with(precise, delete_user_cb=lambda user, own=precise: user is not own)


def _stored_as_integers(graph: fx.Graph) -> Iterator[str]:
    """The names of the tensors that are dequantized as they are stored."""
    for node in graph.nodes:
        if op_name(node).startswith(_RESTORED):
            stored = node.args[0]
            if stored.op == "get_attr":
                yield str(stored.target)


def as_precise(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in `dtype`; where they are in it already no op, also for who traces this."""
    return values if values.dtype == dtype else values.to(dtype)


def _precision(module: nn.Module | None) -> tuple[str, torch.dtype] | None:
    """The first floating parameter and its dtype, else the first such buffer (all weights are int8)."""
    if module is None:
        return None
    tensors = chain(module.named_parameters(), module.named_buffers())
    return next(((name, t.dtype) for name, t in tensors if t.is_floating_point()), None)


def _values(node: fx.Node) -> list[Any]:
    return [*node.args, *node.kwargs.values()]


def _owner(node: fx.Node) -> str:
    """The module whose mode decides: of a batch norm the one that holds its tensors; else the network."""
    if op_name(node) != "batch_norm":
        return ""
    held = [a for a in node.args[1:5] if isinstance(a, fx.Node) and a.op == "get_attr"]
    return str(held[-1].target).rpartition(".")[0] if held else ""
