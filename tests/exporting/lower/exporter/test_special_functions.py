"""Functions whose words in ONNX would lose digits: right to float32 over 16 orders of magnitude."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model

MAGNITUDES = torch.cat([10 ** torch.linspace(-8, 8, 65), torch.linspace(0.05, 20, 64)])
NUMBERS = torch.cat([MAGNITUDES, -MAGNITUDES])
OTHERS = NUMBERS[torch.randperm(len(NUMBERS), generator=torch.Generator().manual_seed(0))]
FUNCTIONS = {
    "log1p": lambda x, y: torch.log1p(x),
    "expm1": lambda x, y: torch.expm1(x),
    "erfc": lambda x, y: torch.special.erfc(x),
    "erfcx": lambda x, y: torch.special.erfcx(x),
    "log_ndtr": lambda x, y: torch.special.log_ndtr(x),
    "xlog1py": torch.special.xlog1py,
    "remainder": torch.remainder,
    "remainder of a number": lambda x, y: torch.remainder(1.7, x),
    "remainder by a number": lambda x, y: torch.remainder(x, -1.7),
    "logaddexp2": torch.logaddexp2,
    "erfinv": lambda x, y: torch.erfinv(x / 20),
    "i0": lambda x, y: torch.special.i0(x),
    "i0e": lambda x, y: torch.special.i0e(x),
}


class All(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x, y) for function in FUNCTIONS.values())


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("special") / "m.onnx"
    write_onnx(Model.from_module(All().eval(), (NUMBERS, OTHERS)), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = session.run(None, {"x": NUMBERS.numpy(), "y": OTHERS.numpy()})
    return dict(zip(FUNCTIONS, map(torch.from_numpy, results), strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_exact_as_in_torch(found: dict[str, Tensor], name: str) -> None:
    exact = FUNCTIONS[name](NUMBERS.double(), OTHERS.double())
    own = (FUNCTIONS[name](NUMBERS, OTHERS).double() - exact).abs()
    allowed = torch.maximum(10 * own, 1e-5 * exact.abs())  # both round their arguments
    normal = exact.isfinite() & (exact.abs() > 1e-37) & (exact.abs() < 3e38)
    assert ((found[name] - exact).abs() <= allowed)[normal].all()
    torch.testing.assert_close(
        found[name].double()[~normal], exact.float().double()[~normal], equal_nan=True, atol=1e-37, rtol=0
    )


def test_the_ends_of_the_domain_are_those_of_torch(tmp_path) -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return torch.log1p(x), torch.expm1(x), torch.special.erfc(x), torch.special.log_ndtr(x)

    ends = torch.tensor([0.0, -0.0, -1.0, -2.0, torch.inf, -torch.inf, torch.nan, 3e38])
    write_onnx(Model.from_module(Ends().eval(), (ends,)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for got, right in zip(session.run(None, {"x": ends.numpy()}), Ends()(ends), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), right, equal_nan=True, rtol=1e-5, atol=0)
