"""`prune` and `factorize` on data, each weight read from disk when it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial

from torch import Tensor, fx

from nncompress.analysis.observe.enough import too_few
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import InputMoments
from nncompress.analysis.observe.seen_inputs import SeenInputs
from nncompress.analysis.weight_targets import find_targets
from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.formats.packed import smallest
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer, layers
from nncompress.passes import Context
from nncompress.passes.factorize.apply import factors_of
from nncompress.passes.factorize.calibrate import CalibrationStatistics
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.factorize.rule import RankRule
from nncompress.passes.prune.apply import ensure_pattern, patterned, weights_to_prune
from nncompress.passes.prune.options import Prune, parse_pattern
from nncompress.streaming.blocks import Blocks
from nncompress.streaming.held import HeldWeights
from nncompress.streaming.layer import OVERHEAD, as_float


def check_prune(each: Prune, model: Model) -> None:
    """Refuse what data says nothing about."""
    if each.pattern is None:
        raise UsageError(
            "prune --stream --data has weights make up for those that --pattern takes; other options "
            "look at the weights alone",
            got="no --pattern",
            remedy="add --pattern 2:4, or leave --data out",
        )


def prune(each: Prune, model: Model, blocks: Blocks, held: HeldWeights, context: Context) -> None:
    """Each matrix to the pattern, for what the matrices before it, already pruned, give it."""
    assert each.pattern is not None
    assert context.data is not None
    n, m = parse_pattern(each.pattern)
    batches = context.data.input_batches(context.batch_size, context.limit)
    seen = SeenInputs(model, batches, context.seed, weights=held)
    chosen = weights_to_prune(model, each.exclude)
    for layer in layers(model):
        excluded = any(fnmatch(layer.name, pattern) for pattern in each.exclude)
        blocks.told(
            layer.weight.name, "skipped by --exclude" if excluded else "skipped: the weight of an embedding"
        )
    blocks.begin([layer.weight.name for layer in chosen])
    for done, layer in enumerate(chosen):
        context.progress.step("pruning connections", done, len(chosen))
        name = layer.weight.name
        again = partial(_value, blocks, name)
        if blocks.finished(name):
            held.change(name, again(), again)
            continue
        before, dtype = held[name], blocks.tensors[name].dtype
        with held.put_in(model, name) as weight:
            change = patterned(model, layer, n, m, seen)
            if change.applied:
                ensure_pattern(each.pattern, [layer])
            kept = weight.detach().to(dtype)
        if change.applied:
            now = as_float(kept)
            blocks.keep(name, smallest(kept, OVERHEAD) or kept, before, now)
            held.change(name, now, again)
        blocks.passed(name, change.what)
    context.progress.step("pruning connections", len(chosen), len(chosen))
    context.warn(too_few(each.name, seen.rows))
    blocks.finish()


def _value(blocks: Blocks, name: str) -> Tensor:
    return as_float(blocks.value(name))


def check_factorize(each: Factorize, model: Model) -> None:
    """Refuse errors that are not of what a layer computes."""
    if each.minimize not in ("auto", "layer"):
        raise UsageError(
            "factorize --stream --data minimises the error of what each layer computes",
            got=f"--minimize {each.minimize}",
            remedy="leave --minimize out" + ("" if each.minimize == "model" else ", or --data"),
        )


def factorize(each: Factorize, model: Model, blocks: Blocks, held: HeldWeights, context: Context) -> None:
    """Each matrix to factors that err least on what it multiplies in the original network."""
    assert context.data is not None
    shapes = Shapes(model)
    targets, left = find_targets(model, shapes, each.exclude)
    left |= {target.name: "the weight of a convolution" for target in targets if not target.is_matrix}
    targets = [target for target in targets if target.is_matrix]
    for layer in layers(model):
        if layer.name in left:
            blocks.told(layer.weight.name, f"skipped: {left[layer.name]}")
    gather = partial(LayerwiseMoments, weights=held)
    statistics = CalibrationStatistics(
        model, targets, context.data, context, outputs=False, gather=gather, new_biases=False
    )
    shares = {} if each.ratio is None else {target.name: each.ratio for target in targets}
    rule = RankRule(ratios=shares, **each.asked)
    blocks.begin([target.weight.name for target in targets])
    for done, target in enumerate(targets):
        context.progress.step("factorizing", done, len(targets))
        name = target.weight.name
        if blocks.finished(name):
            continue
        with held.put_in(model, name):
            change, weights, bias = factors_of(
                model, target, shapes, rule, each.forms, each.round_to, statistics
            )
        if weights:
            dtype = blocks.tensors[name].dtype
            first, second = weights if target.outputs_first else reversed(weights)
            parts = {"first": first.to(dtype), "second": second.to(dtype)}
            blocks.keep(name, parts, held[name], parts["second"].float() @ parts["first"].float())
            own = target.layers[0].bias
            if bias is not None and own is not None:
                blocks.keep(own.name, bias.to(blocks.tensors[own.name].dtype), own.value(), bias)
                blocks.told(own.name, "takes up the mean of the error")
        blocks.passed(name, change.what.partition(",")[0])
    context.progress.step("factorizing", len(targets), len(targets))
    context.warn(too_few(each.name, statistics.rows(targets)))
    context.notes.append(
        "factorize: factors fit what layers multiply in the original network; in memory they are then "
        "fitted again to what the layers before them give once these are cut (--refit)"
    )
    blocks.finish()


class LayerwiseMoments(InputMoments):
    """Moments for which every weight is read once: all samples run to a layer before one goes on."""

    spills = False  # those of some layers are made, used and dropped before the next

    def __init__(
        self,
        model: Model,
        readers: Mapping[str, Sequence[Layer]],
        data: Dataset,
        context: Context,
        *,
        weights: Mapping[str, Tensor],
    ) -> None:
        batches = data.input_batches(context.batch_size, context.limit)
        self._weights = weights
        self._runner: LayerwiseRunner | None = None
        super().__init__(model, readers, batches, seed=context.seed)

    def _watch(self, watches: Mapping[fx.Node, Sequence[Callable[[Tensor], None]]]) -> int:
        if self._runner is None:
            self._runner = LayerwiseRunner(self._model, self._batches, weights=self._weights)
        order = {node: place for place, node in enumerate(self._model.graph.nodes)}
        for node in sorted(watches, key=order.__getitem__):
            for (value,) in self._runner.values(node):
                for hook in watches[node]:
                    hook(value)
        return sum(count_samples(self._model.inputs, inputs) for inputs in self._batches)
