"""A joined decoder (`joined`) as two graphs again."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.pair import STEP, Pair
from nncompress.ir.graph.inputs import InputSpec
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.normal_form.boundary import BOUNDARY
from nncompress.ir.graph.normal_form.normalize import remove_dead_code

aten = torch.ops.aten


def take_apart(joined: Model, pair: Pair) -> Pair:
    """The graphs of a joined model that was edited, with the inputs and outputs of `pair`; caches are of the
    size that they have become.

    Raises:
        VerificationError: one after the other they compute something else.
    """
    marks = _marks(joined)
    results: Any = joined.graph.output_node().args[0]
    named = dict(zip(joined.outputs, results))
    given = {w.given: marks[f"step:{pair.step.inputs[w.taken].name}"] for w in pair.wires}
    grown = {w.grown: marks[f"grown:{pair.step.outputs[w.grown]}"] for w in pair.wires if w.grown is not None}
    first = [
        given[at].all_input_nodes[0] if at in given else named[name]
        for at, name in enumerate(pair.prompt.outputs)
    ]
    then = [
        grown[at].all_input_nodes[0] if at in grown else named[f"{STEP}{name}"]
        for at, name in enumerate(pair.step.outputs)
    ]
    done = joined.history[len(pair.prompt.history) :]
    parts = Pair(
        _part(joined, pair.prompt, "prompt:", first, done), _part(joined, pair.step, "step:", then, done)
    )
    parts.check(joined, "taken apart")
    return parts


def _marks(model: Model) -> dict[str, fx.Node]:
    return {str(node.args[1]): node for node in model.graph.nodes if node.target is BOUNDARY}


def _part(
    joined: Model, source: Model, place: str, outputs: Sequence[fx.Node], done: Sequence[dict[str, Any]]
) -> Model:
    """The graph that makes these nodes, of inputs where the marks of `place` are."""
    part = joined.copy()
    graph = part.graph
    by_name = {node.name: node for node in graph.nodes}
    results = [by_name[node.name] for node in outputs]
    marks = _marks(part)
    whole = dict(
        zip((spec.name for spec in joined.inputs), (n for n in graph.nodes if n.op == "placeholder"))
    )
    inputs: list[tuple[fx.Node, InputSpec]] = []
    for spec in source.inputs:
        mark = marks.get(place + spec.name)
        if mark is None:  # it goes to this graph alone
            inputs.append((whole[spec.name], spec))
            continue
        with graph.inserting_before(next(iter(graph.nodes))):
            node = graph.placeholder(f"{place[:-1]}_{spec.name}")
        node.meta["val"] = mark.meta["val"]
        mark.replace_all_uses_with(node)
        sizes = zip(spec.shape, mark.meta["val"].shape, strict=True)
        shape = tuple(old if isinstance(old, str) else int(new) for old, new in sizes)
        inputs.append((node, replace(spec, shape=shape)))
    for mark in marks.values():
        mark.replace_all_uses_with(mark.all_input_nodes[0])
    graph.output_node().args = (tuple(results),)
    remove_dead_code(part.graph_module)
    for node, _ in reversed(inputs):
        if next(iter(graph.nodes)) is not node:
            next(iter(graph.nodes)).prepend(node)
    kept = [node for node, _ in inputs]
    for node in set(whole.values()).difference(kept):
        _measure_others(node, kept)
        remove_dead_code(part.graph_module)
        graph.erase_node(node)
    part.inputs, part.outputs = tuple(spec for _, spec in inputs), source.outputs
    part.dynamic, part.metadata = dict(source.dynamic), dict(source.metadata)
    part.history = [*source.history, *done]
    for node, spec in inputs:
        node.target = spec.name
    part.graph_module.recompile()
    part.refresh()
    return part


def _measure_others(gone: fx.Node, kept: Sequence[fx.Node]) -> None:
    """Sizes that are read off an input which goes are read off one that stays."""
    for node in list(gone.users):
        if node.target is not aten.sym_size.int or not isinstance(node.meta["val"], torch.SymInt):
            continue
        wanted = node.meta["val"].node.expr
        for other, d in ((each, d) for each in kept for d in range(each.meta["val"].dim())):
            size = other.meta["val"].shape[d]
            apart = None if isinstance(size, int) else wanted - size.node.expr
            if apart is not None and apart.is_Integer:
                with edit.inserting_before(node) as call:
                    measured = call(aten.sym_size.int, other, d)
                    measured = call(operator.add, measured, int(apart)) if apart else measured
                edit.replace_node(node, measured)
                break
