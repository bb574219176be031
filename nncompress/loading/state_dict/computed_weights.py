"""Weights that a wrapper computes from others, as one tensor: pruning masks, weight and spectral norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

_PARAMETRIZED = "parametrizations."


def computed(weights: Mapping[str, Tensor], wanted: Collection[str], module: nn.Module) -> dict[str, Tensor]:
    """`weights` with those computed that the architecture `module` stores as one tensor.

    weight_orig, weight_mask                                             weight = orig · mask
    weight_g, weight_v  or  parametrizations.weight.original0, original1 weight = g · v / |v|
    weight_orig, _u, _v  or  parametrizations.weight.original, .0._u, .0._v  weight = orig / (uᵀ W v)

    In the last, W is orig as a matrix, whose rows are the channels that come out.
    """
    plain = dict(weights)
    for name in weights:
        if name in wanted or name not in plain:
            continue
        base = name.removesuffix("_orig")
        if base != name and _alike(plain, name, f"{base}_mask"):
            plain[base] = plain.pop(name) * plain.pop(f"{base}_mask")
        elif base != name and {f"{base}_u", f"{base}_v"} <= plain.keys():
            plain[base] = _spectral(
                plain.pop(name), plain.pop(f"{base}_u"), plain.pop(f"{base}_v"), base, module
            )
        elif name.endswith(".original") and {f"{name[:-9]}.0._u", f"{name[:-9]}.0._v"} <= plain.keys():
            u, v = plain.pop(f"{name[:-9]}.0._u"), plain.pop(f"{name[:-9]}.0._v")
            base = name[:-9].replace(_PARAMETRIZED, "", 1)
            plain[base] = _spectral(plain.pop(name), u, v, base, module)
        elif name.endswith("_g") and f"{name[:-2]}_v" in plain:
            plain[name[:-2]] = _normed(plain.pop(name), plain.pop(f"{name[:-2]}_v"))
        elif name.endswith(".original0") and f"{name[:-1]}1" in plain:
            base = name.removesuffix(".original0").replace(_PARAMETRIZED, "", 1)
            plain[base] = _normed(plain.pop(name), plain.pop(f"{name[:-1]}1"))
    return plain


def _alike(plain: Mapping[str, Tensor], name: str, other: str) -> bool:
    return other in plain and plain[name].shape == plain[other].shape


def _normed(g: Tensor, v: Tensor) -> Tensor:
    if g.dim() not in (0, v.dim()) or any(n not in (1, m) for n, m in zip(g.shape, v.shape)):
        return v  # no norm of it: of another shape than this layer has, or told when the outputs are compared
    dims = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
    return g * v / v.norm(2, dims, keepdim=True)


def _spectral(original: Tensor, u: Tensor, v: Tensor, name: str, module: nn.Module) -> Tensor:
    try:
        layer = module.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        layer = module
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    matrix = original.transpose(0, 1) if transposed and original.dim() > 1 else original
    matrix = matrix.reshape(matrix.shape[0], -1) if matrix.dim() else matrix.reshape(1, 1)
    if u.shape != matrix.shape[:1] or v.shape != matrix.shape[1:]:
        return original  # of another shape than this layer has, which is told when it is filled
    return original / (u @ matrix @ v)
