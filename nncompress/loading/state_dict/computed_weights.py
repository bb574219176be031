"""Weights that a wrapper computes from others, as one tensor: pruning masks, weight and spectral norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

_PARAMETRIZED = "parametrizations."


def computed(
    weights: Mapping[str, Tensor], wanted: Collection[str], transposed: Collection[str] = ()
) -> dict[str, Tensor]:
    """`weights` with those computed that the architecture stores as one tensor; what does not fit together
    keeps its names.

    weight_orig, weight_mask                                             weight = orig · mask
    weight_g, weight_v  or  parametrizations.weight.original0, original1 weight = g · v / |v|
    weight_orig, _u, _v  or  parametrizations.weight.original, .0._u, .0._v  weight = orig / (uᵀ W v)

    In the last, W is orig as a matrix, whose rows are the channels along one dim.

    Args:
        transposed: weights of transposed convolutions, whose channels lie along the second dim.
    """
    plain = dict(weights)

    def replace(names: Collection[str], base: str, value: Tensor | None) -> None:
        if value is not None:
            for name in names:
                del plain[name]
            plain[base] = value

    for name in weights:
        if name in wanted or name not in plain:
            continue
        base = name.removesuffix("_orig")
        if base != name and _alike(plain, name, f"{base}_mask"):
            replace((name, f"{base}_mask"), base, plain[name] * plain[f"{base}_mask"])
        elif base != name and {f"{base}_u", f"{base}_v"} <= plain.keys():
            names = name, f"{base}_u", f"{base}_v"
            replace(names, base, _spectral(plain, names, int(base in transposed)))
        elif name.endswith(".original") and {f"{name[:-9]}.0._u", f"{name[:-9]}.0._v"} <= plain.keys():
            names = name, f"{name[:-9]}.0._u", f"{name[:-9]}.0._v"
            base = _unwrapped(name[:-9])
            replace(names, base, _spectral(plain, names, int(base in transposed)))
        elif name.endswith("_g") and f"{name[:-2]}_v" in plain:
            replace((name, f"{name[:-2]}_v"), name[:-2], _normed(plain[name], plain[f"{name[:-2]}_v"]))
        elif name.endswith(".original0") and f"{name[:-1]}1" in plain:
            base = _unwrapped(name.removesuffix(".original0"))
            replace((name, f"{name[:-1]}1"), base, _normed(plain[name], plain[f"{name[:-1]}1"]))
    return plain


def transposed_weights(module: nn.Module) -> set[str]:
    """Names of the weights of its transposed convolutions."""
    kinds = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    convolutions = (name for name, layer in module.named_modules() if isinstance(layer, kinds))
    return {f"{name}.weight".removeprefix(".") for name in convolutions}


def _unwrapped(name: str) -> str:
    return name.replace(_PARAMETRIZED, "", 1)


def _alike(plain: Mapping[str, Tensor], name: str, other: str) -> bool:
    return other in plain and plain[name].shape == plain[other].shape


def _normed(g: Tensor, v: Tensor) -> Tensor | None:
    if g.dim() not in (0, v.dim()) or any(n not in (1, m) for n, m in zip(g.shape, v.shape)):
        return None
    dims = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
    return g * v / v.norm(2, dims, keepdim=True)


def _spectral(plain: Mapping[str, Tensor], names: Sequence[str], usual: int) -> Tensor | None:
    """The dim of the channels is in no file: where several have the sizes of u and v, it is the usual one of
    the layer, unless u and v are about the singular vectors along another, and far from these along that."""
    original, u, v = (plain[name] for name in names)
    if u.dim() != 1 or v.dim() != 1:
        return None
    matrices = {
        dim: original.movedim(dim, 0).reshape(len(u), len(v))
        for dim in range(original.dim())
        if original.shape[dim] == len(u) and original.numel() == len(u) * len(v)
    }
    found = {dim: u.to(each.dtype) @ each @ v.to(each.dtype) for dim, each in matrices.items()}
    if len(found) < 2:
        return original / next(iter(found.values())) if found else None
    norms = {dim: torch.linalg.matrix_norm(each.float(), 2) for dim, each in matrices.items()}
    parts = {dim: float(found[dim].abs() / norms[dim]) for dim in found}  # of the largest singular value
    best = max(parts, key=lambda dim: parts[dim])
    sure = usual not in found or (parts[best] > 0.5 and parts[best] > 2 * parts[usual])
    return original / found[best if sure else usual]
