"""Which forms fit a layer."""

from __future__ import annotations

from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.weight_targets import Target
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes.factors.forms.base import Form, Metrics
from nncompress.passes.factors.forms.convolution import ChannelForm, ConvolutionForm, TransposedForm
from nncompress.passes.factors.forms.linear import LinearForm
from nncompress.passes.factors.forms.spatial import SpatialForm
from nncompress.passes.factors.forms.tucker import TuckerForm


def forms_of(
    target: Target,
    shapes: Shapes,
    name: str = "auto",
    metrics: Metrics | None = None,
    wanted: Wanted | None = None,
) -> list[Form]:
    """Every form that fits a target; of the convolution forms only that of this name, unless it is "auto".

    A layer that has no such form (a 1×1 convolution has no spatial one) gets its only one.
    """
    place = target.geometry
    if place is None:
        return [LinearForm(target, shapes, metrics, wanted)]
    if place.transposed:
        return [TransposedForm(target, shapes, place, metrics, wanted)]
    classes: list[type[ConvolutionForm]] = [ChannelForm]
    if not place.pointwise:
        if place.dims == 2 and min(place.kernel) > 1:
            classes.append(SpatialForm)
        classes.append(TuckerForm)
    chosen = [c for c in classes if c.name == name] or classes[:1]
    return [c(target, shapes, place, metrics, wanted) for c in (classes if name == "auto" else chosen)]
