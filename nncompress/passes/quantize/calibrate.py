"""What the calibration data says about a float model, gathered once however often the model is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.fisher import fisher_information
from nncompress.analysis.int8_plan import Plan, plan_activations
from nncompress.analysis.observe.calibration import Histogram, RangeRule, histograms
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.moments import InputMoments
from nncompress.analysis.observe.walk import Env, Walk
from nncompress.ir import Model
from nncompress.ir.factors import Product
from nncompress.ir.formats.qdq import QParams
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context, need_data
from nncompress.passes.moments import input_moments
from nncompress.passes.quantize.bits import bits_within
from nncompress.passes.quantize.choose import by_weight
from nncompress.passes.quantize.equalization.smoothing import Hooks
from nncompress.targets import TARGETS

ROUGH = 0.05  # of its norm: a product that 8 bits of its factors move farther stays float; 1 to 2 % is usual
LOOKED_AT = 8  # samples that are multiplied both ways
FISHER_BATCH = 16  # samples per sample of the gradient


class Placement(TypedDict, total=False):
    """How a target wants activations rounded: see `plan_activations`."""

    float_results: bool
    fused_sums: bool
    joined_concats: bool


@dataclass
class CalibrationStatistics:
    """Figures by the names of nodes, layers and weights, which a copy of the model has too.

    Attributes:
        bits: of each weight.
        qparams: of each activation that may be rounded.
        factors: of those that products multiply, as they read them.
        placement: how the target wants activations rounded, see `placement`.
        moments: of what each layer multiplies, where rounding looks at it.
        adaptive: of layers that read one weight, its scales and what it was rounded to for the moments.
    """

    bits: dict[str, int]
    qparams: dict[str, QParams] = field(default_factory=dict)
    factors: dict[str, QParams] = field(default_factory=dict)
    placement: Placement = field(default_factory=lambda: Placement())
    moments: InputMoments | None = None
    adaptive: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def plan(self, model: Model, integer: list[Layer], products: list[Product]) -> Plan:
        """The activations to round so that `integer` and `products` run in int8."""
        return plan_activations(model, integer, products=products, **self.placement)

    def rows(self) -> list[Rows]:
        """What was seen of the layers that were rounded so."""
        return [] if self.moments is None else list(self.moments.rows.values())


def bits_by_fisher(
    model: Model, chosen: list[Layer], share: float, original: int, saved: int, context: Context
) -> dict[str, int]:
    """Bits of each weight, so that the model takes `share` of its `original` bytes.

    Args:
        saved: bytes of it that recurrent layers save, in 8 bits.

    Raises:
        UsageError: 4 bits everywhere are still too many.
    """
    data = need_data(context, "quantize --size", "it shows which weights matter")
    sharing = by_weight(chosen)
    information = {}
    if sharing:
        information = fisher_information(
            model,
            list(sharing),
            data.input_batches(FISHER_BATCH, context.limit),
            seed=context.seed,
            progress=context.progress,
            total=context.limit,
        )
    return bits_within(model, sharing, information, share, original, saved)


def moments_to_round_by(model: Model, chosen: list[Layer], context: Context) -> InputMoments | None:
    """Second moments of what those of `chosen` multiply that can be rounded by them; None without data."""
    if not chosen or context.data is None:
        return None
    readers = {layer.name: [layer] for layer in chosen if can_round_adaptively(layer)}
    return input_moments(model, readers, context.data, context)


def can_round_adaptively(layer: Layer) -> bool:
    """Rows of what it multiplies can be had: a matrix product, or a convolution that is not transposed."""
    if layer.kind in PRODUCTS:
        return layer.weight.value().dim() == 2
    return layer.kind.startswith("conv") and "transpose" not in layer.kind and geometry(layer) is not None


def rounded_for_one(model: Model, integer: list[Layer], context: Context) -> str | None:
    """What is said where the target needs fewer activations rounded than all runtimes do; else None."""
    here = plan_activations(model, integer, **placement(context)).points  # of layers, which all run somehow
    if len(here) == len(plan_activations(model, integer).points):
        return None
    runtime = TARGETS[context.target or ""].runtime_name
    return (
        f"rounded for {runtime}, which needs less of it: in other runtimes some layers will run in float;"
        " without --target it is rounded for all"
    )


def activation_histograms(
    model: Model,
    integer: list[Layer],
    products: list[Product],
    context: Context,
    hooks: Hooks | None = None,
) -> dict[fx.Node, Histogram]:
    """Of every activation that is rounded for the layers `integer` and the `products`; `hooks` see values in
    the same run."""
    plan = plan_activations(model, integer, products=products, **placement(context))
    if not plan.points and not plan.factors:
        return {}
    return histograms(
        model,
        list(dict.fromkeys([n for n in plan.points if n not in plan.same_qparams] + plan.factors)),
        need_data(context, "quantize", "it sets the range of every activation"),
        limit=context.limit,
        batch_size=context.batch_size,
        progress=context.progress,
        notes=context.notes,
        together=plan.one_grid,
        hooks=hooks,
    )


def activation_qparams(
    plan: Plan, seen: Mapping[fx.Node, Histogram], ranges: RangeRule, context: Context
) -> dict[str, QParams]:
    """Of every activation of the plan, by its node's name."""
    asked, ranges = ranges, for_target(ranges, context)
    if ranges != asked:
        runtime = TARGETS[context.target or ""].runtime_name
        context.notes.append(f"--symmetric-activations: {runtime} takes no others")
    found = {}
    own = [node for node in plan.points if node in seen]
    for done, node in enumerate(own):
        context.progress.step("choosing ranges", done, len(own))
        found[node.name] = ranges.qparams(seen[node])
    for node, source in plan.same_qparams.items():
        found[node.name] = found.get(source.name) or QParams.of(source)
    return found


def factor_qparams(plan: Plan, seen: Mapping[fx.Node, Histogram], ranges: RangeRule) -> dict[str, QParams]:
    """Of what products multiply, by its node's name."""
    middle = replace(ranges, symmetric=True)
    return {node.name: middle.qparams(seen[node]) for node in plan.factors}


def rough_products(
    model: Model, products: list[Product], factors: Mapping[str, QParams], context: Context
) -> dict[str, str]:
    """Those that 8 bits of what they multiply move by more than `ROUGH`, by name, and why they stay in float.

    A few channels of queries may be a hundred times larger than the rest, and those of keys as much smaller:
    one grid takes the others for 0, and no norm or layer before takes a scale back.
    """
    if not products:
        return {}
    data = need_data(context, "quantize", "it sets the range of every activation")
    moved: dict[str, float] = {}
    walk = Walk(model)

    def multiply(product: Product, env: Env) -> Tensor:
        exact = [env[factor] for factor in product.factors]
        rounded = [factors[n.name].rounded(x) for n, x in zip(product.factors, exact)]
        whole = product.of(*exact)
        size = whole.norm().clamp_min(torch.finfo(whole.dtype).tiny)
        moved[product.name] = float((product.of(*rounded) - whole).norm() / size)
        args, kwargs = fx.map_arg((product.node.args, product.node.kwargs), env.__getitem__)
        assert callable(product.node.target)
        return product.node.target(*args, **kwargs)

    for product in products:
        walk.instead[product.node] = partial(multiply, product)
    with torch.no_grad():
        walk.outputs(*next(iter(data.input_batches(LOOKED_AT, LOOKED_AT))))
    return {
        name: f"left in float: 8 bits of what it multiplies move it by {error:.0%}"
        for name, error in moved.items()
        if not error <= ROUGH
    }


def for_target(ranges: RangeRule, context: Context) -> RangeRule:
    """Symmetric ranges where the target takes no others."""
    where = TARGETS.get(context.target or "")
    return replace(ranges, symmetric=True) if where is not None and where.symmetric else ranges


def placement(context: Context) -> Placement:
    """What `plan_activations` has to know of the target."""
    where = TARGETS.get(context.target or "")
    if where is None:
        return {}
    return {
        "float_results": where.float_results,
        "fused_sums": where.fused_sums,
        "joined_concats": where.joined_concats,
    }
