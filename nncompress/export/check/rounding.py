"""Is a quantized file as far from float as the graph is? For outputs that rounding takes apart.

Two right ways to round differ by what each of them is away from float, which deep networks, and sums that
cancel, make large. A kernel that is wrong is farther from float than the graph. A file that is run as it is
written, in floats, meets a boundary here and there only, and differs by little of that; or by as much, in a
deep network where one such value changes all that follow, which is taken where it is little of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import without_rounding
from nncompress.ir.graph.ops import op_name

AS_FAR = 1.25  # times what rounding is worth in the graph, that of a right file is at most
SMALL = 0.05  # of the outputs: where rounding is worth no more, a file as it is written may be as far, too
DEEP = 32  # roundings one after the other, in a network where that holds: a wrong scale of a few would show
AS_WRITTEN = 0.2  # times that, what a file as it is written may be away from the graph
MOST = 0.5  # of the outputs: where rounding in the graph moves them farther, it tells nothing of a file


class Rounding:
    """What rounding its activations does to a model.

    Attributes:
        told: of the outputs that it explained, the one that is farthest from the graph's; "" for none.
    """

    def __init__(self, model: Model, *, as_written: bool) -> None:
        self.told = ""
        self._as_written = as_written
        self._model = model
        self._worst = 0.0

    @cached_property
    def _unrounded(self) -> Model:
        return without_rounding(self._model)

    @cached_property
    def _deep(self) -> bool:
        return sum(op_name(node) == "quantize_per_tensor" for node in self._model.graph.nodes) >= DEEP

    def explains(
        self,
        refused: VerificationError,
        inputs: Sequence[Sequence[Tensor]],
        output: int,
        graph: Tensor,
        file: Tensor,
    ) -> tuple[float, float]:
        """(largest difference, relative error) of a file's output, which is refused for being so far away.

        Args:
            inputs: of each call.
            graph, file: the output in all calls; their values one after the other, where these are several.
        Raises:
            VerificationError: it is farther from float than the graph's.
        """
        if graph.shape != file.shape or not graph.dtype.is_floating_point:
            raise refused
        with torch.no_grad():
            called = [self._unrounded.outputs_of(*(x.clone() for x in given))[output] for given in inputs]
        floats = torch.cat([each.detach().double().cpu().flatten() for each in called]).reshape(graph.shape)
        graph, file = graph.detach().double().cpu(), file.detach().double()
        if not all(x.isfinite().all() for x in (floats, graph, file)):
            raise refused
        size = floats.norm().clamp_min(torch.finfo(torch.float64).tiny)
        of_graph, of_file = (float((x - floats).norm() / size) for x in (graph, file))
        told = f"{of_file:.2g} from float, where the graph is {of_graph:.2g}"
        rounded = (graph - floats).abs()
        right = of_graph <= MOST and _within(file - floats, rounded, AS_FAR)
        if self._as_written:
            right = (right and of_graph <= SMALL and self._deep) or _within(file - graph, rounded, AS_WRITTEN)
        if not right:
            refused.got = f"{refused.got}; {told}"
            raise refused
        difference = file - graph
        relative = float(difference.norm() / graph.norm())
        if relative > self._worst:
            self._worst = relative
            self.told = f"rounded otherwise than the graph, {relative:.2g} from it: {told}"
        return difference.abs().max().item(), relative


def _within(difference: Tensor, rounded: Tensor, most: float) -> bool:
    """In its norm and in its median."""
    found = difference.abs()
    return bool(found.norm() <= most * rounded.norm() and found.median() <= most * rounded.median())
