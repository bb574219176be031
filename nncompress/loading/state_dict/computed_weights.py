"""Weights that a wrapper computes from others, as one tensor: pruning masks, weight and spectral norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

_PARAMETRIZED = "parametrizations."


def computed(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """`weights` with those computed that the architecture stores as one tensor; what does not fit together
    keeps its names.

    weight_orig, weight_mask                                             weight = orig · mask
    weight_g, weight_v  or  parametrizations.weight.original0, original1 weight = g · v / |v|
    weight_orig, _u, _v  or  parametrizations.weight.original, .0._u, .0._v  weight = orig / (uᵀ W v)

    In the last, W is orig as a matrix, whose rows are the channels along one dim.
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
            replace(names, base, _spectral(*(plain[each] for each in names)))
        elif name.endswith(".original") and {f"{name[:-9]}.0._u", f"{name[:-9]}.0._v"} <= plain.keys():
            names = name, f"{name[:-9]}.0._u", f"{name[:-9]}.0._v"
            replace(names, _unwrapped(name[:-9]), _spectral(*(plain[each] for each in names)))
        elif name.endswith("_g") and f"{name[:-2]}_v" in plain:
            replace((name, f"{name[:-2]}_v"), name[:-2], _normed(plain[name], plain[f"{name[:-2]}_v"]))
        elif name.endswith(".original0") and f"{name[:-1]}1" in plain:
            base = _unwrapped(name.removesuffix(".original0"))
            replace((name, f"{name[:-1]}1"), base, _normed(plain[name], plain[f"{name[:-1]}1"]))
    return plain


def _unwrapped(name: str) -> str:
    return name.replace(_PARAMETRIZED, "", 1)


def _alike(plain: Mapping[str, Tensor], name: str, other: str) -> bool:
    return other in plain and plain[name].shape == plain[other].shape


def _normed(g: Tensor, v: Tensor) -> Tensor | None:
    if g.dim() not in (0, v.dim()) or any(n not in (1, m) for n, m in zip(g.shape, v.shape)):
        return None
    dims = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
    return g * v / v.norm(2, dims, keepdim=True)


def _spectral(original: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """The dim of the channels is in no file: where several have the sizes of u and v, it is the one in which
    they are singular vectors, as of all others they make less."""
    if u.dim() != 1 or v.dim() != 1:
        return None
    matrices = [
        original.movedim(dim, 0).reshape(len(u), len(v))
        for dim in range(original.dim())
        if original.shape[dim] == len(u) and original.numel() == len(u) * len(v)
    ]
    found = [u.to(each.dtype) @ each @ v.to(each.dtype) for each in matrices]
    return original / max(found, key=abs) if found else None
