"""What a backward pass needs: so few samples that their values fit, and weights that ask for gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.budget import BUDGET
from nncompress.errors import UnsupportedError, UsageError
from nncompress.ir.formats.precision import MAKE_FLOAT32
from nncompress.ir.graph.inputs import BATCH
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.shapes import Shapes


def gradient_batch_size(model: Model, batch_size: int) -> int:
    """Samples per backward pass: at most `batch_size`, and no more than whose values fit in twice the budget.

    Autograd keeps values of all layers until it comes back, where a forward pass drops them on its way. Where
    samples do not lie along the first dim of every input, one at a time: what is taken of each sample would
    have to be looked for in every layer's values.
    """
    if any(spec.batch_dim != 0 for spec in model.inputs):
        return 1
    shapes, kept = Shapes(model), 0
    for node in model.graph.nodes:
        value = node.meta.get("val")
        if node.op != "get_attr" and isinstance(value, Tensor):
            kept += torch.Size(shapes.of(node)).numel() * value.element_size()
    return max(1, min(batch_size, 2 * BUDGET // max(kept, 1)))


def in_chunks(model: Model, inputs: tuple[Tensor, ...], most: int) -> Iterable[tuple[Tensor, ...]]:
    """A batch in pieces of at most `most` samples whose values fit; a model of
    fixed or least batch takes it whole."""
    dims = [spec.batch_dim for spec in model.inputs]
    if BATCH not in model.dynamic or model.least_batch > 1:  # a piece might be too small
        return [inputs]
    size = gradient_batch_size(model, most)
    pieces = max(-(-x.shape[d] // size) for x, d in zip(inputs, dims) if d is not None)
    return zip(*([x] * pieces if d is None else x.split(size, d) for x, d in zip(inputs, dims)))


@contextmanager
def gradients_wanted(tensors: Iterable[Tensor], wanted: bool = True) -> Iterator[None]:
    """Inside, autograd tracks these tensors (or leaves them alone); afterwards as before."""
    before = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.requires_grad_(wanted)
        yield
    finally:
        for tensor, was in before:
            tensor.requires_grad_(was)


@contextmanager
def differentiable_outputs(model: Model) -> Iterator[list[str]]:
    """Inside, a discrete output (a class number, a mask) is replaced by the values that it is chosen from.

    Gives the names of the outputs that were replaced; each keeps its position, and the graph keeps its nodes.
    Where an output is chosen from several values, the others come last.

    Raises:
        UsageError: no output has values with a gradient behind it.
    """
    output = model.graph.output_node()
    results: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]
    behind = {node: _floats_behind(node) for node in results}
    behind = {node: ends for node, ends in behind.items() if ends != [node]}
    if len(behind) == len(set(results)) and not any(behind.values()):
        raise UsageError(
            "no output of the model has a gradient",
            got=f"{', '.join(model.outputs)}: whole numbers that no real ones lead to",
            remedy="choose by the weights alone: nncompress prune-nodes MODEL --criterion l2 --ratio 0.3",
        )
    if not behind:
        yield []
        return
    first = [behind[node][0] if behind.get(node) else node for node in results]
    more = [end for ends in behind.values() for end in ends[1:]]
    output.args = ((*first, *more),)
    model.graph_module.recompile()
    try:
        yield [name for name, node in zip(model.outputs, results) if behind.get(node)]
    finally:
        output.args = (results,)
        model.graph_module.recompile()


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _floats_behind(node: fx.Node) -> list[fx.Node]:
    """The real values, computed from real ones, that a discrete value is chosen from."""
    found, todo, seen = [], [node], set[fx.Node]()
    while todo:
        each = todo.pop()
        if each in seen or each.op != "call_function":
            continue
        seen.add(each)
        sources = each.all_input_nodes
        if _is_float(each) and any(map(_is_float, sources)):
            found.append(each)
        else:
            todo += sources
    return found


def output_scales(outputs: Iterable[object]) -> list[Tensor]:
    """By which to divide each output of a model, so that samples vary by 1 in the mean; float64.

    An output that does not vary, as a single number does not, is measured by its size: relative to a spread
    of nothing it alone would count.
    """
    scales = []
    for output in outputs:
        if isinstance(output, Tensor) and output.is_floating_point():
            finite = output.detach()[output.isfinite()].double()  # masked out by -inf: it has no spread
            size = finite.square().mean().sqrt() if finite.numel() else torch.zeros(())
            spread = finite.std(correction=0) if finite.numel() else size
            if spread <= torch.finfo(output.dtype).eps * size:
                spread = size if size > 0 else torch.ones(())
            samples = len(output) if output.dim() else 1
            scales.append(spread * (output.numel() / samples) ** 0.5)
        else:
            scales.append(torch.ones(()))
    return scales


def finite(gradient: Tensor, where: str) -> Tensor:
    """The same.

    Raises:
        UnsupportedError: it is not finite, so nothing that is computed from it would be.
    """
    if not gradient.sum().isfinite() and not gradient.isfinite().all():  # a sum takes a thirtieth of the time
        raise UnsupportedError(
            f"the gradient at {where} is not finite in {str(gradient.dtype).removeprefix('torch.')}",
            remedy=f"use data whose outputs are finite; of a model of 16 bits: {MAKE_FLOAT32}",
        )
    return gradient
