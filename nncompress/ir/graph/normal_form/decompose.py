"""One spelling per operation: composite ops become what torch itself computes them with.

An op that torch marks CompositeImplicitAutograd has no kernel of its own: `outer` is two views and a product,
`hstack` a `cat`, `swapaxes` a `transpose`, `inner` a matrix product between reshapes. Whoever reads the graph
would need a rule for each of them; after this pass it needs one for what they are made of. The result is the
same bit for bit, as torch runs these very steps.

Ops that passes, exporters and readers know by their own name stay whole (`WHOLE`). So does one whose steps
depend on a size that is not known: writing them down would fix the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from nncompress.ir.graph.normal_form.masked_writes import write_where
from nncompress.ir.graph.ops import op_name
from nncompress.ir.torch_logs import unlogged

aten = torch.ops.aten

_LAYERS = """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding_bag
    batch_norm instance_norm layer_norm group_norm rms_norm scaled_dot_product_attention matmul einsum cdist
    dropout feature_dropout alpha_dropout feature_alpha_dropout
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
"""
_VALUES = """
    softmax log_softmax relu6 selu prelu log_sigmoid where max min argsort var var_mean std std_mean one_hot
    max_pool1d max_pool2d max_pool3d avg_pool1d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d grid_sampler upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2
    fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn stft istft
"""
_MOVEMENT = """
    reshape flatten unflatten contiguous chunk unsafe_chunk split tensor_split narrow pad tile
    repeat_interleave native_channel_shuffle broadcast_to to type_as sym_size sym_stride size item
"""
WHOLE = frozenset((_LAYERS + _VALUES + _MOVEMENT).split())

# Rows by the matrix in whose range they lie: torch's own trusts its ends and wants aligned widths, which a
# pruned model has not; the other is of the package `transformers`, and unknown where that is missing.
_OF_EXPERTS = ("_grouped_mm", "grouped_mm_fallback")
_FEW = 16

_RRELU = (aten.rrelu.default, aten.rrelu_with_noise.default)

# A view that is legal for the memory layout of the example need not be legal for another one.
_VIEWS = (aten.view.default, aten._unsafe_view.default)


def decompose_composites(graph: fx.Graph) -> None:
    """Replace every composite op that is not `WHOLE` by its steps, in place."""
    for node in list(graph.nodes):
        if node.target in _RRELU:
            _fix_slope(node)
        elif is_composite(node.target):
            take_apart(graph, node)
        elif op_name(node) in _OF_EXPERTS and _chooses_matrices(node):
            take_apart(graph, node, by=_of_experts)
        elif node.target in (aten.index_put.default, aten.masked_scatter.default):
            write_where(node)


def _fix_slope(node: fx.Node) -> None:
    """`rrelu` in evaluation mode is a leaky relu with its mean slope: no noise that is handed over."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args)) | node.kwargs
    if not given.get("training", False):
        slope = (given.get("lower", 1 / 8) + given.get("upper", 1 / 3)) / 2
        node.target, node.args, node.kwargs = aten.leaky_relu.default, (node.args[0], slope), {}


def _chooses_matrices(node: fx.Node) -> bool:
    """Rows [S, K] and matrices [experts, K, N]; of other ranks, which the op takes, no network is."""
    given = [operand.meta.get("val") for operand in node.args[:2] if isinstance(operand, fx.Node)]
    return [each.dim() if isinstance(each, Tensor) else 0 for each in given] == [2, 3]


def _of_experts(
    rows: Tensor,
    weight: Tensor,
    offs: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[S, N] of rows [S, K] and weights [experts, K, N]; rows before offs[0] are the first expert's.

    Rows behind all are 0. Few experts multiply every row: less time and memory than a matrix for each row.
    """
    places = offs.new_ones(rows.shape[0]).cumsum(0, dtype=offs.dtype)  # from 1 on
    expert = torch.bucketize(places, offs)
    count = weight.shape[0]
    if count <= _FEW:
        its = torch.arange(count, device=offs.device).unsqueeze(1) == expert
        product = torch.where(its.unsqueeze(2), torch.matmul(rows, weight), 0).sum(0)
    else:
        product = torch.bmm(rows.unsqueeze(1), weight[expert.clamp(max=count - 1)]).squeeze(1)
        product = torch.where((expert < count).unsqueeze(1), product, 0)
    if bias is not None:
        product = product + bias
    return product if out_dtype is None else product.to(out_dtype)


def is_composite(target: Any) -> bool:
    """An op without a kernel of its own that this pass takes apart."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and target._schema.name.removeprefix("aten::") not in WHOLE
        and not target._schema.is_mutable
        and target.namespace == "aten"
        and torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    )


def take_apart(graph: fx.Graph, node: fx.Node, by: Callable[..., Any] | None = None) -> bool:
    """Replace one op by its steps, in place; False where that is not possible for all sizes.

    Args:
        by: takes the op's arguments and computes its result in those steps; without it the op is a composite.
    """
    operands: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), operands.append)
    operands = list(dict.fromkeys(operands))
    steps = _steps(node, operands, by or node.target.decompose)  # type: ignore[union-attr]
    if steps is None:
        return False
    made: dict[fx.Node, Any] = {}
    remaining = iter(operands)
    with graph.inserting_before(node):
        for step in steps.graph.nodes:
            if step.op == "placeholder":
                made[step] = next(remaining)
            elif step.op == "output":
                results = fx.map_arg(step.args[0], made.__getitem__)
            else:
                made[step] = copy = graph.node_copy(step, made.__getitem__)
                copy.target = aten.reshape.default if copy.target in _VIEWS else copy.target
                copy.meta = {"val": step.meta["val"]}
    if isinstance(results, list | tuple):
        for user in list(node.users):  # each reads one result by operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
    return True


def _steps(node: fx.Node, operands: list[fx.Node], by: Callable[..., Any]) -> fx.GraphModule | None:
    """The op traced on the shapes of its operands; None where that is not possible for all sizes."""
    target: Any = node.target
    values = [operand.meta.get("val") for operand in operands]
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not tensors or any(v is None for v in values):
        return None

    def call(*given: Any) -> Any:
        known = dict(zip(operands, given))
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        return by(*args, **kwargs)

    mode = tensors[0].fake_mode  # type: ignore[attr-defined]
    try:
        with unlogged(), _without_guards(getattr(mode, "shape_env", None)), _without_cache(mode):
            steps = make_fx(call, decomposition_table={}, tracing_mode="real")(*values)
    except Exception:  # whatever a kernel raises on fake tensors, and guards on sizes
        return None
    known = all("val" in s.meta for s in steps.graph.nodes if s.op == "call_function")
    stored = any(s.op == "get_attr" for s in steps.graph.nodes)
    itself = any(s.target is target for s in steps.graph.nodes)
    return steps if known and not stored and not itself else None


@contextmanager
def _without_cache(mode: Any) -> Iterator[None]:
    """Of what ops gave: to keep that, it asks questions on sizes that no op asks."""
    before, mode.cache_enabled = mode.cache_enabled, False
    try:
        yield
    finally:
        mode.cache_enabled = before


@contextmanager
def _without_guards(environment: Any) -> Iterator[None]:
    """Meanwhile a question on a free size is an error, but for whether it is 0 or 1: torch.export takes every
    free size for more, and forgets it in a file, of which it then asks again."""
    if environment is None:
        yield
        return
    before = dict(environment.var_to_range)
    several = ValueRanges(2, int_oo)
    try:
        environment.var_to_range.update(
            (size, bounds & several)
            for size, bounds in before.items()
            if bounds.upper >= 2 and not environment.is_unbacked_symint(size)
        )
        environment._update_version_counter()  # what it has worked out before
        with environment.error_on_new_guards():
            yield
    finally:
        environment.var_to_range.update(before)
        environment._update_version_counter()
