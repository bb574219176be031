"""Functions of whole numbers and the gamma function, which no format has a word for."""

from __future__ import annotations

from math import inf, log, nan, pi

import torch
from torch import Tensor

# after so many steps of Euclid's every pair is done (Lamé 1844): of the two largest of Fibonacci's numbers
_EUCLID = {torch.int64: 91, torch.int32: 45, torch.int16: 22, torch.int8: 10, torch.uint8: 12}
_SHIFT = 7  # Stirling's series is right to 1e-11 from there on


def gcd(a: Tensor, b: Tensor) -> Tensor:
    """Of the least number, which has no abs, torch leaves the sign to the steps: each gives it to every other
    rest."""
    kind = torch.promote_types(a.dtype, b.dtype)
    wide = torch.promote_types(kind, torch.int32)
    a, b = (x.to(wide).abs().to(kind).to(wide) for x in (a, b))
    a, b = torch.minimum(a, b), torch.maximum(a, b)  # what has no abs divides nothing
    least, turned = a < 0, torch.ones_like(a, dtype=torch.bool)
    for step in range(_EUCLID[kind]):
        done = b == 0
        rest = torch.remainder(a, torch.where(done, 1, b))
        if not step:
            rest = torch.where(least & (rest != 0) & ~done, b - rest, rest)
        a, b, turned = torch.where(done, a, b), rest, torch.logical_xor(turned, ~done)
    return torch.where(least & turned & (a > 0), -a, a).to(kind)


def lcm(a: Tensor, b: Tensor) -> Tensor:
    kind = torch.promote_types(a.dtype, b.dtype)
    wide = torch.promote_types(kind, torch.int32)
    common = gcd(a, b).to(wide)
    share = torch.floor_divide(a.to(wide), torch.where(common == 0, 1, common.abs()))  # least / -1 ends it
    return (share * b.to(wide)).abs().to(kind)


def lgamma(x: Tensor) -> Tensor:
    """In float64, of which differences near the zeros at 1 and 2 leave enough."""
    kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    x = x.to(torch.float64)
    y, part = torch.where(x < 0.5, 1 - x, x), x - torch.round(x)
    far, product = y + _SHIFT, y
    for step in range(1, _SHIFT):
        product = product * (y + step)
    inverse = 1 / far
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    above = (far - 0.5) * torch.log(far) - far + 0.5 * log(2 * pi) + series - torch.log(product)
    above = torch.where(y == inf, inf, above)
    mirrored = log(pi) - torch.log(torch.sin(pi * part).abs()) - above
    pole = (x == -inf) | ((x <= 0) & (part == 0))
    return torch.where(pole, inf, torch.where(x < 0.5, mirrored, above)).to(kind)


def digamma(x: Tensor) -> Tensor:
    kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    x = x.to(torch.float64)
    y, part = torch.where(x < 0.5, 1 - x, x), x - torch.round(x)
    far = y + _SHIFT
    square = 1 / (far * far)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    above = torch.log(far) - 0.5 / far - series
    for step in range(_SHIFT):
        above = above - 1 / (y + step)
    mirrored = above - pi * torch.cos(pi * part) / torch.sin(pi * part)
    found = torch.where(x < 0.5, mirrored, above)
    found = torch.where((x < 0) & (part == 0) | (x == -inf), nan, found)
    return torch.where(x == 0, -1 / x, found).to(kind)
