"""Discrete choices inside a quantized model: top-k, arg-max, comparisons, rounding to whole numbers.

Rounded values tie, and runtimes break ties in their own way; integer kernels round a value on a boundary to
the other side than floats do. Both are small errors, until a choice hangs on them: then another sample, box
or token is taken, and what follows is no longer comparable. What choices are made from is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.errors import VerificationError
from nncompress.exporting.check import compare as verify
from nncompress.ir import Model
from nncompress.ir.formats.samples import verification_inputs
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

ORDERS = {"topk", "sort", "max", "min", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin"}
DISCRETE = {
    "argmax", "argmin", "argsort", "msort", "gt", "ge", "lt", "le", "eq", "ne", "isclose", "sign", "sgn",
    "floor", "ceil", "round", "trunc", "heaviside", "floor_divide", "remainder", "fmod", "nonzero",
    "nonzero_numpy", "bucketize", "searchsorted", "histc", "unique", "multinomial", "logical_not", "nms",
}  # fmt: skip
Run = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]


@dataclass(frozen=True)
class Choices:
    """What a quantized model chooses.

    Attributes:
        ops: that choose, in order ("topk").
        probe: the model with further outputs: what the first choices are made from, no choice before them.
        comparable: names of the outputs of `probe` that hang on no choice.
    """

    ops: tuple[str, ...]
    probe: Model
    comparable: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A file made of `Choices.probe`: its outputs, what runs it, the precision to ask of it; the others as in
    `nncompress.analysis.distance.rounding.Rounding`."""

    run: Run
    runtime: str
    precision: str
    proof: Callable[[], str] | None = None
    proven: Run | None = None


def find_choices(model: Model) -> Choices | None:
    """The choices that are made from rounded values; None where there are none."""
    probe = model.copy()
    rounded: set[fx.Node] = set()
    chosen: set[fx.Node] = set()
    made_from: dict[fx.Node, None] = {}
    ops: list[str] = []
    for node in probe.graph.nodes:
        given = set(node.all_input_nodes)
        if node.op != "call_function":
            continue
        if op_name(node).startswith("quantize_per_") or given & rounded:
            rounded.add(node)
        if given & chosen:
            chosen.add(node)
        elif given & rounded and _chooses(node):
            source: Any = node.args[0] if node.target is getitem else node
            ops.append(op_name(source))
            chosen.add(node)
            made_from.update(dict.fromkeys(n for n in source.all_input_nodes if n in rounded))
    if not ops:
        return None
    output = probe.graph.output_node()
    results: Any = output.args[0]
    free = [name for name, node in zip(probe.outputs, results) if node not in chosen]
    names = [f"choice_{position}" for position in range(len(made_from))]
    output.args = ((*results, *made_from),)
    probe.outputs = (*probe.outputs, *names)
    probe.graph_module.recompile()
    return Choices(tuple(dict.fromkeys(ops)), probe, (*free, *names))


def _chooses(node: fx.Node) -> bool:
    if node.target is getitem:  # values in order are as continuous as they were, their places are not
        source: Any = node.args[0]
        return op_name(source) in ORDERS and bool(node.args[1] == 1)
    value, given = node.meta.get("val"), argument(node, 0)
    before = given.meta.get("val") if isinstance(given, fx.Node) else None
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        whole = not value.dtype.is_floating_point and before.dtype.is_floating_point
        if whole and not op_name(node).startswith("quantize_per_"):
            return True
    return op_name(node) in DISCRETE


def compare_choices(
    model: Model,
    choices: Choices,
    run: Run,
    runtime: str,
    batches: tuple[int, ...],
    probes: Iterable[Probe],
) -> verify.Comparison:
    """Compare what is comparable of a model that chooses, and count how often the rest comes out the same.

    Args:
        run: the file's outputs.
        probes: runs of a file made of `choices.probe` in the same way.

    Raises:
        VerificationError: what the choices are made from, or an output that hangs on none, differs from the
            graph's.
    """
    for probe in probes:
        verify.compare(choices.probe, batches=batches, among=choices.comparable, **vars(probe))
    found = verify.compare(
        model, run, runtime, batches, among=[name for name in model.outputs if name in choices.comparable]
    )
    agreeing = total = 0
    for batch in found.batches:
        inputs = verification_inputs(model, batch=batch, seed=batch)
        with torch.no_grad():
            ours = model.outputs_of(*(each.clone() for each in inputs))
        pairs = list(zip(ours, run(inputs), strict=True))
        agreeing += sum(all(_near(*pair, sample, batch) for pair in pairs) for sample in range(batch))
        total += batch
    told = (
        f"{', '.join(choices.ops)} inside, from values that agree: {agreeing} of {total} samples come out as "
        "in the graph, the others by a choice between near equals"
    )
    return replace(found, choices=told)


def _near(expected: Tensor, got: Tensor, sample: int, batch: int) -> bool:
    """Is the output the same for this sample of the batch, up to rounding?"""
    if expected.shape == got.shape and expected.dim() and len(expected) == batch:
        expected, got = expected[sample], got[sample]
    try:
        verify.distance("", expected, got, "int8")
    except VerificationError:
        return False
    return True
