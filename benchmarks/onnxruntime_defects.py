"""Chains of two and three ONNX ops on which ONNX Runtime's optimisations change what is computed.

    python benchmarks/onnxruntime_defects.py [--triples] [--dtype float16] [--avoid]

Every chain is built twice from one table: as ONNX nodes and as torch calls. ONNX Runtime runs it with and
without its optimisations, against torch. `--avoid` applies what
`nncompress.export.lower.onnxruntime.runtime_defects` does to every exported file: with it, nothing may be
listed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from nncompress.export.lower.onnxruntime.runtime_defects import avoid_runtime_defects

SHAPE = (2, 4, 6, 7)
TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2}
BETWEEN = ("relu", "clip(-0.5,0.5)", "transpose(0,1,3,2)", "pad(0)", "pad(1)", "concat(x,x;1)", "x*2")


@dataclass
class Chain:
    """An ONNX graph in the making; `value` is the name of the last result, `x` what torch has there."""

    x: Tensor
    value: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)

    def constant(self, content: Any, dtype: Any = None) -> str:
        array = content.numpy() if isinstance(content, Tensor) else np.asarray(content)
        array = array.astype(dtype) if dtype is not None else array
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def floats(self, content: Any) -> str:
        return self.constant(content, str(self.x.dtype).removeprefix("torch."))

    def ints(self, *content: int) -> str:
        return self.constant(content, np.int64)

    def weight(self, *shape: int, salt: str = "") -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{shape}{salt}".encode()))
        return torch.randn(shape, generator=generator).to(self.x.dtype) / math.sqrt(
            max(1, math.prod(shape[1:]))
        )

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        )
        return name

    def then(self, result: Tensor, op: str, *inputs: str, **attributes: Any) -> None:
        """`op` of the value so far and `inputs`, which torch says is `result`."""
        self.value, self.x = self.add(op, self.value, *inputs, **attributes), result

    def model(self, shape: tuple[int, ...], dtype: str) -> bytes:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        result = helper.np_dtype_to_tensor_dtype(np.dtype(str(self.x.dtype).removeprefix("torch.")))
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", kind, list(shape))],
            [helper.make_tensor_value_info(self.value, result, None)],
            self.stored,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        ).SerializeToString()


Op = Callable[[Chain], None]
OPS: dict[str, Op] = {}


def op(name: str) -> Callable[[Op], Op]:
    def keep(build: Op) -> Op:
        OPS[name] = build
        return build

    return keep


def _unary(name: str, onnx_op: str, function: Callable[[Tensor], Tensor], **attributes: Any) -> None:
    OPS[name] = lambda c: c.then(function(c.x), onnx_op, **attributes)


def _with_scalar(name: str, onnx_op: str, number: float, function: Callable[[Tensor, float], Tensor]) -> None:
    OPS[name] = lambda c: c.then(function(c.x, number), onnx_op, c.floats(number))


_unary("relu", "Relu", F.relu)
_unary("sigmoid", "Sigmoid", torch.sigmoid)
_unary("tanh", "Tanh", torch.tanh)
_unary("gelu", "Gelu", F.gelu)
_unary("gelu(tanh)", "Gelu", lambda x: F.gelu(x, approximate="tanh"), approximate="tanh")
_unary("leaky_relu(0.3)", "LeakyRelu", lambda x: F.leaky_relu(x, 0.3), alpha=0.3)
_unary("elu(0.5)", "Elu", lambda x: F.elu(x, 0.5), alpha=0.5)
_unary("hard_sigmoid", "HardSigmoid", F.hardsigmoid, alpha=1 / 6, beta=0.5)
_unary("hard_swish", "HardSwish", F.hardswish)
_unary("softplus", "Softplus", F.softplus)
_unary("abs", "Abs", torch.abs)
_unary("neg", "Neg", torch.neg)
_unary("exp", "Exp", torch.exp)
_unary("floor", "Floor", torch.floor)
_unary("round", "Round", torch.round)
_unary("erf", "Erf", torch.erf)
_unary("identity", "Identity", lambda x: x)
_unary("flatten", "Flatten", lambda x: x.flatten(1), axis=1)
_unary("softmax(-1)", "Softmax", lambda x: x.softmax(-1), axis=-1)
_unary("softmax(1)", "Softmax", lambda x: x.softmax(1), axis=1)
_unary("log_softmax(1)", "LogSoftmax", lambda x: x.log_softmax(1), axis=1)
_with_scalar("x+2", "Add", 2.0, lambda x, s: x + s)
_with_scalar("x-2", "Sub", 2.0, lambda x, s: x - s)
_with_scalar("x*2", "Mul", 2.0, lambda x, s: x * s)
_with_scalar("x*-1", "Mul", -1.0, lambda x, s: x * s)
_with_scalar("x*0", "Mul", 0.0, lambda x, s: x * s)
_with_scalar("x/3", "Div", 3.0, lambda x, s: x / s)
_with_scalar("x**2", "Pow", 2.0, lambda x, s: x**s)
_with_scalar("x**3", "Pow", 3.0, lambda x, s: x**s)
_with_scalar("x**1", "Pow", 1.0, lambda x, s: x**s)
_with_scalar("x**0", "Pow", 0.0, lambda x, s: x**s)
_with_scalar("max(x,0)", "Max", 0.0, lambda x, s: x.clamp_min(s))
_with_scalar("min(x,1)", "Min", 1.0, lambda x, s: x.clamp_max(s))

for low, high in ((0.0, 6.0), (-0.5, 0.5), (None, 0.5), (0.2, None), (1.0, -1.0)):

    def _clip(c: Chain, low: float | None = low, high: float | None = high) -> None:
        result = torch.clamp(c.x, low, high)
        c.then(result, "Clip", *("" if each is None else c.floats(each) for each in (low, high)))

    OPS[f"clip({low},{high})"] = _clip

PADS = {"pad(0)": 0.0, "pad(1)": 1.0, "pad(-inf)": -math.inf}
for name, value in PADS.items():

    def _pad(c: Chain, value: float = value) -> None:
        result = F.pad(c.x, (1, 0, 2, 1), value=value)
        c.then(result, "Pad", c.ints(0, 0, 2, 1, 0, 0, 1, 0), c.floats(value), mode="constant")

    OPS[name] = _pad


@op("pad(0;all sides)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1)), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="constant")


@op("pad(channels)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (0, 0, 0, 0, 1, 2)), "Pad", c.ints(0, 1, 0, 0, 0, 2, 0, 0), c.floats(0.0))


@op("pad(negative)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (-1, 1, 1, -1)), "Pad", c.ints(0, 0, 1, -1, 0, 0, -1, 1), c.floats(0.0))


@op("pad(reflect)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1), "reflect"), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")


@op("pad(edge)")
def _(c: Chain) -> None:
    c.then(F.pad(c.x, (1, 1, 1, 1), "replicate"), "Pad", c.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")


for kernel, stride, padding, ceil in itertools.product((2, 3), (1, 2), (0, 1), (0, 1)):
    label = f"{kernel},{stride},{padding}{',ceil' if ceil else ''}"
    pads = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "ceil_mode": ceil}

    def _max_pool(c: Chain, pads: Any = pads, k: Any = (kernel, stride, padding, 1, bool(ceil))) -> None:
        c.then(F.max_pool2d(c.x, *k), "MaxPool", **pads)

    OPS[f"max_pool({label})"] = _max_pool
    for counted in (0, 1):

        def _avg_pool(
            c: Chain,
            pads: Any = pads,
            k: Any = (kernel, stride, padding, bool(ceil), bool(counted)),
            n: int = counted,
        ) -> None:
            c.then(F.avg_pool2d(c.x, *k), "AveragePool", count_include_pad=n, **pads)

        OPS[f"avg_pool({label}{',counted' if counted else ''})"] = _avg_pool


@op("max_pool(dilated)")
def _(c: Chain) -> None:
    c.then(F.max_pool2d(c.x, 2, 1, 0, 2), "MaxPool", kernel_shape=[2, 2], strides=[1, 1], dilations=[2, 2])


@op("lp_pool")
def _(c: Chain) -> None:
    c.then(F.lp_pool2d(c.x, 2, 2), "LpPool", kernel_shape=[2, 2], strides=[2, 2], p=2)


@op("global_avg_pool")
def _(c: Chain) -> None:
    c.then(c.x.mean((2, 3), keepdim=True), "GlobalAveragePool")


@op("global_max_pool")
def _(c: Chain) -> None:
    c.then(c.x.amax((2, 3), keepdim=True), "GlobalMaxPool")


CONVS = {  # outputs, kernel, stride, padding, dilation, groups
    "conv(1x1)": (5, 1, 1, 0, 1, 1),
    "conv(3,pad 1)": (5, 3, 1, 1, 1, 1),
    "conv(3,stride 2)": (8, 3, 2, 1, 1, 1),
    "conv(2,dilated)": (4, 2, 1, 1, 2, 1),
    "conv(depthwise)": (0, 3, 1, 1, 1, 0),
    "conv(16)": (16, 3, 1, 1, 1, 1),
}
for name, numbers in CONVS.items():

    def _conv(c: Chain, numbers: Any = numbers) -> None:
        outputs, kernel, stride, padding, dilation, groups = numbers
        channels = c.x.shape[1]
        outputs, groups = outputs or channels, groups or channels
        weight, bias = c.weight(outputs, channels // groups, kernel, kernel), c.weight(outputs)
        result = F.conv2d(c.x, weight, bias, stride, padding, dilation, groups)
        how = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2, "group": groups}
        c.then(result, "Conv", c.constant(weight), c.constant(bias), **how)

    OPS[name] = _conv


@op("conv(asymmetric)")
def _(c: Chain) -> None:
    weight = c.weight(6, c.x.shape[1], 3, 2)
    result = F.conv2d(F.pad(c.x, (0, 1, 2, 0)), weight)
    c.then(result, "Conv", c.constant(weight), pads=[2, 0, 0, 1])


for stride, padding, extra in ((1, 0, 0), (2, 1, 1), (3, 0, 2)):

    def _conv_transpose(c: Chain, s: int = stride, p: int = padding, e: int = extra) -> None:
        weight, bias = c.weight(c.x.shape[1], 5, 3, 3), c.weight(5)
        result = F.conv_transpose2d(c.x, weight, bias, s, p, e)
        how = {"strides": [s] * 2, "pads": [p] * 4, "output_padding": [e] * 2}
        c.then(result, "ConvTranspose", c.constant(weight), c.constant(bias), **how)

    OPS[f"conv_transpose({stride},{padding},{extra})"] = _conv_transpose


def _norm(c: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = c.x.shape[1]
    gain, shift, mean = (c.weight(n, salt=salt) for salt in ("gain", "shift", "mean"))
    return gain, shift, mean, c.weight(n, salt="variance").abs() + 0.1


for epsilon in (1e-5, 1e-1):

    def _batch_norm(c: Chain, epsilon: float = epsilon) -> None:
        gain, shift, mean, variance = _norm(c)
        result = F.batch_norm(c.x, mean, variance, gain, shift, eps=epsilon)
        c.then(result, "BatchNormalization", *map(c.constant, (gain, shift, mean, variance)), epsilon=epsilon)

    OPS[f"batch_norm({epsilon:g})"] = _batch_norm

    def _instance_norm(c: Chain, epsilon: float = epsilon) -> None:
        gain, shift, *_ = _norm(c)
        result = F.instance_norm(c.x, weight=gain, bias=shift, eps=epsilon)
        c.then(result, "InstanceNormalization", c.constant(gain), c.constant(shift), epsilon=epsilon)

    OPS[f"instance_norm({epsilon:g})"] = _instance_norm

    def _layer_norm(c: Chain, epsilon: float = epsilon) -> None:
        n = c.x.shape[-1]
        gain, shift = c.weight(n, salt="gain"), c.weight(n, salt="shift")
        result = F.layer_norm(c.x, (n,), gain, shift, epsilon)
        c.then(result, "LayerNormalization", c.constant(gain), c.constant(shift), axis=-1, epsilon=epsilon)

    OPS[f"layer_norm({epsilon:g})"] = _layer_norm

    for axes in ((-1,), (1,), (2, 3), (1, 2, 3)):

        def _spelled(c: Chain, epsilon: float = epsilon, axes: Any = axes) -> None:
            """(x − mean) / sqrt(var + ε) · gain + shift, along these axes."""
            x, dims = c.x, c.ints(*axes)
            shape = [x.shape[a] if a in [b % x.dim() for b in axes] else 1 for a in range(x.dim())]
            while shape[0] == 1 and len(shape) > 1:
                shape = shape[1:]
            gain, shift = c.weight(*shape, salt="gain"), c.weight(*shape, salt="shift")
            mean = x.mean(axes, keepdim=True)
            variance = ((x - mean) ** 2).mean(axes, keepdim=True)
            centred = c.add("Sub", c.value, c.add("ReduceMean", c.value, dims))
            spread = c.add("ReduceMean", c.add("Pow", centred, c.floats(2.0)), dims)
            divided = c.add("Div", centred, c.add("Sqrt", c.add("Add", spread, c.floats(epsilon))))
            c.value = c.add("Add", c.add("Mul", divided, c.constant(gain)), c.constant(shift))
            c.x = (x - mean) / torch.sqrt(variance + epsilon) * gain + shift

        OPS[f"spelled_norm({epsilon:g};{','.join(map(str, axes))})"] = _spelled

    def _rms(c: Chain, epsilon: float = epsilon) -> None:
        gain = c.weight(c.x.shape[-1], salt="gain")
        square = c.add("ReduceMean", c.add("Pow", c.value, c.floats(2.0)), c.ints(-1))
        root = c.add("Sqrt", c.add("Add", square, c.floats(epsilon)))
        inverse = c.add("Div", c.floats(1.0), root)
        c.value = c.add("Mul", c.add("Mul", c.value, inverse), c.constant(gain))
        c.x = c.x * (1 / torch.sqrt((c.x**2).mean(-1, keepdim=True) + epsilon)) * gain

    OPS[f"rms_norm({epsilon:g})"] = _rms


@op("group_norm")
def _(c: Chain) -> None:
    gain, shift, *_ = _norm(c)
    result = F.group_norm(c.x, 2, gain, shift)
    flat = c.add("Reshape", c.value, c.ints(0, 2, -1))
    ones = c.floats([1.0, 1.0]), c.floats([0.0, 0.0])
    normal = c.add("InstanceNormalization", flat, *ones)
    back = c.add("Reshape", normal, c.ints(*c.x.shape))
    shape = (1, -1, *[1] * (c.x.dim() - 2))
    c.value = c.add("Add", c.add("Mul", back, c.constant(gain.view(shape))), c.constant(shift.view(shape)))
    c.x = result


def _gate(name: str, build: Callable[[Chain], tuple[str, Tensor]]) -> None:
    """x times something of x: what Gelu and QuickGelu fusions look for."""

    def gated(c: Chain) -> None:
        factor, value = build(c)
        c.value, c.x = c.add("Mul", c.value, factor), c.x * value

    OPS[name] = gated


for scale in (1.702, 1.0, 0.5, -1.0):
    _gate(
        f"quick_gelu({scale})",
        lambda c, s=scale: (
            c.add("Sigmoid", c.add("Mul", c.value, c.floats(s))),
            torch.sigmoid(c.x * s),
        ),
    )
_gate("silu", lambda c: (c.add("Sigmoid", c.value), torch.sigmoid(c.x)))
_gate("mish", lambda c: (c.add("Tanh", c.add("Softplus", c.value)), torch.tanh(F.softplus(c.x))))
for divisor, half, one in (
    (math.sqrt(2), 0.5, 1.0),
    (1.0, 0.5, 1.0),
    (math.sqrt(2), 0.3, 1.0),
    (math.sqrt(2), 0.5, 2.0),
):

    def _spelled_gelu(c: Chain, d: float = divisor, h: float = half, o: float = one) -> None:
        inner = c.add("Add", c.add("Erf", c.add("Div", c.value, c.floats(d))), c.floats(o))
        c.value = c.add("Mul", c.add("Mul", c.value, inner), c.floats(h))
        c.x = c.x * (torch.erf(c.x / d) + o) * h

    OPS[f"spelled_gelu({divisor:.3g},{half},{one})"] = _spelled_gelu


@op("matmul")
def _(c: Chain) -> None:
    weight = c.weight(5, c.x.shape[-1]).T.contiguous()
    c.then(c.x @ weight, "MatMul", c.constant(weight))


@op("matmul+bias")
def _(c: Chain) -> None:
    weight, bias = c.weight(5, c.x.shape[-1]).T.contiguous(), c.weight(5)
    product = c.add("MatMul", c.value, c.constant(weight))
    c.value, c.x = c.add("Add", product, c.constant(bias)), c.x @ weight + bias


@op("weight@x")
def _(c: Chain) -> None:
    weight = c.weight(5, c.x.shape[-2])
    c.value, c.x = c.add("MatMul", c.constant(weight), c.value), weight @ c.x


for name, perm in {"xT@x": (0, 1, 3, 2), "batched": (0, 2, 3, 1)}.items():

    def _product(c: Chain, perm: Any = perm) -> None:
        turned = c.x.permute(perm)
        other = c.weight(*turned.shape[:-2], turned.shape[-1], 3, salt="other")
        value = c.add("Transpose", c.value, perm=list(perm))
        c.value, c.x = c.add("MatMul", value, c.constant(other)), turned @ other

    OPS[f"transpose({name})@w"] = _product


@op("x@xT*s")
def _(c: Chain) -> None:
    turned = c.add("Transpose", c.value, perm=[0, 1, 3, 2])
    scaled = c.add("Mul", c.add("MatMul", c.value, turned), c.floats(0.3))
    c.value, c.x = scaled, c.x @ c.x.mT * 0.3


@op("gemm(alpha,beta)")
def _(c: Chain) -> None:
    weight, bias = c.weight(5, c.x.shape[-1]), c.weight(5)
    result = 0.5 * c.x @ weight.T + 2.0 * bias
    if c.x.dim() != 2:
        raise RuntimeError("a matrix only")
    c.then(result, "Gemm", c.constant(weight), c.constant(bias), alpha=0.5, beta=2.0, transB=1)


PERMUTATIONS = ((0, 1, 3, 2), (0, 2, 3, 1), (1, 0, 2, 3), (0, 3, 1, 2))
for perm in PERMUTATIONS:
    OPS[f"transpose({','.join(map(str, perm))})"] = lambda c, p=perm: c.then(
        c.x.permute(p), "Transpose", perm=list(p)
    )


@op("reshape(0,-1,2)")
def _(c: Chain) -> None:
    c.then(c.x.reshape(c.x.shape[0], -1, 2), "Reshape", c.ints(0, -1, 2))


@op("reshape(rows)")
def _(c: Chain) -> None:
    c.then(c.x.reshape(-1, c.x.shape[-1]), "Reshape", c.ints(-1, c.x.shape[-1]))


@op("unsqueeze,squeeze")
def _(c: Chain) -> None:
    c.value = c.add("Squeeze", c.add("Unsqueeze", c.value, c.ints(1)), c.ints(1))


@op("slice(steps)")
def _(c: Chain) -> None:
    c.then(c.x[..., ::2], "Slice", c.ints(0), c.ints(2**31), c.ints(-1), c.ints(2))


@op("slice(backwards)")
def _(c: Chain) -> None:
    c.then(c.x.flip(-1), "Slice", c.ints(-1), c.ints(-(2**31)), c.ints(-1), c.ints(-1))


@op("slice(1:-1)")
def _(c: Chain) -> None:
    c.then(c.x[:, 1:-1], "Slice", c.ints(1), c.ints(-1), c.ints(1))


@op("gather(0)")
def _(c: Chain) -> None:
    c.then(c.x[:, 0], "Gather", c.constant(0, np.int64), axis=1)


@op("gather(2,-1)")
def _(c: Chain) -> None:
    c.then(c.x[:, [2, -1]], "Gather", c.ints(2, -1), axis=1)


@op("split,swap")
def _(c: Chain) -> None:
    a, b = c.x.split([1, c.x.shape[1] - 1], 1)
    c.nodes.append(
        helper.make_node(
            "Split", [c.value, c.ints(1, c.x.shape[1] - 1)], [f"a{len(c.nodes)}", f"b{len(c.nodes)}"], axis=1
        )
    )
    parts = c.nodes[-1].output
    c.value, c.x = c.add("Concat", parts[1], parts[0], axis=1), torch.cat([b, a], 1)


for axis in (1, -1):
    OPS[f"concat(x,x;{axis})"] = lambda c, a=axis: c.then(torch.cat([c.x, c.x], a), "Concat", c.value, axis=a)


@op("concat(constant)")
def _(c: Chain) -> None:
    other = c.weight(*c.x.shape, salt="concat")
    c.then(torch.cat([c.x, other], 1), "Concat", c.constant(other), axis=1)


for function in ("sum", "mean", "amax", "prod"):
    for axes, kept in (((1,), 1), ((-1,), 0), ((2, 3), 0), ((2, 3), 1), ((0, 1), 1)):
        name = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "prod": "ReduceProd"}[function]
        if function == "prod" and len(axes) > 1:
            continue

        def _reduce(c: Chain, f: str = function, n: str = name, axes: Any = axes, kept: int = kept) -> None:
            dims: Any = axes[0] if f == "prod" else axes
            result = getattr(c.x, f)(dims, keepdim=bool(kept))
            c.then(result, n, c.ints(*axes), keepdims=kept)

        OPS[f"{function}({','.join(map(str, axes))}{',kept' if kept else ''})"] = _reduce


@op("sum of squares")
def _(c: Chain) -> None:
    c.then((c.x**2).sum((2, 3), keepdim=True), "ReduceSumSquare", c.ints(2, 3))


@op("l2")
def _(c: Chain) -> None:
    c.then(c.x.norm(2, -1, keepdim=True), "ReduceL2", c.ints(-1))


@op("cumsum")
def _(c: Chain) -> None:
    c.then(c.x.cumsum(1), "CumSum", c.constant(1, np.int64))


@op("argmax,cast")
def _(c: Chain) -> None:
    indices = c.add("ArgMax", c.value, axis=1, keepdims=1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(c.x.dtype).removeprefix("torch.")))
    c.value, c.x = c.add("Cast", indices, to=kind), c.x.argmax(1, keepdim=True).to(c.x.dtype)


for through in (torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool):

    def _cast(c: Chain, through: torch.dtype = through) -> None:
        kinds = [np.dtype(str(d).removeprefix("torch.")) for d in (through, c.x.dtype)]
        there, back = map(helper.np_dtype_to_tensor_dtype, kinds)
        value = c.x.abs() if through == torch.uint8 else c.x
        given = c.add("Abs", c.value) if through == torch.uint8 else c.value
        c.value = c.add("Cast", c.add("Cast", given, to=there), to=back)
        c.x = value.to(through).to(c.x.dtype)

    OPS[f"cast({str(through).removeprefix('torch.')})"] = _cast

for mask in ("half", "row"):

    def _masked(c: Chain, mask: str = mask) -> None:
        seen = c.weight(*c.x.shape[1:], salt=mask) > 0
        seen[..., :1] = True
        if mask == "row":
            seen[0] = True
        value = c.add("Where", c.constant(seen), c.value, c.floats(-math.inf))
        c.value = c.add("Softmax", value, axis=-1)
        c.x = c.x.masked_fill(~seen, -math.inf).softmax(-1)

    OPS[f"masked softmax({mask})"] = _masked


@op("where(x>0)")
def _(c: Chain) -> None:
    test = c.add("Greater", c.value, c.floats(0.0))
    c.value = c.add("Where", test, c.value, c.floats(-3.0))
    c.x = torch.where(c.x > 0, c.x, torch.tensor(-3.0, dtype=c.x.dtype))


@op("not(x>0)")
def _(c: Chain) -> None:
    test = c.add("Not", c.add("Greater", c.value, c.floats(0.0)))
    c.value = c.add("Where", test, c.value, c.floats(5.0))
    c.x = torch.where(~(c.x > 0), c.x, torch.tensor(5.0, dtype=c.x.dtype))


for mode, coordinates in itertools.product(
    ("nearest", "linear", "cubic"), ("asymmetric", "half_pixel", "align_corners")
):
    if (mode == "nearest") != (coordinates == "asymmetric"):
        continue

    def _resize(c: Chain, mode: str = mode, coordinates: str = coordinates) -> None:
        torch_mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
        corners = {} if mode == "nearest" else {"align_corners": coordinates == "align_corners"}
        size = [2 * c.x.shape[2] + 1, 3 * c.x.shape[3]]
        result = F.interpolate(c.x, size, mode=torch_mode, **corners)
        how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        how |= {"nearest_mode": "floor"} if mode == "nearest" else {"cubic_coeff_a": -0.75}
        c.then(result, "Resize", "", "", c.ints(*c.x.shape[:2], *size), **how)

    OPS[f"resize({mode},{coordinates})"] = _resize


@op("depth_to_space")
def _(c: Chain) -> None:
    c.then(F.pixel_shuffle(c.x, 2), "DepthToSpace", blocksize=2, mode="CRD")


@op("x+x")
def _(c: Chain) -> None:
    c.then(c.x + c.x, "Add", c.value)


@op("x*sigmoid(mean)")
def _(c: Chain) -> None:
    pooled = c.add("Sigmoid", c.add("GlobalAveragePool", c.value))
    c.value, c.x = c.add("Mul", c.value, pooled), c.x * torch.sigmoid(c.x.mean((2, 3), keepdim=True))


@op("+per channel")
def _(c: Chain) -> None:
    bias = c.weight(c.x.shape[1], 1, 1, salt="bias")
    c.then(c.x + bias, "Add", c.constant(bias))


@op("*per channel")
def _(c: Chain) -> None:
    factor = c.weight(c.x.shape[1], 1, 1, salt="factor")
    c.then(c.x * factor, "Mul", c.constant(factor))


@op("+per column")
def _(c: Chain) -> None:
    bias = c.weight(c.x.shape[-1], salt="column")
    c.then(c.x + bias, "Add", c.constant(bias))


@op("prelu")
def _(c: Chain) -> None:
    slope = c.weight(c.x.shape[1], salt="slope")
    c.then(F.prelu(c.x, slope), "PRelu", c.constant(slope.view(-1, *[1] * (c.x.dim() - 2))))


@op("expand")
def _(c: Chain) -> None:
    c.then(c.x.expand(3, *c.x.shape), "Expand", c.ints(3, *[1] * c.x.dim()))


@op("tile")
def _(c: Chain) -> None:
    c.then(c.x.repeat(*[1] * (c.x.dim() - 1), 2), "Tile", c.ints(*[1] * (c.x.dim() - 1), 2))


@op("1/sqrt")
def _(c: Chain) -> None:
    root = c.add("Sqrt", c.add("Abs", c.value))
    c.value, c.x = c.add("Div", c.floats(1.0), root), 1 / c.x.abs().sqrt()


def run(model: bytes, x: np.ndarray, level: str) -> np.ndarray | str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.array(session.run(None, {"x": x})[0])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        return str(error).splitlines()[0]


def differs(got: np.ndarray | str, expected: np.ndarray, tolerance: float) -> str:
    """What is wrong with it, or ""."""
    if isinstance(got, str):
        return f"fails: {got[:100]}"
    if got.shape != expected.shape:
        return f"shape {got.shape}, not {expected.shape}"
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[np.isinf(b)], b[np.isinf(b)]):
        return "infinities or NaN in other places"
    scale = np.abs(b[finite]).max(initial=0) or 1.0
    error = np.abs(a[finite] - b[finite]).max(initial=0) / scale
    return f"off by {error:.2g}" if error > tolerance else ""


def avoided(model: bytes) -> bytes:
    loaded = onnx_ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.load_from_string(model)))
    avoid_runtime_defects(loaded.graph)
    return onnx_ir.serde.serialize_model(loaded).SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument(
        "--triples", action="store_true", help="one of the BETWEEN ops between, before and behind"
    )
    parser.add_argument("--avoid", action="store_true", help="as our exported files avoid them")
    parser.add_argument("--only", default="", help="chains that contain this text")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(getattr(torch, arguments.dtype))
    chains: list[tuple[str, ...]] = [(name,) for name in OPS]
    chains += list(itertools.product(OPS, OPS))
    if arguments.triples:
        for middle in BETWEEN:
            chains += [(a, middle, b) for a, b in itertools.product(OPS, OPS)]
    known: set[tuple[str, ...]] = set()
    tried = 0
    for names in chains:
        label = " → ".join(names)
        if arguments.only not in label or any(
            part in known for n in range(1, len(names)) for part in zip(*(names[i:] for i in range(n)))
        ):
            continue
        chain = Chain(x)
        try:
            for name in names:
                OPS[name](chain)
        except (RuntimeError, IndexError, ValueError, NotImplementedError):
            continue  # these do not follow each other
        model = chain.model(SHAPE, arguments.dtype)
        model = avoided(model) if arguments.avoid else model
        tried += 1
        tolerance = TOLERANCE[arguments.dtype]
        found = {
            level: differs(run(model, x.numpy(), level), chain.x.numpy(), tolerance)
            for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
        }
        if found["ORT_DISABLE_ALL"].startswith(("fails", "shape")):
            continue  # ONNX means something else by it: no chain for torch to judge
        if any(found.values()):
            known.add(names)
            written, optimised = (text or "right" for text in found.values())
            print(f"{label}: as written: {written}; optimised: {optimised}", flush=True)
    print(f"{tried} chains tried in {arguments.dtype}, {len(known)} differ from torch")


if __name__ == "__main__":
    main()
