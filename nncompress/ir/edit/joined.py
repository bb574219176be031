"""The two graphs of a decoder (`pair`) as one, so that passes treat them alike.

    joined = join(Pair(prompt, step))

It takes what the prompt takes, a text: all but the last token go to the prompt, the last one is the step. The
prompt's caches are read where the step takes them, and weights of equal values are stored once: what is
removed, rounded or fitted is so in both. Caches are values between layers like others, so heads may go. Marks
(`nncompress.ir.graph.normal_form.boundary`) say where to take the graphs apart again (`apart`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import UnsupportedError
from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.pair import STEP, Pair, no_pair
from nncompress.ir.graph.inputs import InputSpec
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.normal_form.boundary import BOUNDARY

aten = torch.ops.aten
LEAST = 3  # tokens: torch.export takes sizes of 1 for constants


def join(pair: Pair) -> Model:
    """One model of both graphs, which takes what the prompt takes.

    Raises:
        UsageError: the step has a matrix that the prompt does not have.
        UnsupportedError: together they do not trace.
        VerificationError: together they compute something else.
    """
    joined = pair.prompt.copy()
    given, grown = {w.given for w in pair.wires}, {w.grown for w in pair.wires}
    inputs = _cut_texts(joined, pair)
    output = joined.graph.output_node()
    first: Any = output.args[0]
    then = _copied(joined, pair, inputs, first)
    _mark_grown(pair, then)
    ends = [
        (name, node) for at, (name, node) in enumerate(zip(pair.prompt.outputs, first)) if at not in given
    ]
    ends += [
        (f"{STEP}{name}", node)
        for at, (name, node) in enumerate(zip(pair.step.outputs, then))
        if at not in grown
    ]
    output.args = (tuple(node for _, node in ends),)
    joined.outputs = tuple(name for name, _ in ends)
    joined.inputs = tuple(_longer(spec, pair) for spec in pair.prompt.inputs)
    if isinstance(pair.length, str):
        low, high = joined.dynamic[pair.length]
        joined.dynamic[pair.length] = (max(low + 1, LEAST), high)
    joined.refresh()
    read = {str(node.args[1]) for node in joined.graph.nodes if node.target is BOUNDARY}
    for name in (pair.step.inputs[w.taken].name for w in pair.wires):
        if f"step:{name}" not in read:
            raise no_pair(f"the second reads nothing of its input {name}", ", ".join(sorted(read)))
    pair.check(joined, "joined")
    return joined


def _cut_texts(joined: Model, pair: Pair) -> dict[str, fx.Node]:
    """Give the prompt all but the last token. Returns: the inputs as they are, by name."""
    places = [node for node in joined.graph.nodes if node.op == "placeholder"]
    after = places[-1].next
    for spec, node in zip(joined.inputs, places, strict=True):
        d = pair.along(spec.name)
        if d is None:
            continue
        with edit.inserting_before(after) as call:
            cut = call(aten.slice.Tensor, node, d, 0, -1)
            marked = call(BOUNDARY, cut, f"prompt:{spec.name}")
        _read_instead(node, marked, cut)
    return {spec.name: node for spec, node in zip(joined.inputs, places)}


def _copied(
    joined: Model, pair: Pair, inputs: dict[str, fx.Node], first: tuple[fx.Node, ...]
) -> list[fx.Node]:
    """Copy the step's graph behind the prompt's, whose outputs are `first`. Returns: its outputs."""
    step, output = pair.step, joined.graph.output_node()
    same = _same(joined, step)
    names = {
        name: same.get(name)
        or edit.add_tensor(joined, name, value, trainable=isinstance(value, torch.nn.Parameter))
        for name, value in _stored(step).items()
    }
    caches = {step.inputs[w.taken].name: first[w.given] for w in pair.wires}
    copied: dict[fx.Node, fx.Node] = {}
    places = [node for node in step.graph.nodes if node.op == "placeholder"]
    with edit.inserting_before(output) as call:
        for spec, node in zip(step.inputs, places, strict=True):
            value = caches.get(spec.name)
            if value is None:
                value, d = inputs[spec.name], pair.along(spec.name)
                if d is not None and spec.shape[d] == 1:
                    value = call(aten.slice.Tensor, value, d, -1)
            copied[node] = call(BOUNDARY, value, f"step:{spec.name}")
    with joined.graph.inserting_before(output):
        for node in step.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            copied[node] = joined.graph.node_copy(node, copied.__getitem__)
            if node.op == "get_attr":
                copied[node].target = names[str(node.target)]
    results: Any = step.graph.output_node().args[0]
    return [copied[node] for node in results]


def _mark_grown(pair: Pair, then: list[fx.Node]) -> None:
    """Mark the caches of the step, which are outputs of the joined model no more.

    Raises:
        UnsupportedError: one is made for the next step alone.
    """
    for wire in pair.wires:
        if wire.grown is None:
            continue
        value, name = then[wire.grown], pair.step.outputs[wire.grown]
        if not value.users:
            raise UnsupportedError(
                f"--with-past: the second's output {name} is made for the next step alone",
                expected="the keys and values that its own attention reads",
            )
        with edit.inserting_before(value.next) as call:
            marked = call(BOUNDARY, value, f"grown:{name}")
        _read_instead(value, marked, marked)


def _read_instead(value: fx.Node, marked: fx.Node, reader: fx.Node) -> None:
    """All but `reader` read the marked value."""
    value.replace_all_uses_with(marked, delete_user_cb=lambda user: user is not reader)


def _same(joined: Model, step: Model) -> dict[str, str]:
    """The step's tensors -> the prompt's of the same values: that of the same name, else in order.

    Raises:
        UsageError: the prompt has no such matrix.
    """
    ours = _stored(joined)
    theirs = _stored(step)
    found: dict[str, str] = {}
    named = [name for name, value in theirs.items() if name in ours and _equal(value, ours[name])]
    for name in [*named, *(name for name in theirs if name not in named)]:
        value = theirs[name]
        alike = [name] if name in named else [n for n, other in ours.items() if _equal(value, other)]
        free = [n for n in alike if n not in found.values()] or alike
        if free:
            found[name] = free[0]
        elif value.dim() > 1 and isinstance(value, torch.nn.Parameter):
            raise no_pair(
                f"the second's {name} is no weight of the first", f"{list(value.shape)}: another model's?"
            )
    return found


def _stored(model: Model) -> dict[str, Tensor]:
    module = model.graph_module
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _longer(spec: InputSpec, pair: Pair) -> InputSpec:
    """The prompt's input of one token more, where its size is a number."""
    d = pair.along(spec.name)
    if d is None or isinstance(pair.length, str):
        return spec
    return replace(spec, shape=(*spec.shape[:d], pair.length + 1, *spec.shape[d + 1 :]))
