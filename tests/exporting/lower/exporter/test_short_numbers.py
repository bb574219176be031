"""Short integers, truth values, single numbers and nothing are computed as torch does, in a file, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nncompress.errors import UnsupportedError
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model
from nncompress.runtimes import open_artifact

Functions = dict[str, Callable[[Tensor], Tensor]]
PLACES = torch.tensor([[1, 1, 0, 2, 2], [0, 0, 3, 3, 1], [4, 4, 4, 4, 4]])

OF_ALL: Functions = {
    "largest": lambda x: x.amax(1),
    "largest of all": lambda x: x.amax(),
    "least of all, in its place": lambda x: x.amin((), keepdim=True),
    "place of the largest": lambda x: x.max(1).indices,
    "in order": lambda x: x.sort(1).values,
    "most frequent": lambda x: x.mode(1).values,
    "product": lambda x: x.prod(1),
    "product so far": lambda x: x.cumprod(1),
    "sum without NaN": lambda x: x.nansum(1),
    "sum in 8 bits": lambda x: x.sum(1, dtype=torch.int8),
    "sum so far in 16 bits": lambda x: x.cumsum(1, dtype=torch.int16),
    "product in unsigned bytes": lambda x: (x * 1.0).abs().prod(1, dtype=torch.uint8),
    "mean in floats": lambda x: x.mean(1, dtype=torch.float32),
    "softmax in floats": lambda x: x.softmax(1, dtype=torch.float32),
    "largest at each place": lambda x: x.scatter_reduce(1, PLACES, x, "amax"),
    "sum at each place": lambda x: torch.zeros_like(x).scatter_add(1, PLACES, x),
    "masked": lambda x: x.masked_fill(x > 0, 0),
    "chosen": lambda x: torch.where(x > 0, x, x.flip(1)),
    "whole quotient": lambda x: x // 3,
    "powers": lambda x: torch.vander(x[:, 0]),
}
OF_INTEGERS: Functions = {
    "median": lambda x: x.nanmedian(1).values,
    "matrix product": lambda x: x @ x.mT,
    "dot product": lambda x: torch.dot(x[0], x[1]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "below the diagonal": lambda x: x.tril(),
    "trace": lambda x: x.trace(),
    "diagonal": lambda x: x.diagonal(),
    "quotient by more than there is": lambda x: x // 300,
    "rest of more than there is": lambda x: x % 300,
    "between ends that wrap": lambda x: x.clamp(-5, 100),
    "mean at each place": lambda x: x.scatter_reduce(1, PLACES, x, "mean"),
    "mean at each place alone": lambda x: x.scatter_reduce(1, PLACES, x, "mean", include_self=False),
}
OF_HALVES: Functions = {
    "sum at each place": lambda x: torch.zeros_like(x).scatter_add(1, PLACES, x),
    "product at each place": lambda x: x.scatter_reduce(1, PLACES, x, "prod"),
    "mean at each place": lambda x: x.scatter_reduce(1, PLACES, x, "mean"),
}
OF_ONE: Functions = {
    "sum": lambda x: x.sum(-1, keepdim=True),
    "product": lambda x: x.prod(-1),
    "largest": lambda x: x.amax(-1),
    "all": lambda x: x.all(-1),
    "median": lambda x: x.median(-1).values,
    "most frequent": lambda x: x.mode(-1).values,
    "first": lambda x: x.topk(1).values,
    "in order": lambda x: x.sort().values,
    "place in order": lambda x: x.kthvalue(1).indices,
    "product so far": lambda x: x.cumprod(0),
    "scattered": lambda x: x.scatter(0, torch.tensor(0), 7),
    "turned round": lambda x: x.flip(-1),
    "filled": lambda x: x.index_fill(0, torch.tensor(0), x + 1),
    "found": lambda x: torch.searchsorted(torch.arange(9.0), x.float()),
    "found in a bucket": lambda x: torch.bucketize(x.float(), torch.arange(9.0), right=True),
}
OF_NOTHING: Functions = {
    "sum": lambda x: x.sum(1),
    "product": lambda x: x.prod(1),
    "mean": lambda x: x.float().mean(1, keepdim=True),
    "all": lambda x: x.all(1),
    "any": lambda x: x.any(1),
    "norm": lambda x: torch.linalg.vector_norm(x.float(), 2, 1),
    "logsumexp": lambda x: x.float().logsumexp(1),
    "deviation": lambda x: x.float().std(1, correction=0),
    "matrix product": lambda x: x.float() @ x.float().mT,
    "beside something": lambda x: torch.cat([x, x.new_ones(len(x), 2)], 1),
    "in parts": lambda x: x.unflatten(1, (2, -1)).sum((1, 2)),
}


class All(nn.Module):
    def __init__(self, functions: Functions, taken: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions, self.taken = functions, taken

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(self.taken(x)) for function in self.functions.values())


def _values(dtype: torch.dtype) -> Tensor:
    values = torch.tensor([[90, -7, 0, 120, 5], [64, 33, -128, 2, 2], [-1, 127, -90, 1, 0]])
    return (values > 0) if dtype == torch.bool else values.to(dtype)


@pytest.mark.parametrize(
    ("functions", "dtype"),
    [
        *((OF_ALL, dtype) for dtype in (torch.bool, torch.int8, torch.uint8, torch.int32, torch.int64)),
        *((OF_INTEGERS, dtype) for dtype in (torch.int8, torch.uint8, torch.int16, torch.int64)),
        (OF_HALVES, torch.float16),
    ],
    ids=lambda each: str(each).removeprefix("torch.") if isinstance(each, torch.dtype) else "",
)
def test_narrow_numbers_give_what_they_give_in_torch(tmp_path, functions, dtype) -> None:
    _check(tmp_path, functions, _values(dtype), lambda x: x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_along_a_dim_that_a_single_number_has_not(tmp_path, dtype) -> None:
    _check(tmp_path, OF_ONE, _values(dtype), lambda x: x[1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_what_nothing_gives(tmp_path, dtype) -> None:
    _check(tmp_path, OF_NOTHING, _values(dtype), lambda x: x[:, :0])


def test_a_number_that_nothing_is_filled_with_may_be_that_of_the_samples(tmp_path) -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :0].new_full((2, 2), x.shape[0])

    write_onnx(Model.from_module(Counted(), (torch.randn(2, 3),)), tmp_path / "m.onnx")
    for samples in (2, 5):
        (found,) = open_artifact(tmp_path / "m.onnx").run(torch.randn(samples, 3))
        assert (found == samples).all()


def test_what_runs_along_a_dim_only_is_refused_of_a_single_number_with_its_remedy(tmp_path) -> None:
    model = Model.from_module(
        All({"none": lambda x: x.topk(0).values}, lambda x: x[1, 1]), (torch.randn(3, 5),)
    )
    with pytest.raises(UnsupportedError):
        write_onnx(model, tmp_path / "m.onnx")


def test_the_product_of_whole_numbers_keeps_its_last_digits(tmp_path) -> None:
    x = torch.tensor([[3] * 39, [3] * 38 + [-7], [2**32 + 1, *[1] * 38]])
    _check(tmp_path, {"product": lambda x: x.prod(1)}, x, lambda x: x)


def _check(tmp_path, functions: Functions, x: Tensor, taken: Callable[[Tensor], Tensor]) -> None:
    whole = All(functions, taken).eval()
    write_onnx(Model.from_module(whole, (x,), dynamic_batch=False), tmp_path / "m.onnx")
    found = dict(zip(functions, map(torch.as_tensor, open_artifact(tmp_path / "m.onnx").run(x)), strict=True))
    right = dict(zip(functions, whole(x), strict=True))
    torch.testing.assert_close(found, right, equal_nan=True)
