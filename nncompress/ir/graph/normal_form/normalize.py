"""Bring what `torch.export` emits into the one form that every pass may rely on.

| what export emits                                     | what passes see                        |
|-------------------------------------------------------|----------------------------------------|
| pytree inputs and outputs, constants among the inputs | positional tensors in, flat tuple out  |
| `wrap_with_set_grad_enabled`, `wrap_with_autocast`    | their body, inlined, with its casts    |
| in-place ops (`relu_`, `add_`), views beside them     | no writes (`functionalize`) |
| arguments by name                                     | by position, where they have one       |
| `unsafe_chunk`, `unsafe_split`                        | `chunk`, `split`, whose sizes stay free |
| a tensor that is neither parameter nor buffer         | a buffer that no state_dict holds      |
| a running statistic that is a parameter, a buffer that wants a gradient | a buffer that wants none |
| assertions on metadata and sizes                      | nothing: they hold literal sizes       |
| a weight computed twice in the same way (a weight norm in an unrolled cell) | one computation  |
| composite ops (`outer`, `hstack`, `swapaxes`)        | what they consist of (`decompose`) |
| embedding bags whose offsets are values               | what they consist of (`bags`) |
| tables whose rows are scaled when read (`max_norm`)   | tables that hold them so (`bounded_rows`) |
| batch norms in training mode, beside their statistics | norms that keep none (`batch_statistics`) |
| norms spelled out by `run_decompositions`             | one op (`recompose`)     |
| get_attr nodes nobody uses                            | nothing                                |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen

from nncompress.errors import UnsupportedError
from nncompress.ir.graph.normal_form.autocast import write_casts
from nncompress.ir.graph.normal_form.bags import take_bags_apart
from nncompress.ir.graph.normal_form.batch_statistics import drop_unread_statistics
from nncompress.ir.graph.normal_form.bounded_rows import bound_rows
from nncompress.ir.graph.normal_form.decompose import decompose_composites
from nncompress.ir.graph.normal_form.functionalize import functionalize
from nncompress.ir.graph.normal_form.recompose import recompose
from nncompress.ir.graph.normal_form.writes import is_write
from nncompress.ir.graph.ops import op_name

WRITTEN_OUT = (
    "write it in operators: both branches of a condition, and torch.where; the steps of a loop, unrolled; "
    "attention as scaled_dot_product_attention"
)
_WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # name -> arguments before the body
_PARTS = {  # the unsafe ones know no symbolic sizes, and fix the batch where anything is asked of them
    torch.ops.aten.unsafe_chunk.default: torch.ops.aten.chunk.default,
    torch.ops.aten.unsafe_split.Tensor: torch.ops.aten.split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default: torch.ops.aten.split_with_sizes.default,
}
_ASSERTIONS = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


def normalize(module: fx.GraphModule) -> bool:
    """Normalise `module` in place (table above). Its meaning does not change.

    Returns: whether every node knows its shape; where not, an export anew tells.

    Raises:
        UnsupportedError: it has branches or loops that an input decides.
    """
    graph = module.graph
    graph.set_codegen(CodeGen())
    for node in graph.nodes:  # the rest is a history of tracings, which grows with every one
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    for name in ("_in_spec", "_out_spec"):  # pytree forms of inputs and outputs, which are flat now
        if hasattr(module, name):
            delattr(module, name)
    for hooks in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, module._forward_hooks):
        hooks.clear()  # they check calls against the nesting and keywords of the original's inputs
    _register_plain_tensors(module)
    _settle_roles(module)
    while _inline_wrappers(module):
        pass
    _refuse_inner_graphs(graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) in _ASSERTIONS:
            graph.erase_node(node)
        node.target = _PARTS.get(node.target, node.target)
        _by_position(node)
    _drop_constant_inputs(graph)
    _flatten_outputs(graph)
    bound_rows(module)
    complete = functionalize(module)
    decompose_composites(graph)
    complete &= functionalize(module)  # vander fills a table
    take_bags_apart(graph)
    drop_unread_statistics(graph)
    recompose(graph)
    _share_computed_weights(graph)
    remove_dead_code(module)
    return complete


def remove_dead_code(module: fx.GraphModule) -> None:
    """Erase unused nodes, then the attributes and submodules that no node refers to any more.

    A second name of a used parameter (tied weights) and the step counter of a used batch norm are kept:
    the original class expects them in its state_dict.
    """
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("get_attr", "call_function") and not _mutates(node):
            graph.erase_node(node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    kept_ids = {id(tensors[name]) for name in used if name in tensors}
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".")
        counter = leaf == "num_batches_tracked" and f"{prefix}.running_mean" in used
        if name not in used and id(tensor) not in kept_ids and not counter:
            delattr(module.get_submodule(prefix), leaf)
    _drop_empty_submodules(module)
    graph.lint()
    module.recompile()


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _drop_empty_submodules(module: torch.nn.Module) -> None:
    for name, child in list(module.named_children()):
        _drop_empty_submodules(child)
        if not any(True for _ in child.parameters()) and not any(True for _ in child.buffers()):
            delattr(module, name)


def _by_position(node: fx.Node) -> None:
    """Arguments that have a position are given by it, whatever the file did."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.kwargs:
        return
    kwargs = dict(node.kwargs)
    positional = [a for a in node.target._schema.arguments if not a.kwarg_only]
    last = max((i for i, a in enumerate(positional) if a.name in kwargs), default=-1)
    args = list(node.args)
    for argument in positional[len(args) : last + 1]:
        args.append(kwargs.pop(argument.name) if argument.name in kwargs else argument.default_value)
    node.args, node.kwargs = tuple(args), kwargs


def _settle_roles(module: fx.GraphModule) -> None:
    """No training could go by these: a statistic has no gradient, and a buffer is nobody's to train."""
    statistics = set()
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        given = zip((a.name for a in schema.arguments), node.args) if schema is not None else ()
        for name, value in (*given, *node.kwargs.items()):
            if name in ("running_mean", "running_var") and getattr(value, "op", "") == "get_attr":
                statistics.add(str(value.target))
    settled: dict[int, torch.Tensor] = {}  # tied ones stay tied
    tensors = {
        **{
            name: tensor
            for name, tensor in module.named_parameters(remove_duplicate=False)
            if name in statistics
        },
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in tensors.items():
        if tensor.requires_grad or isinstance(tensor, torch.nn.Parameter):
            prefix, _, leaf = name.rpartition(".")
            owner = module.get_submodule(prefix)
            delattr(owner, leaf)
            owner.register_buffer(leaf, settled.setdefault(id(tensor), tensor.detach()))


def _register_plain_tensors(module: fx.GraphModule) -> None:
    """What editing, counting and saving go by are parameters and persistent buffers; a plain attribute, or a
    buffer that the module did not save, would be lost to them."""
    for each in module.modules():
        each._non_persistent_buffers_set.clear()
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        prefix, _, leaf = str(node.target).rpartition(".")
        owner = module.get_submodule(prefix)
        value = owner.__dict__.get(leaf)
        if isinstance(value, torch.Tensor):
            delattr(owner, leaf)
            owner.register_buffer(leaf, value)


def _inline_wrappers(module: fx.GraphModule) -> bool:
    """Replace one level of grad-mode and autocast wrappers by their body; True if there were any."""
    found = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or op_name(node) not in _WRAPPERS:
            continue
        found = True
        skip = _WRAPPERS[op_name(node)]
        body: Any = module.get_submodule(node.args[skip].target)
        operands = node.args[skip + 1 :]
        autocast = _enabled_autocast(node)
        names: dict[fx.Node, fx.Node] = {}
        with module.graph.inserting_before(node):
            for inner, outer in zip([n for n in body.graph.nodes if n.op == "placeholder"], operands):
                names[inner] = outer
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    continue
                if inner.op == "output":
                    results = fx.map_arg(inner.args[0], names.__getitem__)
                    break
                if inner.op == "get_attr":  # the body's own constants move up under a fresh name
                    name = f"{node.args[skip].target}.{inner.target}"
                    names[inner] = module.graph.get_attr(name)
                else:
                    names[inner] = copy = module.graph.node_copy(inner, names.__getitem__)
                    if autocast is not None:
                        write_casts(module.graph, copy, *autocast)
        results = results if isinstance(results, list | tuple) else (results,)
        for user in list(node.users):  # each reads one result by operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    return found


def _refuse_inner_graphs(graph: fx.Graph) -> None:
    """Refuse what has graphs of its own: which of their ops run, an input decides.

    Raises:
        UnsupportedError: naming it.
    """
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedError(
                f"forward() uses torch's {op_name(node)}, which is no operator on tensors",
                remedy=WRITTEN_OUT,
            )


def _enabled_autocast(node: fx.Node) -> tuple[str, torch.dtype | None] | None:
    """The device and type of a region that casts."""
    if op_name(node) != "wrap_with_autocast":
        return None
    device, dtype, enabled, _ = node.args[:4]
    return (device, dtype) if enabled else None  # type: ignore[return-value]


def _drop_constant_inputs(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), torch.Tensor):
            if node.users:
                continue  # a symbolic integer input: Model reports it
            graph.erase_node(node)


def _flatten_outputs(graph: fx.Graph) -> None:
    """The output node returns the tuple of the tensors among its leaves."""
    output = graph.output_node()
    leaves: list[fx.Node] = []
    fx.map_arg(output.args, leaves.append)
    sizes = (torch.SymInt, torch.SymFloat, torch.SymBool)  # numbers that follow from a free size
    output.args = (tuple(leaf for leaf in leaves if not isinstance(leaf.meta.get("val"), sizes)),)


def _share_computed_weights(graph: fx.Graph) -> None:
    """Let equal calls on equal weights be one node, where nothing is written and nothing is random.

    Weights stored as integers are skipped: export wants one dequantization per reader. So is a copy made
    to be written to.
    """
    first: dict[Any, fx.Node] = {}
    constant: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
                continue
            key: Any = node.target
        elif (
            node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes)
        ):
            tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
            if torch.Tag.nondeterministic_seeded in tags or any(map(is_write, [node, *node.users])):
                continue
            key = (node.target, repr(node.args), repr(node.kwargs))  # nodes have unique names
        else:
            continue
        constant.add(node)
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
            constant.remove(node)
        else:
            first[key] = node
