import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.curvature.autograd import finite
from nncompress.analysis.curvature.sensitivity import output_gradients, with_products
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(F.gelu(self.conv(x)).mean((2, 3)))


def test_agrees_with_the_jacobian():
    torch.manual_seed(0)
    module = Net().eval()
    model = Model.from_module(module, (torch.randn(2, 2, 5, 5),))
    x = torch.randn(32, 2, 5, 5)
    conv, head = (layer.node for layer in layers(model))
    found = output_gradients(model, [(conv, 1), (head, -1)], [(x,)] * 60)
    with torch.no_grad():
        hidden = module.conv(x)
        variance = module(x[:16]).var(correction=0)
    exact = torch.zeros(3, 3)
    for each in hidden:
        jacobian = torch.autograd.functional.jacobian(
            lambda h: module.head(F.gelu(h).mean((1, 2))), each
        )  # [4, 3, 3, 3]
        rows = jacobian.movedim(1, -1).reshape(-1, 3)
        exact += rows.T @ rows / len(hidden)
    exact = exact / variance / 4
    # a mean over 1920 draws: a standard error of 3 % of the largest entry
    torch.testing.assert_close(found[conv].float(), exact, rtol=0, atol=0.15 * float(exact.max()))
    identity = torch.eye(4) / variance / 4
    torch.testing.assert_close(found[head].float(), identity, rtol=0, atol=0.15 * float(identity.max()))
    assert all(p.grad is None for p in model.graph_module.parameters())
    assert all(p.requires_grad for p in model.graph_module.parameters())


class Undifferentiable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).argmax(1)


def test_a_model_without_gradients_is_refused():
    model = Model.from_module(Undifferentiable(), (torch.randn(2, 4),))
    with pytest.raises(UnsupportedError, match="cannot be differentiated"):
        output_gradients(model, [(next(layers(model)).node, -1)], [(torch.randn(3, 4),)])


class WithNumber(nn.Module):
    def __init__(self, number: bool) -> None:
        super().__init__()
        self.layer, self.number = nn.Linear(4, 4), number

    def forward(self, x):
        y = self.layer(x)
        return (y, y.square().mean()) if self.number else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_output_that_does_not_vary_counts_by_its_size_and_not_alone(dtype):
    traces = []
    for number in (False, True):
        torch.manual_seed(0)
        model = Model.from_module(WithNumber(number).to(dtype), (torch.randn(2, 4).to(dtype),))
        node = next(layers(model)).node
        found = output_gradients(model, [(node, -1)], [(torch.randn(32, 4).to(dtype),)])
        traces.append(float(found[node].trace()))
    assert traces[0] <= traces[1] <= 3 * traces[0]


def test_a_gradient_that_is_not_finite_is_refused():
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return (self.layer(x) * 0).abs().sqrt()  # its derivative at 0 is infinite

    model = Model.from_module(Overflowing(), (torch.randn(2, 4),))
    with pytest.raises(UnsupportedError, match="gradient at linear is not finite in float32"):
        output_gradients(model, [(next(layers(model)).node, -1)], [(torch.randn(3, 4),)])


@pytest.mark.parametrize("size", [1.0, 1e-22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_gradients_of_any_size_are_those_in_float64(size, dtype):
    torch.manual_seed(0)
    rows = (torch.randn(5000, 300) * torch.logspace(0, -3, 300) * size).to(dtype)
    total = torch.zeros(())
    for part in rows.split(1700):
        total = with_products(total, part)
    wanted = rows.double().T @ rows.double()
    spread = wanted.diagonal().sqrt()
    assert float(((total - wanted).abs() / (spread[:, None] * spread)).max()) < 1e-6
    torch.testing.assert_close(total, total.T, rtol=1e-6, atol=1e-6 * float(total.max()))


def test_gradients_of_nothing_and_complex_ones():
    nothing = with_products(torch.zeros(()), torch.zeros(4, 3))
    assert torch.equal(nothing, torch.zeros(3, 3).double())
    rows = torch.randn(7, 3, dtype=torch.complex64)
    wanted = (rows.mH @ rows).real.double()  # re re + im im
    torch.testing.assert_close(with_products(nothing, rows), wanted, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_is_no_number_is_in_the_total_it_is_added_to():
    total = with_products(torch.zeros(()), torch.randn(4, 3))
    rows = torch.randn(4, 3)
    rows[1, 2] = torch.nan
    assert total.isfinite().all()
    assert not with_products(total, rows).isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_a_gradient_is_finite_if_all_its_values_are_whatever_their_sum_is(value, dtype):
    largest = torch.finfo(dtype).max
    for gradient in (torch.full((4, 3), largest), torch.tensor([largest, largest, -largest, 1.0])):
        assert finite(gradient.to(dtype), "here").dtype == dtype
    with pytest.raises(UnsupportedError, match="gradient at here is not finite"):
        finite(torch.tensor([1.0, value, -value]).to(dtype), "here")
