"""Where a convolution's filters go: stride, padding and the rest, read off any of the ATen spellings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nncompress.ir.layers.weights import Layer, argument


@dataclass(frozen=True)
class Geometry:
    """All tuples have one entry per spatial dim.

    Attributes:
        kernel: filter size.
        output_padding: of a transposed convolution; zeros otherwise.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        return len(self.kernel)

    @property
    def pointwise(self) -> bool:
        return all(k == 1 for k in self.kernel)

    def one_by_one(self) -> Geometry:
        """A 1×1 convolution with stride 1 and the same groups."""
        one, zero = (1,) * self.dims, (0,) * self.dims
        return Geometry(one, one, zero, one, self.groups)

    def along(self, axis: int) -> Geometry:
        """The part of a separable filter that runs along spatial dim `axis`, with that dim's stride."""

        def keep(values: tuple[int, ...], default: int) -> tuple[int, ...]:
            return tuple(v if d == axis else default for d, v in enumerate(values))

        return replace(
            self,
            kernel=keep(self.kernel, 1),
            stride=keep(self.stride, 1),
            padding=keep(self.padding, 0),
            dilation=keep(self.dilation, 1),
        )


def geometry(layer: Layer) -> Geometry | None:
    """The geometry of a convolution; None where no symmetric padding says it ("same" with an even kernel)."""
    kernel = tuple(layer.weight.value().shape[2:])
    node, dims = layer.node, len(kernel)

    def read(position: int, default: int) -> tuple[int, ...]:
        value = argument(node, position, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        return values * dims if len(values) == 1 else values

    transposed = "transpose" in layer.kind
    if transposed and layer.kind != "convolution_transposed":
        stride, padding, output_padding, dilation = read(3, 1), read(4, 0), read(5, 0), read(7, 1)
    elif "convolution" in layer.kind:
        stride, padding, dilation, output_padding = read(3, 1), read(4, 0), read(5, 1), read(7, 0)
    else:
        stride, dilation, output_padding = read(3, 1), read(5, 1), (0,) * dims
        spelled = argument(node, 4, 0)
        if spelled == "valid":
            padding = (0,) * dims
        elif spelled == "same":
            spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
            if any(span % 2 for span in spans):
                return None
            padding = tuple(span // 2 for span in spans)
        else:
            padding = read(4, 0)
    return Geometry(kernel, stride, padding, dilation, layer.groups, transposed, output_padding)
