"""The same function in a form that rounding hurts less and integer kernels fit better."""

from __future__ import annotations

from fnmatch import fnmatch

from nncompress.analysis.int8_plan import norms_between
from nncompress.ir import Model
from nncompress.ir.edit.fold import convolve_norm, fold_batch_norms, norm_name
from nncompress.passes.base import Context
from nncompress.passes.quantize.choose import choose, integer_layers
from nncompress.passes.quantize.equalization.channel_scales import scale_channels
from nncompress.passes.quantize.equalization.cross_layer import equalize


def condition(model: Model, mode: str, keep: tuple[str, ...], cross_layer: bool, context: Context) -> None:
    """Fold and convolve batch norms, then scale channels, in place; `cross_layer`: equalize layers first."""
    fold_batch_norms(model)
    if cross_layer:
        equalized = equalize(model)
        context.notes.append(f"channels equalized between {len(equalized)} pairs of layers")
    if mode != "static":
        return
    norms = _convolve_norms(model, keep)
    if norms:
        context.notes.append(f"{norms} batch norms run in int8, as 1×1 convolutions of single channels")
    if context.data is not None:
        batches = context.data.batches(context.batch_size, limit=context.limit)
        samples = (batch.inputs for batch in batches)
        scale_channels(model, samples, context.progress, context.limit)


def _convolve_norms(model: Model, keep: tuple[str, ...]) -> int:
    """Make convolutions of the batch norms that would else be float ops between int8 layers; how many."""
    chosen, _ = choose(model, keep)
    norms = norms_between(model, integer_layers(chosen, "static"))
    wanted = [norm for norm in norms if not any(fnmatch(norm_name(norm), pattern) for pattern in keep)]
    for norm in wanted:
        convolve_norm(model, norm)
    if wanted:
        model.refresh()
    return len(wanted)
