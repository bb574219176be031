"""How many bits each weight gets under a budget of bytes: fewest where the outputs mind least.

Rounding a weight costs Σ F_i (w_i − q_i)², with F the Fisher information. All start at 8 bits; one after the
other goes to 4 the weight that costs least per byte it saves, until the model fits; then those go back to 8
for which there is room, dearest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nncompress.analysis.cost import cost
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import round_weight
from nncompress.ir.layers.weights import Layer
from nncompress.passes.quantize.choose import scale_axis

if TYPE_CHECKING:
    from torch import Tensor

OVERHEAD = 3072  # bytes that the ops of a lookup take in a file, about


def bits_within(
    model: Model,
    sharing: Mapping[str, Sequence[Layer]],
    information: Mapping[str, Tensor],
    share: float,
    original: int,
    saved: int,
) -> dict[str, int]:
    """8 or 4 per weight name, so that the model takes at most `share` of its `original` bytes.

    Args:
        saved: bytes of it that others in 8 bits save.

    Raises:
        UsageError: 4 bits everywhere are still too many.
    """
    bits = dict.fromkeys(sharing, 8)
    size = cost(model).bytes - saved
    prices, savings = {}, {}
    for name, layers_ in sharing.items():
        weight, axis = layers_[0].weight.value(), scale_axis(layers_)
        size -= 4 * weight.numel() - weight.numel() - 4 * weight.shape[axis]
        savings[name] = weight.numel() // 2 - OVERHEAD
        price = _price(weight, axis, 4, information[name]) - _price(weight, axis, 8, information[name])
        prices[name] = max(price, 0.0)
    open_ = sorted((n for n in bits if savings[n] > 0), key=lambda n: prices[n] / savings[n])
    for name in open_:
        if size <= share * original:
            break
        bits[name] = 4
        size -= sharing[name][0].weight.value().numel() // 2
    for name in sorted((n for n in bits if bits[n] == 4), key=lambda n: -prices[n]):  # the last was too many
        whole = sharing[name][0].weight.value().numel() // 2
        if size + whole <= share * original:
            bits[name], size = 8, size + whole
    if size > share * original:
        raise UsageError(
            "quantize: --size cannot be reached with 4 bits per weight",
            got=f"{share:g}",
            expected=f"at least {size / original:.3f}",
            remedy="prune or factorize first",
        )
    return bits


def _price(weight: Tensor, axis: int, bits: int, information: Tensor) -> float:
    stored, scales = round_weight(weight, axis, bits)
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    error = (stored * scales.reshape(shape) - weight).double()
    return float((information.double() * error.square()).sum())
