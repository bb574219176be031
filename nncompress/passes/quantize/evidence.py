"""What the calibration data says about a float model, gathered once however often the model is rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nncompress.analysis.curvature.fisher import fisher_information
from nncompress.analysis.int8_plan import plan_activations
from nncompress.analysis.observe.calibration import choose_range, histograms
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.moments import InputMoments
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.formats.qdq import Affine
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context, need_data
from nncompress.passes.quantize.bits import bits_within
from nncompress.passes.quantize.choose import by_weight, integer_layers
from nncompress.passes.quantize.options import Quantize
from nncompress.targets import TARGETS

if TYPE_CHECKING:
    from torch import Tensor

FISHER_BATCH = 16  # records per sample of the gradient


@dataclass
class Evidence:
    """Figures by the names of nodes, layers and weights, which a copy of the model has too.

    Attributes:
        grids: of each activation that may be rounded.
        moments: of what each layer multiplies, where rounding looks at it.
        adaptive: of layers that read one weight, its scales and what it was rounded to for the moments.
        bits: of each weight.
    """

    grids: dict[str, Affine] = field(default_factory=dict)
    moments: InputMoments | None = None
    bits: dict[str, int] = field(default_factory=dict)
    adaptive: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rows(self) -> list[Rows]:
        """What was seen of the layers that were rounded so."""
        return [] if self.moments is None else list(self.moments.rows.values())


def gather(model: Model, chosen: list[Layer], options: Quantize, original: int, context: Context) -> Evidence:
    """Run the data through the model as often as the options need: not at all, or up to three times.

    Args:
        original: bytes of the model that `--size` is a share of.
    """
    evidence = Evidence(bits={layer.weight.name: options.weight_bits for layer in chosen})
    if options.mode == "static":
        _choose_grids(model, integer_layers(chosen, "static"), options, context, evidence)
    if options.size is not None:
        data = need_data(context, "quantize --size", "it shows which weights matter")
        sharing = by_weight(chosen)
        information = fisher_information(
            model,
            list(sharing),
            _inputs(data, FISHER_BATCH, context),
            seed=context.seed,
            progress=context.progress,
            total=context.limit,
        )
        evidence.bits = bits_within(model, sharing, information, options.size, original)
    below = options.rounding == "auto"  # nearest is as good at 8 bits
    adaptively = [
        layer
        for layer in chosen
        if options.rounding == "adaptive" or (below and evidence.bits[layer.weight.name] < 8)
    ]
    if adaptively and context.data is not None:
        evidence.moments = InputMoments(
            model,
            {layer.name: [layer] for layer in adaptively if can_round_adaptively(layer)},
            context.data.input_batches(context.batch_size, context.limit),
            seed=context.seed,
            progress=context.progress,
            total=context.limit,
        )
    return evidence


def can_round_adaptively(layer: Layer) -> bool:
    """Rows of what it multiplies can be had: a matrix product, or a convolution that is not transposed."""
    if layer.kind in PRODUCTS:
        return layer.weight.value().dim() == 2
    return layer.kind.startswith("conv") and "transpose" not in layer.kind and geometry(layer) is not None


def _choose_grids(
    model: Model, integer: list[Layer], options: Quantize, context: Context, evidence: Evidence
) -> None:
    plan = plan_activations(model, integer)
    if not plan.points:
        return
    seen = histograms(
        model,
        [node for node in plan.points if node not in plan.same_grid],
        need_data(context, "quantize", "it sets the range of every activation"),
        limit=context.limit,
        batch_size=context.batch_size,
        progress=context.progress,
        notes=context.notes,
    )
    spanning = Affine.symmetric if _symmetric(options, context) else Affine.covering
    for done, (node, histogram) in enumerate(seen.items()):
        context.progress.step("choosing ranges", done, len(seen))
        chosen = choose_range(histogram, options.calibration, options.percentile)
        evidence.grids[node.name] = spanning(*chosen)
    for node, source in plan.same_grid.items():
        evidence.grids[node.name] = evidence.grids.get(source.name) or Affine.of(source)


def _symmetric(options: Quantize, context: Context) -> bool:
    """Asked for, or all that the target takes, which is said."""
    where = TARGETS.get(context.target or "")
    needed = where is not None and where.symmetric
    if where is not None and needed and not options.symmetric_activations:
        context.notes.append(f"--symmetric-activations: {where.runtime_name} takes no others")
    return needed or options.symmetric_activations


def _inputs(data: Dataset, size: int, context: Context) -> Iterator[tuple[Tensor, ...]]:
    return (batch.inputs for batch in data.batches(size, limit=context.limit))
