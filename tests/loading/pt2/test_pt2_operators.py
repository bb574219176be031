"""Operators of a `.pt2`: those that a model is made of, and none that indexes memory by unchecked numbers."""

from __future__ import annotations

import pytest
import torch
from hostile_operators import outcome

from nncompress.loading.json_schema import Rejected
from nncompress.loading.pt2.operators import operator_name

INDEXING = [
    *("embedding.default", "gather.default", "scatter.src", "scatter_add.default", "scatter_reduce.two"),
    *("index.Tensor", "index_put.default", "index_put_.default", "index_select.default", "take.default"),
    *("index_add.default", "index_copy.default", "index_fill.int_Scalar", "index_reduce.default"),
    *("put.default", "take_along_dim.default", "_unsafe_index.Tensor", "masked_scatter.default"),
    *("max_unpool2d.default", "max_unpool3d.default", "searchsorted.Tensor", "one_hot.default"),
    *(
        "as_strided.default",
        "unfold.default",
        "im2col.default",
        "col2im.default",
        "embedding_renorm_.default",
    ),
]


@pytest.mark.parametrize("name", INDEXING)
def test_hostile_indices_do_not_kill(name):
    assert operator_name(f"torch.ops.aten.{name}")
    packet, _, form = name.partition(".")
    assert outcome(getattr(getattr(torch.ops.aten, packet), form), seed=0, tries=60) == ""


def test_what_is_looked_for_is_found():
    """The same calls of an operator that writes where its indices point do kill the process."""
    assert outcome(torch.ops.aten._fft_r2c.default, seed=0, tries=60) == "killed by signal 11"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "max_pool2d_with_indices_backward.default",
            "lstm.data",
            "repeat_interleave.self_Tensor",
            "add.out",
            "sort.values",  # which write into what they are given, under another name than `out`
            "_linalg_slogdet.sign",
        ),
        *("_index_put_impl_.default", "segment_reduce.default", "_grid_sampler_2d_cpu_fallback.default"),
        *("embedding_dense_backward.default", "fbgemm_linear_int8_weight.default", "resize_.default"),
        *("set_.source_Storage", "from_file.default", "_fft_r2c.default", "_pack_padded_sequence.default"),
        "_stack.default",
    ],
)
def test_operator_that_trusts_its_arguments_is_refused(name):
    with pytest.raises(Rejected, match="none of those that a model is made of"):
        operator_name(f"torch.ops.aten.{name}")
