"""Is a quantized file as far from float as the graph is? For outputs that rounding takes apart.

Two right ways to round differ by what each of them is away from float, which deep networks, and sums that
cancel, make large. A kernel that is wrong is farther from float than the graph. A file that is run as it is
written, in floats, meets a boundary here and there only, and differs by little of that; or by as much as the
graph from itself when the last bits of its sums change, much where one value changes all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.walk import Env, Walk
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import LEVELS, without_rounding
from nncompress.ir.graph.ops import op_name

AS_FAR = 1.25  # times what rounding is worth in the graph, that of a right file is at most
AS_WRITTEN = 0.2  # times that, what a file as it is written may be away from the graph
LAST_BIT = 2.0**-24  # of the range of an activation: what another order of a float32 sum changes
TIMES = 2  # what that moves the graph, a file as it is written may be away from it: it is one draw of several
PROVEN = (
    2  # times what rounding is worth, that of a file as it is written is at most, which else is proven right
)
MOST = 0.5  # of the outputs: where rounding in the graph moves them farther, it tells nothing of a file


class Rounding:
    """What rounding its activations does to a model.

    Args:
        proof: why the file is not right, or cannot be told to be, otherwise than by its outputs; asked where
            these do not tell. "" where it is right.
        proven: runs a file that is right, as good a reference as the graph.
    Attributes:
        told: of the outputs that it explained, the one that is farthest from the graph's; "" for none.
    """

    def __init__(
        self,
        model: Model,
        *,
        as_written: bool,
        proof: Callable[[], str] | None = None,
        proven: Callable[[tuple[Tensor, ...]], Sequence[Tensor]] | None = None,
    ) -> None:
        self.told = ""
        self._as_written = as_written
        self._proof, self._proven = proof, proven
        self._model = model
        self._worst = 0.0

    @cached_property
    def _unrounded(self) -> Model:
        return without_rounding(self._model)

    @cached_property
    def _unproven(self) -> str:
        """Of the file, whichever output and inputs ask."""
        return "" if self._proof is None else self._proof()

    def _last_bits(
        self, inputs: Sequence[Sequence[Tensor]], output: int, graph: Tensor, file: Tensor
    ) -> bool:
        """Is that about how far the graph is from itself where activations differ by `LAST_BIT`?"""
        generator = torch.Generator().manual_seed(0)
        walk = Walk(self._model)
        for node in self._model.graph.nodes:
            if op_name(node) == "quantize_per_tensor":
                walk.instead[node] = partial(_round_nudged, node, generator)
        with torch.no_grad():
            nudged = _joined([walk.outputs(*(x.clone() for x in given))[output] for given in inputs])
        moved = (nudged.reshape(graph.shape) - graph).norm()
        return bool((file - graph).norm() <= TIMES * moved)

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
        floats = _joined(called).reshape(graph.shape)
        graph, file = graph.detach().double().cpu(), file.detach().double()
        if not all(x.isfinite().all() for x in (floats, graph, file)):
            raise refused
        size = floats.norm().clamp_min(torch.finfo(torch.float64).tiny)
        of_graph, of_file = (float((x - floats).norm() / size) for x in (graph, file))
        told = f"{of_file:.2g} from float, where the graph is {of_graph:.2g}"
        rounded = (graph - floats).abs()
        right = of_graph <= MOST and _within(file - floats, rounded, AS_FAR)
        if self._as_written:
            right = _within(file - graph, rounded, AS_WRITTEN) or (
                right and self._last_bits(inputs, output, graph, file)
            )
        unproven = ""
        near = of_graph <= MOST and _within(file - floats, rounded, PROVEN)
        if not right and near and self._proof is not None:
            unproven = self._unproven
            right = not unproven
        if not right and of_graph <= MOST and self._proven is not None:
            with torch.no_grad():
                other = _joined([self._proven(tuple(given))[output] for given in inputs]).reshape(graph.shape)
            right = _within(file - floats, (other - floats).abs(), AS_FAR)
        if not right:
            refused.got = "; ".join(filter(None, (refused.got, told, unproven)))
            raise refused
        difference = file - graph
        relative = float(difference.norm() / graph.norm())
        if relative > self._worst:
            self._worst = relative
            self.told = f"rounded otherwise than the graph, {relative:.2g} from it: {told}"
        return difference.abs().max().item(), relative


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.detach().double().cpu().flatten() for each in values])


def _round_nudged(node: fx.Node, generator: torch.Generator, env: Env) -> Tensor:
    """A quantize node of a value with other last bits."""
    given: Any = fx.map_arg(node.args, env.__getitem__)
    x, scale, *rest = given
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
    assert callable(node.target)
    return node.target(x + noise * (LEVELS * scale * LAST_BIT), scale, *rest)


def _within(difference: Tensor, rounded: Tensor, most: float) -> bool:
    """In its norm and in its median."""
    found = difference.abs()
    return bool(found.norm() <= most * rounded.norm() and found.median() <= most * rounded.median())
