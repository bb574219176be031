"""Channels of an activation that are far larger than the others are made smaller before it is rounded.

An activation has one grid for all of its channels; one that is a hundred times larger than the rest leaves
them a step or two. W x is (W s)(x / s), and 1 / s goes into the norm or the layer that makes x (Xiao et al.
2023, "SmoothQuant", eq. 3 and 4):

    s_j = max |x_j| ^ strength / max |W_j| ^ (1 - strength)

The strength is, for each activation, the one with which the layers that read it err least when both sides are
rounded, on samples that s was not taken from; maybe none. Where nothing before the layer takes 1 / s, a
multiplication does, if that at least halves an error that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.batch_size import quick_batch
from nncompress.analysis.observe.budget import BUDGET
from nncompress.analysis.observe.calibration import Histogram, RangeRule
from nncompress.analysis.observe.statistics import observe
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.qdq import LEVELS, round_weight
from nncompress.ir.layers.weights import Layer, layers, reads
from nncompress.passes.base import Context
from nncompress.passes.invariance.followed import OTHER, ChannelReader, Followed, example_shapes
from nncompress.passes.invariance.sources import is_matrix, sources
from nncompress.passes.invariance.unchanged import outputs_of_few, prove_alike

SAMPLES, BATCH = 128, 16  # whose values are looked at; every other batch is held out
Hooks = Mapping[fx.Node, Sequence[Callable[[Tensor], None]]]
VALUES = 2**16  # of an activation that are kept, on either side, in rows of all channels; rather more than
ROWS = 128
STRENGTHS = (0.35, 0.5, 0.65, 0.8)
LIMIT = 1e4  # of a scale, either way
HELPS = 0.9  # of the squared error has to be left, at most, where scaling costs nothing
PAYS = 0.25  # the same where it costs a multiplication,
COUNTS = 1e-3  # and what the error must be before, of the outputs' square

aten = torch.ops.aten


@dataclass(frozen=True)
class Smoothed:
    """What was done.

    Attributes:
        count: activations with a scale per channel.
        multiplied: how many of these take a multiplication.
        plain, smoothed: ‖y' − y‖ / ‖y‖ of the layers that read them, without and with them; quadratic mean.
    """

    count: int
    multiplied: int
    plain: float
    smoothed: float

    def __str__(self) -> str:
        taken_back = "which the norm or layer before takes back"
        taken_back += f" ({self.multiplied} of them: a multiplication)" if self.multiplied else ""
        return (
            f"{self.count} activations have a scale per channel, {taken_back}: their layers err by "
            f"{self.smoothed:.2%}, without by {self.plain:.2%}, on held-out samples; --no-smooth leaves them"
        )


@dataclass
class _Seen:
    """Rows of one activation: those that scales and ranges are taken from, and those held out.

    Attributes:
        batch: samples that come at a time, of which at most `BATCH` go to one side.
        left: samples to look at.
    """

    most: int
    batch: int
    left: int = SAMPLES
    largest: Tensor = field(default_factory=lambda: torch.zeros(1))
    rows: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    parts: int = 0

    def add(self, value: Tensor) -> None:
        parts = math.ceil(self.batch / BATCH)
        for part in value.detach().reshape(-1, value.shape[-1]).chunk(parts):
            if self.left <= 0:
                return
            self._add(part.float())
            self.left -= math.ceil(self.batch / parts)

    def _add(self, part: Tensor) -> None:
        side = self.parts % 2
        self.parts += 1
        if side == 0:
            self.largest = torch.maximum(self.largest, part.abs().amax(0))
        kept = math.ceil(self.most * 2 * BATCH / SAMPLES)
        at = torch.linspace(0, len(part) - 1, min(kept, len(part))).round().long()
        self.rows[side].append(part[at])

    def halves(self) -> tuple[Tensor, Tensor]:
        fitted, held = (torch.cat(each) if each else torch.zeros(0, 1) for each in self.rows)
        if not len(held):
            fitted, held = fitted[::2], fitted[1::2] if len(fitted) > 1 else fitted
        return fitted, held


@dataclass(frozen=True)
class _Site:
    """Channels that may be scaled, and all that reads them.

    Attributes:
        divide: makes them smaller by [channels].
        free: bool [channels].
        costs: takes an op of its own.
    """

    divide: Callable[[Tensor], None]
    free: Tensor
    readers: Sequence[ChannelReader]
    costs: bool = False


def smooth(
    model: Model,
    integer: Collection[Layer],
    ranges: RangeRule,
    bits: int,
    context: Context,
    run: Callable[[Hooks], None] | None = None,
) -> Smoothed | None:
    """Scale what the matrix products among `integer` read, in place, where their error falls.

    Args:
        ranges: how activations will be rounded.
        bits: of the weights.
        run: shows values of nodes of the data, in batches of `quick_batch` at most; None: of as many samples
            as are looked at, for this alone. Not called where nothing can be scaled.

    Returns: what it did, None where nothing.

    Raises:
        VerificationError: the model does not compute the same in floats.
    """
    if context.data is None:
        return None
    wanted = {layer.node for layer in integer if _scalable(model, layer)}
    if not wanted:
        return None
    sites = _sites(model, wanted)
    seen = _look(model, [each.layer.data for site in sites for each in site.readers], context, run)
    if seen is None:
        return None
    before: tuple[Tensor, ...] | None = None
    size = len(model.graph.nodes)
    found = []
    for done, site in enumerate(sites):
        context.progress.step("smoothing activations", done, len(sites))
        scales, plain, smoothed = _best(site, wanted, seen, ranges, bits)
        if scales is None:
            continue
        if before is None:
            before = outputs_of_few(model, context)
        site.divide(scales)
        for reader in site.readers:
            weight = reader.layer.weight.value().double()
            columns = _along(scales, reader.channels)
            dim = reader.layer.roles.inputs % 2
            reader.layer.weight.assign(weight * (columns if dim else columns[:, None]))
        found.append((site.costs, plain, smoothed))
    if before is None:
        return None
    if len(model.graph.nodes) > size:
        model.refresh()
    after = outputs_of_few(model, context)
    prove_alike("quantize", model, before, after, "scaling channels", "--no-smooth leaves them")
    plain, smoothed = (math.sqrt(sum(row[i] for row in found) / len(found)) for i in (1, 2))
    return Smoothed(len(found), sum(costs for costs, _, _ in found), plain, smoothed)


def _scalable(model: Model, layer: Layer) -> bool:
    return is_matrix(layer) and not layer.weight.quantized and reads(model, layer.weight.name) == 1


def _sites(model: Model, wanted: Collection[fx.Node]) -> list[_Site]:
    products = {layer.node: layer for layer in layers(model) if _scalable(model, layer)}
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    shapes = example_shapes(model)
    found: list[_Site] = []
    taken: set[fx.Node] = set()
    for source in sources(model):
        followed = Followed(source.node, products, order, shapes)
        read = {each.layer.node for each in followed.readers}
        used = [c[c != OTHER] for c in (each.channels for each in followed.readers)]
        if not read & set(wanted) or read & taken or not any(followed.free[c].any() for c in used):
            continue
        taken |= read
        found.append(_Site(source.divide, followed.free, followed.readers))
    left: dict[fx.Node, list[Layer]] = {}
    for node in (node for node in wanted if node not in taken):
        left.setdefault(products[node].data, []).append(products[node])
    for data in sorted(left, key=order.__getitem__):
        width = shapes.of(data)[-1]
        every = torch.arange(width)
        readers = [ChannelReader(layer, every) for layer in left[data]]
        found.append(_Site(_multiplication(model, readers), torch.ones(width).bool(), readers, costs=True))
    return found


def _multiplication(model: Model, readers: Sequence[ChannelReader]) -> Callable[[Tensor], None]:
    def divide(scales: Tensor) -> None:
        first = min((each.layer for each in readers), key=lambda each: _place(model, each.node))
        name = edit.add_tensor(model, f"{first.name}.input_scales", (1 / scales).float())
        with edit.inserting_before(first.node) as call:
            data = first.data
            scaled = call(aten.mul.Tensor, data, edit.read_tensor(model, name, first.node))
        for each in readers:
            edit.set_argument(each.layer.node, each.layer.roles.data, scaled)

    return divide


def _place(model: Model, node: fx.Node) -> int:
    return list(model.graph.nodes).index(node)


def _look(
    model: Model, nodes: Sequence[fx.Node], context: Context, run: Callable[[Hooks], None] | None
) -> dict[fx.Node, _Seen] | None:
    """Rows of these activations; None where the data has none, or values that are not finite."""
    width = sum(node.meta["val"].shape[-1] for node in dict.fromkeys(nodes))
    budget, batch = max(8, BUDGET // max(8 * width, 1)), min(context.batch_size, quick_batch(model))
    rows = {node: min(budget, max(ROWS, VALUES // node.meta["val"].shape[-1])) for node in nodes}
    seen = {node: _Seen(most, batch) for node, most in rows.items()}
    (run or _run_alone(model, context))({node: [each.add] for node, each in seen.items()})
    if not all(each.parts for each in seen.values()):
        return None
    if not all(bool(each.isfinite().all()) for one in seen.values() for each in (one.largest, *one.halves())):
        return None  # said, with its place, where ranges are chosen
    return seen


def _run_alone(model: Model, context: Context) -> Callable[[Hooks], None]:
    def run(hooks: Hooks) -> None:
        assert context.data is not None
        limit = SAMPLES if context.limit is None else min(SAMPLES, context.limit)
        batch_size = min(context.batch_size, quick_batch(model))
        batches = context.data.batches(batch_size, limit=limit)
        samples = (batch.inputs for batch in batches)
        observe(
            model, samples, hooks, progress=context.progress, total=limit, description="comparing channels"
        )

    return run


def _along(scales: Tensor, channels: Tensor) -> Tensor:
    """The scales of a reader's inputs, [in]."""
    return torch.where(channels == OTHER, 1.0, scales[channels.clamp_min(0)])


def _best(
    site: _Site,
    wanted: Collection[fx.Node],
    seen: dict[fx.Node, _Seen],
    ranges: RangeRule,
    bits: int,
) -> tuple[Tensor | None, float, float]:
    """The scales with the least error, None for none; the squared error without them, and with them."""
    rounded = [each for each in site.readers if each.layer.node in wanted]
    cases = [_Case(each, seen[each.layer.data]) for each in rounded]
    width = len(site.free)

    def error(scales: Tensor) -> float:
        return sum(case.error(_along(scales, case.channels), ranges, bits) for case in cases) / len(cases)

    plain = error(torch.ones(width, dtype=torch.float64))
    if site.costs and plain < COUNTS:
        return None, plain, plain
    inputs, columns = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    fixed = 0.0
    for case in cases:
        scaled = case.channels != OTHER
        scaled[scaled.clone()] = site.free[case.channels[scaled]]
        at = case.channels[scaled]
        inputs.scatter_reduce_(0, at, case.largest[scaled].double(), "amax")
        columns.scatter_reduce_(0, at, case.weight.abs().amax(0)[scaled].double(), "amax")
        fixed = max(fixed, float(case.largest[~scaled].max()) if bool((~scaled).any()) else 0.0)
    used = (inputs > 0) & (columns > 0)
    if not bool(used.any()):
        return None, plain, plain
    best, least = None, plain * (PAYS if site.costs else HELPS)
    for strength in STRENGTHS:
        scales = torch.ones_like(inputs)
        scales[used] = inputs[used].pow(strength) / columns[used].pow(1 - strength)
        middle = (inputs[used] / scales[used]).max() / fixed if fixed else scales[used].log().mean().exp()
        scales[used] = (scales[used] * middle if fixed else scales[used] / middle).clamp(1 / LIMIT, LIMIT)
        reached = error(scales)
        if reached < least:
            best, least = scales, reached
    return best, plain, least


class _Case:
    """One product, and rows of what it reads."""

    def __init__(self, reader: ChannelReader, seen: _Seen) -> None:
        weight = reader.layer.weight.value()
        self.weight = weight if reader.layer.roles.inputs % 2 else weight.T
        self.channels, self.largest = reader.channels, seen.largest
        self.fitted, self.held = seen.halves()
        self._expected = self.held @ self.weight.T

    def error(self, scales: Tensor, ranges: RangeRule, bits: int) -> float:
        """‖y' − y‖² / ‖y‖² of the held-out rows."""
        columns = scales.float()
        stored, steps = round_weight(self.weight * columns, 0, bits)
        fitted = Histogram()
        fitted.add(self.fitted / columns)
        known = ranges.qparams(fitted)
        rows = torch.fake_quantize_per_tensor_affine(
            self.held / columns, known.scale, known.zero_point, 0, LEVELS
        )
        moved = (rows @ (stored * steps[:, None]).T - self._expected).double().square().sum()
        return float(moved) / (float(self._expected.double().square().sum()) or 1.0)
