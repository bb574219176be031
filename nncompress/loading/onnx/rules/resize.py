"""Resizing, and sampling on a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value, items

_MODES = {"nearest": "nearest", "linear": "linear", "cubic": "bicubic"}


@rule("Resize", "Upsample", ignores=["extrapolation_value"])  # of tf_crop_and_resize, which is refused
def resize(call: Call) -> Value:
    x = call.tensor(0)
    first = 1 if call.op == "Upsample" or call.opset < 11 else 2
    scales = call.get("scales")
    if first == 2 and call.has(1):
        call.value(1)  # the region of one coordinate transformation, which is not read
    if scales is None and call.has(first):
        scales = items(call.array(first, "the scales")) or None
    wanted = items(call.array(3, "the sizes")) if call.has(3) and call.op == "Resize" else None
    axes = [a % x.dim() for a in call.get("axes", range(x.dim()))]
    policy = call.get("keep_aspect_ratio_policy", "stretch")  # of sizes; exporters write it beside scales
    if wanted is not None and policy != "stretch":
        raise call.refusal("sizes that keep the aspect ratio")
    factors = dict(zip(axes, scales)) if scales is not None else {}
    targets = dict(zip(axes, wanted)) if wanted is not None else {}
    for axis in (0, 1):
        factor = factors.get(axis, 1.0)
        scaled = isinstance(factor, int | float) and factor != 1.0
        if scaled or (axis in targets and _differs(targets[axis], x.shape[axis])):
            raise call.refusal("over the batch or the channels")
    spatial = list(range(2, x.dim()))
    if targets:
        sizes = [targets.get(axis, x.shape[axis]) for axis in spatial]
    else:
        sizes = [_scaled(x.shape[axis], factors.get(axis, 1.0)) for axis in spatial]
    known = [f if isinstance(f, int | float) else None for f in map(factors.get, spatial)]
    return _interpolated(call, x, sizes, known)


def _differs(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


def _scaled(size: Any, factor: Any) -> Any:
    if isinstance(factor, torch.SymFloat):
        return torch.sym_int(size * factor)
    if isinstance(size, int):
        return math.floor(size * factor)
    whole = round(factor)
    return size * whole if abs(factor - whole) < 1e-9 else torch.sym_int(size * factor)


def _interpolated(call: Call, x: Tensor, sizes: list[Any], factors: list[float | None]) -> Tensor:
    mode = call.get("mode", "nearest")
    default = "half_pixel" if call.op == "Resize" and call.opset >= 11 else "asymmetric"
    transform = call.get("coordinate_transformation_mode", default)
    rounding = call.get("nearest_mode", "round_prefer_floor" if call.opset >= 11 else "floor")
    coefficient = call.get("cubic_coeff_a", -0.75)
    if call.get("antialias", 0) or call.get("exclude_outside", 0):
        raise call.refusal("with antialiasing")
    if mode == "nearest":
        return _nearest(call, x, sizes, factors, transform, rounding)
    for size, to, factor in zip(x.shape[2:], sizes, factors):
        if factor is not None and isinstance(size, int) and abs(size * factor - to) > 1e-6:
            raise call.refusal(f"by {factor:g}, which {size} is not divided by")
        if transform == "pytorch_half_pixel" and isinstance(to, int) and to == 1 and size != 1:
            raise call.refusal("to a single pixel")
    names = {
        ("linear", 1): "linear",
        ("linear", 2): "bilinear",
        ("linear", 3): "trilinear",
        ("cubic", 2): "bicubic",
    }
    name = names.get((mode, len(sizes)))
    if name is None or transform not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise call.refusal(f"{mode}, {transform}, over {len(sizes)} dims")
    if name == "bicubic" and abs(coefficient + 0.75) > 1e-6:
        raise call.refusal(f"the coefficient {coefficient}")
    return F.interpolate(x, sizes, mode=name, align_corners=transform == "align_corners")


def _nearest(
    call: Call, x: Tensor, sizes: list[Any], factors: list[float | None], transform: str, rounding: str
) -> Tensor:
    have = list(x.shape[2:])
    whole = all(f is not None and abs(f - round(f)) < 1e-9 for f in factors)
    if whole and (
        (transform == "asymmetric" and rounding == "floor")
        or (transform in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round"))
    ):
        return F.interpolate(x, sizes, mode="nearest")
    if not all(isinstance(n, int) for n in (*have, *sizes)):
        raise call.refusal(f"nearest, {transform}, {rounding}, of a size that is free")
    if (transform, rounding) == ("asymmetric", "floor") and all(to % n == 0 for to, n in zip(sizes, have)):
        return F.interpolate(x, sizes, mode="nearest")
    for axis, (size, to, factor) in enumerate(zip(have, sizes, factors)):
        index = _picked(call, size, to, to / size if factor is None else factor, transform, rounding)
        x = torch.index_select(x, axis + 2, torch.tensor(index))
    return x


def _picked(call: Call, size: int, to: int, factor: float, transform: str, rounding: str) -> list[int]:
    """Which of `size` values each of `to` is, as the operator's definition says it."""
    out = np.arange(to)
    places = {
        "half_pixel": (out + 0.5) / factor - 0.5,
        "pytorch_half_pixel": (out + 0.5) / factor - 0.5 if to > 1 else np.zeros(to),
        "asymmetric": out / factor,
        "align_corners": out * (size - 1) / (to - 1) if to > 1 else np.zeros(to),
    }
    place = places.get(transform)
    roundings: dict[str, Any] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    rounded = roundings.get(rounding)
    if place is None or rounded is None:
        raise call.refusal(f"nearest, {transform}, {rounding}")
    return [int(i) for i in np.clip(rounded(place), 0, size - 1)]


@rule("GridSample")
def grid_sample(call: Call) -> Value:
    mode = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return F.grid_sample(
        call.tensor(0),
        call.tensor(1),
        mode[call.get("mode", "linear")],
        call.get("padding_mode", "zeros"),
        bool(call.get("align_corners", 0)),
    )
