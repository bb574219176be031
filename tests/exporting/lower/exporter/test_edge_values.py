"""What is written computes what torch does where a random sample hardly comes: zeros, infinities, NaN, exact
multiples, the ends of integers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nncompress.errors import VerificationError
from nncompress.exporting.check.compare import distance
from nncompress.exporting.lower.rare_functions import gcd
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model
from nncompress.runtimes import open_artifact

Functions = dict[str, Callable[[Tensor, Tensor], Tensor]]
FLOATS = (0.0, -0.0, 0.1, -0.3, 0.6, -1.0, 2.0, -2.5, 7.0, 1e10, torch.inf, -torch.inf, torch.nan)
INTEGERS = (1, -1, 2, -3, 7, -8, 2**24 + 1, -(2**31) + 1, 2**31 - 1)
LONG = (*INTEGERS, 2**53 + 1, -(2**63) + 1, 2**63 - 1)

OF_FLOATS: Functions = {
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div floor by a number": lambda a, b: torch.div(a, 0.1, rounding_mode="floor"),
    "floor_divide": torch.floor_divide,
    "a number over": lambda a, b: a // -0.3,
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "xlogy": torch.xlogy,
    "xlogy of 0": lambda a, b: torch.xlogy(0, a),
    "xlogy of 1.5": lambda a, b: torch.xlogy(1.5, a),
    "xlogy by a number": lambda a, b: torch.xlogy(a, 0.0),
    "xlog1py": torch.special.xlog1py,
    "xlog1py of 0": lambda a, b: torch.special.xlog1py(0, a),
    "copysign": torch.copysign,
    "clamp by nan": lambda a, b: a.clamp(torch.nan, 1.0),
    "clamp to nan": lambda a, b: a.clamp(0, torch.nan),
    "clamp": lambda a, b: a.clamp(-1, 2.5),
    "copysign of a number": lambda a, b: torch.copysign(a, -0.0),
    "atan2": torch.atan2,
    "atan2 of zeros": lambda a, b: torch.atan2(a * 0.0, b * 0.0),
    "angle": lambda a, b: a.angle(),
    "hypot": lambda a, b: torch.hypot(a * 1e25, b * 1e25),
    "hypot of little": lambda a, b: torch.hypot(a * 1e-30, b * 1e-30),
    "sign": lambda a, b: a.sign(),
    "sgn": lambda a, b: b.sgn(),
    "heaviside": torch.heaviside,
    "lerp": lambda a, b: torch.lerp(a, b, -1.0),
    "lerp beyond half": lambda a, b: torch.lerp(a, b, 0.75),
    "lerp by a tensor": lambda a, b: torch.lerp(a, b, b),
    "median": lambda a, b: torch.stack([a, b], 1).median(1)[0],
    "place of the median": lambda a, b: torch.stack([b, a, a], 1).median(1)[1][a.isnan() | b.isnan()],
    "median of all": lambda a, b: torch.stack([a.median(), a.nanmedian()]),
    "place of the largest so far": lambda a, b: torch.stack([a, b, b], 1).cummax(1)[1],
    "place of the smallest so far": lambda a, b: torch.stack([b, a, b], 1).cummin(1)[1],
}
OF_INTEGERS: Functions = {
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "div floor by a number": lambda a, b: torch.div(a, -3, rounding_mode="floor"),
    "div trunc by a number": lambda a, b: torch.div(a, 2, rounding_mode="trunc"),
    "//": lambda a, b: a // b,
    "fmod": torch.fmod,
    "fmod by a number": lambda a, b: torch.fmod(a, -3),
    "%": lambda a, b: a % b,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "copysign": torch.copysign,
    "isnan": lambda a, b: a.isnan(),
    "round": lambda a, b: a.round(),
    "xlogy": lambda a, b: torch.xlogy(a.abs(), b.abs()),
    "atan2": torch.atan2,
    "atan2 of 0": lambda a, b: torch.atan2(torch.zeros_like(a), b),
    "angle": lambda a, b: a.angle(),
    "erfc": lambda a, b: (a % 6).erfc(),
    "erfinv": lambda a, b: (a % 3 - 1).erfinv(),
    "log_ndtr": lambda a, b: torch.special.log_ndtr(a % 9 - 4),
    "i0": lambda a, b: torch.i0(a % 20),
    "i0e": lambda a, b: torch.special.i0e(b % 20),
    "erfcx": lambda a, b: torch.special.erfcx(b % 6),
    "gcd": torch.gcd,
    "relu": lambda a, b: a.relu(),
}
OF_SHORT: Functions = {
    "lcm": torch.lcm,
    "relu": lambda a, b: a.relu(),
    "neg": lambda a, b: -a,
    "square": lambda a, b: a.square(),
    "power": lambda a, b: b**2,
    "clamp": lambda a, b: a.clamp(2, 7),
    "hardtanh": lambda a, b: nn.functional.hardtanh(b, 0, 6),
    "threshold": lambda a, b: nn.functional.threshold(a, 3, 1),
    "<<": lambda a, b: a << 2,
    ">>": lambda a, b: b >> 1,
    "where": lambda a, b: torch.where(a > b, a, b),
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
}


class All(nn.Module):
    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(a, b) for function in self.functions.values())


@pytest.mark.parametrize(
    ("functions", "values", "dtype"),
    [
        (OF_FLOATS, FLOATS, torch.float32),
        (OF_INTEGERS, LONG, torch.int64),
        (OF_INTEGERS, INTEGERS, torch.int32),
        (OF_SHORT, (0, 1, -1, 12, -18, 255, -(2**15) + 1, 2**15 - 1), torch.int16),
        (OF_SHORT, (0, 1, -1, 12, -18, 127, -127), torch.int8),
        (OF_SHORT, (0, 1, 12, 18, 254, 255), torch.uint8),
    ],
    ids=["float32", "int64", "int32", "int16", "int8", "uint8"],
)
def test_every_pair_gives_what_it_gives_in_torch(tmp_path, functions, values, dtype) -> None:
    given = [torch.tensor(each, dtype=dtype) for each in zip(*itertools.product(values, values))]
    whole = All(functions).eval()
    write_onnx(Model.from_module(whole, tuple(given), dynamic_batch=False), tmp_path / "m.onnx")
    got = open_artifact(tmp_path / "m.onnx").run(*given)
    found = dict(zip(functions, map(torch.from_numpy, got), strict=True))
    right = dict(zip(functions, whole(*given), strict=True))
    torch.testing.assert_close(found, right, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_the_greatest_common_divisor_with_the_least_number_has_the_sign_that_torch_gives_it(dtype) -> None:
    least = torch.iinfo(dtype).min
    values = torch.tensor(
        [least, least + 1, 0, 1, -1, 3, 5, 6, -7, 12, 100, torch.iinfo(dtype).max], dtype=dtype
    )
    a, b = (each.flatten() for each in torch.meshgrid(values, values, indexing="ij"))
    torch.testing.assert_close(gcd(a, b), torch.gcd(a, b))


def test_a_stable_sort_keeps_the_order_of_equal_ones(tmp_path) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            sorted_twice = *torch.sort(x, stable=True), *torch.sort(x, dim=0, stable=True, descending=True)
            return (
                *sorted_twice,
                x.argsort(dim=0, stable=True),
                torch.argsort(x, descending=True, stable=True),
            )

    x = torch.randint(0, 3, (4, 50))
    write_onnx(Model.from_module(Sorted().eval(), (x,)), tmp_path / "m.onnx")
    for got, right in zip(open_artifact(tmp_path / "m.onnx").run(x), Sorted()(x), strict=True):
        assert torch.equal(torch.from_numpy(got), right)


def test_values_of_another_type_are_another_result() -> None:
    with pytest.raises(VerificationError, match="values of int8"):
        distance("here", torch.ones(2, dtype=torch.uint8), torch.ones(2, dtype=torch.int8), "float32")


def test_outputs_have_the_types_that_they_have_in_torch(tmp_path) -> None:
    class Typed(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
            return x.sum(1), n << 1, n >> 2

    given = (torch.randn(2, 3).half(), torch.randint(0, 255, (2, 3), dtype=torch.uint8))
    write_onnx(Model.from_module(Typed().eval(), given), tmp_path / "m.onnx")
    got = open_artifact(tmp_path / "m.onnx").run(*given)
    for found, right in zip(got, Typed()(*given), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), right)


def test_halves_are_divided_as_float32_with_numbers_as_they_are(tmp_path) -> None:
    class Divided(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return x // 0.1, torch.div(x, 0.1, rounding_mode="trunc"), x // y, x // torch.tensor(0.3)

    x = torch.arange(-40, 41).half()
    y = (torch.arange(81) * 0.1 + 0.1).half()
    write_onnx(Model.from_module(Divided().eval(), (x, y)), tmp_path / "m.onnx")
    for got, right in zip(open_artifact(tmp_path / "m.onnx").run(x, y), Divided()(x, y), strict=True):
        assert torch.equal(torch.from_numpy(got), right)


def test_a_power_of_whole_numbers_that_is_not_right_is_named(tmp_path) -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return x.abs() ** n.abs()

    given = (torch.tensor([3, 10]), torch.tensor([50, 30]))
    model = Model.from_module(Power().eval(), given)
    with pytest.raises(VerificationError, match="integers differ") as refused:
        write_onnx(model, tmp_path / "m.onnx")
    assert "pow" in refused.value.remedy
    assert "floating point" in refused.value.remedy
