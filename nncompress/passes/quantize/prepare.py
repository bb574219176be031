"""What a model says in other words, said so that its layers are seen: before anything is rounded."""

from __future__ import annotations

from nncompress.ir import Model
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.edit.pools import pad_before_pools
from nncompress.ir.edit.products import plain_products
from nncompress.ir.edit.recurrent.cells import spell_out_cells
from nncompress.passes.quantize.choose import HEAD


def prepare(model: Model, *, include_head: bool) -> None:
    """Spell out cells, pad before pools, store computed weights, say products as usual, in place.

    Args:
        include_head: layers of a detection head are like all others.
    """
    if include_head:
        model.metadata.pop(HEAD, None)
    spell_out_cells(model)
    pad_before_pools(model)
    plain_products(model)
    if store_computed_weights(model):
        plain_products(model)
