"""Where the samples of a batch lie in a value inside the graph: sums are taken sample by sample."""

from __future__ import annotations

from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.graph.inputs import BATCH
from nncompress.ir.graph.shapes import Shapes

_FEWER, _MORE = 3, 5  # batch sizes whose shapes tell the dims that grow with the batch


class SampleDims:
    """The sample dim of a graph's values.

    It is the one dim that grows with the batch: its size is the number of samples, or a multiple of it where
    windows or time steps have been merged into it behind the samples. State, tables and what is computed from
    them have none: all samples share them.
    """

    def __init__(self, model: Model) -> None:
        self._fixed = BATCH not in model.dynamic
        self._sizes = [Shapes(model, batch) for batch in (_FEWER, _MORE)]

    def of(self, node: fx.Node, samples: int) -> int | None:
        """The sample dim of the result of `node` for `samples` samples; None: they all share it."""
        if samples == 1:
            return 0
        fewer, more = (sizes.of(node) for sizes in self._sizes)
        if self._fixed:
            return 0 if node in self._sizes[0].fed and fewer and fewer[0] % samples == 0 else None
        dims = [d for d, (a, b) in enumerate(zip(fewer, more)) if a != b]
        if len(dims) != 1 or fewer[dims[0]] * _MORE != more[dims[0]] * _FEWER:
            return None
        return dims[0] if dims[0] == 0 or fewer[dims[0]] == _FEWER else None

    def total(self, node: fx.Node, value: Tensor, samples: int, channels: int | None = None) -> Tensor:
        """The sum of `value` over all but samples and channels.

        Returns: `[samples, channels]`, or `[1, channels]` of a value that all samples share.

        Args:
            channels: the channel dim of `value`; None: sum over it too, channels = 1.
        """
        dim = self.of(node, samples)
        channels = None if channels is None else channels % value.dim()
        last = value.unsqueeze(-1) if channels is None else value.movedim(channels, -1)
        if samples == 1 or dim is None or dim == channels:
            return last.reshape(-1, last.shape[-1]).sum(0, keepdim=True)
        first = dim - (channels is not None and channels < dim)
        return last.movedim(first, 0).reshape(samples, -1, last.shape[-1]).sum(1)
