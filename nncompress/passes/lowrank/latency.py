"""Which factors are really faster than their layer, measured once per shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nncompress.analysis.ranks import Candidate
from nncompress.bench.layer_latency import Chain, LayerShape, measure
from nncompress.ir.geometry import Geometry
from nncompress.ir.shapes import Shapes
from nncompress.passes.lowrank.forms import ConvolutionForm, Form, Ranks
from nncompress.passes.lowrank.targets import Target

TRIED = 12  # ranks that are measured per form
MARGIN = 0.97  # of the dense layer's time: less is noise


class LatencyOracle:
    """Measures factored layers against dense ones in ONNX Runtime; equal shapes are measured once."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._known: dict[object, list[float]] = {}

    def faster(
        self, target: Target, forms: Mapping[str, Form], candidates: Sequence[Candidate]
    ) -> dict[Candidate, float]:
        """Of the candidates that need fewer MACs, at most 12 per form, those measured faster.

        Returns: their time as a share of the dense layer's.
        """
        layer = target.layers[0]
        if layer.kind == "embedding" or not target.macs:
            return {}
        tried = [c for form in forms for c in _spread([c for c in candidates if c.form == form], target.macs)]
        chains = [_dense(target), *(_factored(forms[c.form], c.ranks) for c in tried)]
        shape = self._shapes.of(layer.data)
        key = (shape, tuple(chains))
        if key not in self._known:
            self._known[key] = measure(chains, shape)
        dense, *times = self._known[key]
        return {c: t / dense for c, t in zip(tried, times) if t < MARGIN * dense}


def _spread(candidates: Sequence[Candidate], dense: int) -> list[Candidate]:
    """The best candidate for each of 12 steps of cost."""
    pays = sorted((c for c in candidates if c.cost < dense), key=lambda c: c.error)
    best: dict[int, Candidate] = {}
    for c in pays:
        best.setdefault(c.cost * TRIED // dense, c)
    return list(best.values())


def _dense(target: Target) -> Chain:
    weight = tuple(target.weight.value().shape)
    place = target.geometry
    if place is not None:
        return (_convolution(place, weight),)
    return (LayerShape("MatMul", weight[::-1] if target.outputs_first else weight),)


def _factored(form: Form, ranks: Ranks) -> Chain:
    shapes = [stage.shape for stage in form.stages(ranks)]
    if isinstance(form, ConvolutionForm):
        return tuple(_convolution(place, shape) for place, shape in zip(form.chain(), shapes))
    return tuple(
        LayerShape("MatMul", shape[::-1] if form.target.outputs_first else shape) for shape in shapes
    )


def _convolution(place: Geometry, weight: tuple[int, ...]) -> LayerShape:
    attributes: list[tuple[str, tuple[int, ...] | int]] = [
        ("strides", place.stride),
        ("pads", place.padding * 2),
        ("dilations", place.dilation),
        ("group", place.groups),
    ]
    if place.transposed:
        attributes.append(("output_padding", place.output_padding))
    return LayerShape("ConvTranspose" if place.transposed else "Conv", weight, tuple(attributes))
