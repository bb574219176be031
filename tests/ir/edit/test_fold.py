import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.ir import Model
from nncompress.ir.edit.fold import convolve_norm, fold_batch_norms, is_affine, norm_names
from nncompress.ir.graph.ops import op_name


def settle(module: nn.Module, *shape: int) -> nn.Module:
    torch.manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight)  # negative ones too
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        for _ in range(5):
            module.train()(torch.randn(8, *shape) * 2 + 1)
    return module.eval()


def norms(model: Model) -> int:
    return sum(op_name(node) == "batch_norm" for node in model.graph.nodes)


FOLDABLE = {
    "plain": (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), (3, 8, 8)),
    "bias": (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), (3, 8, 8)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8, affine=False), (4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (4, 5, 5)),
    "grouped transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), (6, 5, 5)),
    "conv1d": (nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), (3, 9)),
    "linear": (nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5), (7,)),
}


@pytest.mark.parametrize("case", FOLDABLE)
def test_same_function_without_the_batch_norm(case):
    layer, norm, shape = FOLDABLE[case]
    module = settle(nn.Sequential(layer, norm, nn.ReLU()), *shape)
    model = Model.from_module(module, (torch.randn(2, *shape),))
    assert fold_batch_norms(model) == [("0", "1")]
    assert norms(model) == 0
    x = torch.randn(5, *shape)
    expected = module.double()(x.double())
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


class Shared(nn.Module):
    """One convolution before two batch norms: folding would need two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.conv(F.relu(self.a(self.conv(x)))))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class AfterAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x) + x)


class Tokens(nn.Module):
    """Batch norm over dim 1 of [N, C, L] behind a linear layer that makes L."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x[:, :, 0]))


class Weighted(nn.Module):
    """addmm with a factor before its bias, or with one bias for all outputs."""

    def __init__(self, beta: float = 0.5, biases: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(biases))
        self.norm, self.beta = nn.BatchNorm1d(3), beta

    def forward(self, x):
        return self.norm(torch.addmm(self.bias, x[:, 0, 0], self.weight, beta=self.beta))


class OneBias(Weighted):
    def __init__(self) -> None:
        super().__init__(beta=1, biases=1)


@pytest.mark.parametrize("network", [Shared, ReadTwice, AfterAdd, Tokens, Weighted, OneBias])
def test_what_only_looks_like_a_foldable_norm_stays(network):
    module = settle(network(), 3, 8, 8)
    model = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    before, count = model.state_dict(), norms(model)
    assert fold_batch_norms(model) == []
    assert norms(model) == count
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_norms_in_training_are_not_folded():
    model = Model.from_module(
        settle(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), 3, 8, 8), (torch.randn(2, 3, 8, 8),)
    )
    model.set_training(True)
    assert fold_batch_norms(model) == []


@pytest.mark.parametrize("shape", [(6, 9), (6, 5, 4), (6, 3, 4, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_is_a_convolution_of_single_channels(shape, affine):
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)](6, affine=affine, eps=0.1)
    module = settle(nn.Sequential(nn.ReLU(), norm), *shape)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = Model.from_module(module, (torch.randn(2, *shape),))
    (node,) = [node for node in model.graph.nodes if is_affine(model, node)]
    assert norm_names(model) == ["1"]
    convolve_norm(model, node)
    model.refresh()
    assert norms(model) == 0
    stored = {name: tuple(tensor.shape) for name, tensor in model.graph_module.named_parameters()}
    assert stored == {"1.weight": (6, 1, *[1] * (len(shape) - 1)), "1.bias": (6,)}
    x = torch.randn(5, *shape)
    torch.testing.assert_close(model(x).double(), module.double()(x.double()), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_called_twice_is_convolved_where_asked():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(F.relu(self.norm(x)))

    module = settle(Twice(), 3, 4, 4)
    model = Model.from_module(module, (torch.randn(2, 3, 4, 4),))
    x = torch.randn(5, 3, 4, 4)
    for left in (1, 0):
        convolve_norm(model, next(node for node in model.graph.nodes if is_affine(model, node)))
        model.refresh()
        assert norms(model) == left
        torch.testing.assert_close(model(x), module(x), rtol=1e-4, atol=1e-5)


class Conditioned(nn.Module):
    """The gain of its batch norm is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        norm = self.norm
        gain = 1 + x.mean((0, 2, 3)).sum() * norm.weight
        return F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, gain, norm.bias, eps=norm.eps)


def test_a_batch_norm_with_a_computed_gain_is_left():
    module = Conditioned().eval()
    model = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    assert fold_batch_norms(model) == []
    assert norm_names(model) == []
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(model(x), module(x))


class Odd(nn.Module):
    """Batch norms whose parameters lie in the root module, or are one tensor twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.gain, self.shift = how, nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("variance", torch.rand(3) + 0.5)

    def forward(self, x):
        shift = self.gain if self.how == "one tensor" else self.shift
        return F.batch_norm(x, self.mean, self.variance, self.gain, shift)


@pytest.mark.parametrize("how", ["root", "one tensor"])
def test_parameters_of_no_module_and_one_for_both_are_convolved(how):
    module = Odd(how).eval()
    model = Model.from_module(module, (torch.randn(2, 3, 4, 4),))
    (node,) = [node for node in model.graph.nodes if is_affine(model, node)]
    convolve_norm(model, node)
    model.refresh()
    assert norms(model) == 0
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(model(x), module(x), rtol=1e-4, atol=1e-5)
