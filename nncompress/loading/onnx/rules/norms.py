"""Norms."""

from __future__ import annotations

from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value


@rule("BatchNormalization", ignores=["momentum"])  # of the statistics that training gathers
def batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0) or (call.opset < 7 and not call.get("is_test", 0)):
        raise call.refusal("it is in training mode")
    if not call.get("spatial", 1):
        raise call.refusal("with statistics of each position (spatial = 0)")
    x, scale, bias, mean, variance = (call.tensor(i) for i in range(5))
    epsilon = call.get("epsilon", 1e-5)
    if call.depends(3) or call.depends(4):  # statistics that are computed, by which torch's has no gradient
        mean, deviation, scale, bias = (
            each.reshape(-1, *[1] * (x.dim() - 2))
            for each in (mean, (variance + epsilon).sqrt(), scale, bias)
        )
        return (x - mean) / deviation * scale + bias
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@rule("InstanceNormalization")
def instance_norm(call: Call) -> Value:
    x, scale, bias = (call.tensor(i) for i in range(3))
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@rule("LayerNormalization")
def layer_norm(call: Call) -> Value:
    x, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    call.steps_in("stash_type", x)
    if len([name for name in call.outputs if name]) > 1:
        raise call.refusal("its mean and deviation are asked for")
    axis = call.get("axis", -1) % x.dim()
    shape = list(x.shape[axis:])
    fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if fits:
        return F.layer_norm(x, shape, scale, bias, call.get("epsilon", 1e-5))
    result = F.layer_norm(x, shape, None, None, call.get("epsilon", 1e-5)) * scale
    return result if bias is None else result + bias


@rule("com.microsoft.SkipLayerNormalization")
def skip_layer_norm(call: Call) -> list[Value | None]:
    total = call.tensor(0) + call.tensor(1)
    total = total + call.tensor(4) if call.has(4) else total
    if any(call.outputs[1:3]):
        raise call.refusal("its mean and deviation are asked for")
    result = F.layer_norm(
        total, [total.shape[-1]], call.tensor(2), call.optional(3), call.get("epsilon", 1e-12)
    )
    return [result, None, None, total]


@rule(
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "com.microsoft.SimplifiedLayerNormalization",
)
def rms_norm(call: Call) -> Value:
    x, scale = call.tensor(0), call.tensor(1)
    call.steps_in("stash_type", x)
    axis = call.get("axis", -1) % x.dim()
    return F.rms_norm(x, list(x.shape[axis:]), scale, call.get("epsilon", 1e-5))


@rule("GroupNormalization")
def group_norm(call: Call) -> Value:
    x, scale, bias = (call.tensor(i) for i in range(3))
    call.steps_in("stash_type", x)
    groups, channels = call.get("num_groups"), x.shape[1]
    if call.opset < 21 and scale.shape[0] != channels:  # of each group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@rule("LRN")
def local_response(call: Call) -> Value:
    x = call.tensor(0)
    return F.local_response_norm(
        x, call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )
