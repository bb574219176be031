"""`share`: the residual blocks of a stage use one 3×3 weight (ShaResNet, Boulch 2018).

A stage lies between two spatial reductions; blocks, stages and layers of equal shape are found in the graph.
The weight is one parameter then: its gradients add up when the network is trained on, and one copy is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, option

if TYPE_CHECKING:
    from nncompress.ir import Model
    from nncompress.ir.layers.weights import Layer
    from nncompress.passes.share.fit import Problem


@dataclass(frozen=True)
class Share(Pass):
    """Tie the 3×3 convolutions of a stage's residual blocks to one weight, then train on.

    The weight starts as the mean of the old ones, or with data as the one that changes the layers' outputs
    least. Layers that learnt different things lose it (--saving 1 shares as the paper): train afterwards.
    Where neither --relative nor --saving is given, only weights that are as good as equal are shared.
    """

    name = "share"
    summary = "residual blocks of a stage share one 3×3 weight"
    example = "nncompress share model.pt2 --saving 1 --data train.npz"
    amounts = ("relative", "saving", "adaptive")
    more = (
        "--saving 1 shares all (the paper's rule), --saving 0.5 where it costs least; then nncompress train"
    )
    afterwards = "Shared weights are a start for training: nncompress train."

    which: Literal["auto", "second-3x3", "all-3x3"] = option(
        "auto", help="which of a block's 3×3 [auto: the second where it has two, else its only one]"
    )
    first_blocks: Literal["auto", "share", "keep"] = option(
        "auto",
        help="blocks that change the shape [auto: they take part, but not in wide pre-activation networks]",
    )
    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"share while no layer loses more than this share of its output's power {BY_DEFAULT}",
    )
    saving: float | None = option(
        None,
        above=0,
        most=1,
        help="share, where it costs least, until this part of what can be saved is; 1 shares everything",
    )
    adaptive: bool = option(False, help="the same as --saving 0.5, where --saving is not given")
    rescale: bool = option(True, help="with data, let batch norms take up a scale per block and channel")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'layer1*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(("relative", "saving"), "how much is shared")
        if self.adaptive and self.relative is not None:
            raise UsageError("share: give one of --adaptive and --relative", got="both")
        if self.adaptive and self.saving is None:
            object.__setattr__(self, "saving", 0.5)

    def requires(self, model: Model, context: Context) -> None:
        for layer in self._groups(model)[1]:
            if not layer.weight.value().isfinite().all():
                raise ModelFileError(f"share: the weight of {layer.name} has NaN or infinite values")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.ir.edit.nodes import tie_tensors
        from nncompress.ir.graph.shapes import Shapes
        from nncompress.passes.share.candidates import find_groups

        groups, left = find_groups(model, Shapes(model), self.which, self.first_blocks, self.exclude)
        changes = [Change(name, f"left: {reason}", applied=False) for name, reason in left.items()]
        groups = [group for group in groups if not _tied(model, group)]
        if not groups:
            if not left:
                changes.append(Change("model", "left: no two residual blocks could share", applied=False))
            return changes
        original = model.copy() if context.data is not None else None
        problems = self._problems(model, groups, context)
        for group, problem in self._clusters(model, groups, problems, context):
            if _tied(model, group):
                why = "it would cost more than others"
                if self.saving is None:
                    why = f"no other layer's weight is within {self.share_lost:g} of its own"
                changes.append(Change(group[0].name, f"left: {why}", applied=False))
                continue
            changes += self._tie(model, group, problem)
            tie_tensors(model, [layer.weight.name for layer in group])
        model.refresh()
        if original is not None and any(change.applied for change in changes):
            changes += _renew_statistics(original, model, context)
        return changes

    def ensures(self, model: Model, changes: list[Change]) -> None:
        from nncompress.ir.layers.weights import layers

        tensors = {layer.name: id(model.tensor(layer.weight.name)) for layer in layers(model)}
        found = set(tensors.values())
        saved = sum(change.numbers.get("tied", 0) for change in changes)
        if saved and len(tensors) - len(found) < saved:
            raise VerificationError(
                "share: not all layers share their weight", got=f"{len(tensors) - len(found)} of {saved}"
            )

    def _groups(self, model: Model) -> tuple[list[list[Layer]], list[Layer]]:
        from nncompress.ir.graph.shapes import Shapes
        from nncompress.passes.share.candidates import find_groups

        groups, _ = find_groups(model, Shapes(model), self.which, self.first_blocks, self.exclude)
        return groups, [layer for group in groups for layer in group]

    def _problems(self, model: Model, groups: list[list[Layer]], context: Context) -> list[list[Problem]]:
        """What the fit knows of every layer: its weight, its inputs' moments, which sides may be scaled."""
        import torch

        from nncompress.analysis.curvature.ridge import with_ridge
        from nncompress.analysis.observe.statistics import input_moments
        from nncompress.passes.share.fit import Problem
        from nncompress.passes.share.scales import norm_after, norm_before

        moments = {}
        if context.data is not None:
            moments = input_moments(
                model,
                [layer for group in groups for layer in group],
                context.data.input_batches(context.batch_size, context.limit),
                seed=context.seed,
                progress=context.progress,
                total=context.limit,
            )

        def scaled(layer: Layer) -> Literal["outputs", "inputs", ""]:
            if not self.rescale or context.data is None:
                return ""
            if norm_after(model, layer) is not None:
                return "outputs"
            return "inputs" if norm_before(model, layer) is not None else ""

        def problem(layer: Layer) -> Problem:
            weight = layer.weight.value().to(torch.float64)
            seen = moments.get(layer.name)
            return Problem(
                weight=weight.flatten(1).unflatten(0, (layer.groups, -1)),
                kernel=weight[0, 0].numel(),
                moment=None if seen is None else with_ridge(seen.second),
                scaled=scaled(layer),
            )

        return [[problem(layer) for layer in group] for group in groups]

    def _clusters(
        self, model: Model, groups: list[list[Layer]], problems: list[list[Problem]], context: Context
    ) -> list[tuple[list[Layer], list[Problem]]]:
        """The layers that get one weight, and those that stay alone."""
        from nncompress.passes.share.fit import TURNS, fit
        from nncompress.passes.share.merge import Cluster, merge_cheapest

        if self.saving == 1:
            return list(zip(groups, problems))
        tried = 0
        turns = 2 if self.share_lost is None else TURNS  # enough to compare, not to keep to a bound

        def error(group: int, cluster: Cluster) -> float:
            nonlocal tried
            tried += 1
            context.progress.step("pairing layers", tried, None)
            errors = fit([problems[group][i] for i in cluster], turns=turns).errors
            return sum(errors) if self.share_lost is None or max(errors) <= self.share_lost else float("inf")

        start = [_tied_clusters(model, group) for group in groups]
        sizes = [group[0].weight.value().numel() for group in groups]
        return [
            ([groups[number][i] for i in cluster], [problems[number][i] for i in cluster])
            for number, clusters in enumerate(merge_cheapest(start, sizes, error, self.saving or 1))
            for cluster in sorted(clusters)
        ]

    def _tie(self, model: Model, group: list[Layer], problems: list[Problem]) -> list[Change]:
        """Store the fitted weight in the first layer; every layer's scale goes to its batch norm."""
        from nncompress.passes.share.fit import fit
        from nncompress.passes.share.scales import scale_inputs, scale_outputs

        found = fit(problems)
        first = group[0]
        shared = found.weight.reshape(first.weight.value().shape)
        changes = []
        own = {id(model.tensor(first.weight.name))}
        for k, (layer, problem, error) in enumerate(zip(group, problems, found.errors)):
            if problem.scaled == "outputs":
                scale_outputs(model, layer, found.outputs[k].flatten())
            elif problem.scaled == "inputs":
                scale_inputs(model, layer, found.inputs[k].flatten()[:: problem.kernel])
            tensor = id(model.tensor(layer.weight.name))
            numbers = {"relative_error": error, "tied": int(tensor not in own)}
            own.add(tensor)
            others = "the others" if layer is first else first.name
            lost = "weight's" if problem.moment is None else "output's"
            what = f"shares its weight with {others}; {error:.0%} of its {lost} power lost"
            changes.append(Change(layer.name, what, numbers))
        first.weight.assign(shared)
        return changes


def _tied(model: Model, group: list[Layer]) -> bool:
    return len(_tied_clusters(model, group)) == 1


def _tied_clusters(model: Model, group: list[Layer]) -> list[tuple[int, ...]]:
    """The positions of the layers, those together that read one tensor."""
    found: dict[int, list[int]] = {}
    for position, layer in enumerate(group):
        found.setdefault(id(model.tensor(layer.weight.name)), []).append(position)
    return [tuple(positions) for positions in found.values()]


def _renew_statistics(original: Model, model: Model, context: Context) -> list[Change]:
    """Batch-norm statistics for the shared weights, as far as they help on held-out records."""
    from nncompress.passes.factorize.batch_norm import reestimate
    from nncompress.passes.factorize.repair import output_error, split

    assert context.data is not None
    fitted, held = split(model, context.data, context)
    share, before, after = reestimate(model, fitted, output_error(original, model, held))
    numbers = {"error_before": before, "error_after": after, "share": share}
    if share:
        return [Change("batch norms", f"{share:.0%} new statistics", numbers)]
    what = "left: new statistics did not help on held-out data"
    return [Change("batch norms", what, numbers, applied=False)]
