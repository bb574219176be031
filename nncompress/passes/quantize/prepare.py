"""What a model says in other words, said so that its layers are seen: before anything is rounded."""

from __future__ import annotations

from nncompress.ir import Model
from nncompress.ir.edit.cells import spell_out_cells
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.edit.pools import pad_before_pools
from nncompress.ir.edit.products import plain_products


def prepare(model: Model) -> None:
    """Spell out cells, pad before pools, store computed weights, say products as usual, in place."""
    spell_out_cells(model)
    pad_before_pools(model)
    plain_products(model)
    if store_computed_weights(model):
        plain_products(model)
