"""A file is compared at more than one size of every dim that the graph leaves free."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from nncompress.errors import UnsupportedError, VerificationError
from nncompress.exporting.check.compare import compare
from nncompress.ir import Model
from nncompress.loading.compare import compare_with_source


class _Sums(nn.Module):
    """The sums of two inputs, of free lengths, each over its own."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum(1) + y.sum(1)


def _model(most: int = 4096) -> Model:
    batch = Dim("batch")
    shapes = {"x": {0: batch, 1: Dim("time", max=most)}, "y": {0: batch, 1: Dim("words", max=most)}}
    return Model.from_module(_Sums(), (torch.randn(2, 16, 3), torch.randn(2, 12, 3)), dynamic_shapes=shapes)


@pytest.mark.parametrize("position", [0, 1])
def test_a_file_that_is_right_at_the_usual_sizes_alone_is_refused(position: int) -> None:
    model = _model()
    usual = model.example_inputs()[position].shape[1]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [_Sums()(*inputs) * usual / inputs[position].shape[1]]

    with pytest.raises(VerificationError, match=f"{model.inputs[position].shape[1]} = "):
        compare(model, run, "a runtime")


def test_a_file_that_does_not_run_at_another_size_is_refused_as_that() -> None:
    model = _model()
    usual = [x.shape[1] for x in model.example_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if [x.shape[1] for x in inputs] != usual:
            raise UnsupportedError("no kernel", got="Reshape: 16 is not 48")
        return model.outputs_of(*inputs)

    with pytest.raises(VerificationError, match="every size that the graph leaves free") as refused:
        compare(model, run, "a runtime")
    assert "16 is not 48" in refused.value.got


def test_sizes_lie_within_the_bounds_of_the_graph() -> None:
    model = _model(most=20)
    seen = []

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(tuple(x.shape[1] for x in inputs))
        return model.outputs_of(*inputs)

    compare(model, run, "a runtime")
    assert all(2 <= size <= 20 for sizes in seen for size in sizes)
    assert all(len(set(sizes)) > 1 for sizes in zip(*seen, strict=True))


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


def test_what_is_called_batch_and_is_no_first_dim_is_moved_far() -> None:
    """A length alone is free, and is taken for the dim of samples: 1 and 3 of them would tell little."""
    shapes = {"x": {1: Dim("time", max=99)}}
    model = Model.from_module(_Last(), (torch.randn(1, 16, 3),), dynamic_shapes=shapes)

    def cut(x: Tensor) -> Tensor:
        return x[:, :8].sum(1)

    with pytest.raises(VerificationError, match="batch 19"):
        compare(model, lambda inputs: [cut(*inputs)], "a runtime")

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cut(x)

    with pytest.raises(VerificationError, match="at batch 19"):
        compare_with_source(model, Cut(), "net.pt", print)
