"""A reference for int8: what a quantized graph means, computed in float64."""

from __future__ import annotations

import torch

from nncompress.ir import Model


class Exact(torch.fx.Interpreter):
    """The graph in float64, where sums of products of 8-bit integers are exact, activations and all.

    Attributes:
        nearest_tie: [records]: how near, in steps, any rounded value of a record came to the middle of two.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.graph_module)
        self.nearest_tie = torch.tensor(0.5)

    def call_function(self, target, args, kwargs):
        name = str(target)
        if "dequantize_per_channel" in name:
            scale = args[1].double().reshape(-1, *[1] * (args[0].dim() - 1))
            return args[0].double() * scale
        if "dequantize_per_tensor" in name:
            return (args[0] - args[2]) * args[1]
        if "quantize_per_tensor" in name:
            steps = args[0] / args[1] + args[2]
            inside = (steps > -0.5) & (steps < 255.5)
            tie = ((steps - steps.floor() - 0.5).abs() + (~inside) * 1.0).flatten(1).amin(1)
            self.nearest_tie = torch.minimum(self.nearest_tie, tie)
            return steps.round().clamp(0, 255)
        args = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        return super().call_function(target, tuple(args), kwargs)
