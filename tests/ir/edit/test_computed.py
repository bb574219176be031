import warnings

import torch
from networks import built_once
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from nncompress.ir import Model
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.edit.products import plain_products
from nncompress.ir.layers.weights import layers


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 per output (Qiao et al. 2019)."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


class Computed(nn.Module):
    """Computed weights, and two that are to be left: a table of buffers, a large outer product."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.old = nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
        self.new = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.standard = Standardised(8, 8, 1)
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.base, self.down, self.up = (nn.Parameter(torch.randn(s)) for s in ((8, 8), (8, 2), (2, 8)))
        self.column, self.row = nn.Parameter(torch.randn(8, 1)), nn.Parameter(torch.randn(1, 80))
        self.register_buffer("frequencies", torch.rand(8, 4))

    def forward(self, x):
        x = F.relu(self.standard(F.relu(self.new(F.relu(self.old(x))))))
        x = self.spectral(x.mean((2, 3)))[:, None]
        x = self.attention(x, 2 * x, 3 * x)[0][:, 0]
        x = x @ (self.base + self.down @ self.up)
        return x @ torch.cos(self.frequencies * 2), x @ (self.column @ self.row)


@built_once
def make() -> Model:
    torch.manual_seed(3)
    return Model.from_module(Computed().eval(), (torch.randn(2, 3, 8, 8),))


def test_computed_weights_become_layers_and_the_function_stays():
    model, changed = make(), make()
    names = store_computed_weights(changed)
    assert {layer.name for layer in layers(changed)} >= {
        "old", "new", "standard", "spectral", "attention.in_proj", "attention.in_proj#2",
        "attention.in_proj#3",
        "base",
    }  # fmt: skip
    assert {"new.weight", "standard.weight", "spectral.weight", "attention.in_proj.weight"} <= set(names)
    stored = set(changed.state_dict())
    assert not [
        name for name in stored if "parametrizations" in name or name.endswith(("_g", "_v", "down", "up"))
    ]
    assert {"column", "row", "frequencies"} <= stored  # no layer
    for seed in (1, 2):
        inputs = model.example_inputs(3, seed=seed)
        for expected, got in zip(model.outputs_of(*inputs), changed.outputs_of(*inputs)):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert store_computed_weights(changed) == []


def test_another_form_of_a_weight_has_its_name():
    class Forms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.turned = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 6))
            self.scale, self.narrow = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(8, 6).half())

        def forward(self, x):
            return x @ (self.matrix * self.scale) @ self.turned.T @ self.narrow.float()

    model = Model.from_module(Forms(), (torch.randn(2, 8),))
    x = torch.randn(3, 8)
    expected = model(x)
    assert store_computed_weights(model) == ["matrix", "turned", "narrow"]
    assert (
        [layer.name for layer in layers(model)] == list(model.state_dict()) == ["matrix", "turned", "narrow"]
    )
    torch.testing.assert_close(model(x), expected)


def test_a_weight_that_others_read_too_is_not_stored_twice():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return F.linear(F.linear(x, self.weight), 2 * self.weight)

    model = Model.from_module(Shared(), (torch.randn(2, 8),))
    assert store_computed_weights(model) == []
    assert list(model.state_dict()) == ["weight"]


def test_a_product_with_a_turned_matrix_is_a_linear_layer():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5))
            self.last = nn.Parameter(torch.randn(7, 5))

        def forward(self, x):
            return (self.bias + x @ self.weight.T) @ self.last.mT

    torch.manual_seed(4)
    model = Model.from_module(Written(), (torch.randn(2, 3, 8),))
    x = torch.randn(4, 3, 8)
    expected = model(x)
    plain_products(model)
    assert [(each.kind, each.name, each.bias is not None) for each in layers(model)] == [
        ("linear", "weight", True),
        ("linear", "last", False),
    ]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_an_added_vector_that_widens_the_product_is_no_bias():
    class Widened(nn.Module):
        def __init__(self, outputs: int, biases: int) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, outputs))
            self.vector = nn.Parameter(torch.randn(biases))

        def forward(self, x):
            return x @ self.matrix + self.vector

    for outputs, biases, op in ((1, 5, "matmul"), (6, 1, "matmul"), (6, 6, "addmm")):
        model = Model.from_module(Widened(outputs, biases), (torch.randn(2, 8),))
        before, x = model.copy(), torch.randn(3, 8)
        plain_products(model)
        assert [layer.kind for layer in layers(model)] == [op]
        torch.testing.assert_close(model(x), before(x))


def test_a_weight_that_an_iteration_computes():
    class Orthonormalised(nn.Module):
        """Björck & Bowie 1971: every step reads the last one's result three times."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(8) + 0.05 * torch.randn(8, 8))

        def forward(self, x):
            w = self.weight
            for _ in range(15):
                w = 1.5 * w - 0.5 * w @ w.T @ w
            return F.linear(x, w)

    model = Model.from_module(Orthonormalised(), (torch.randn(2, 8),))
    x = torch.randn(4, 8)
    expected = model(x)
    assert store_computed_weights(model) == ["weight"]
    torch.testing.assert_close(model(x), expected)
    (layer,) = layers(model)
    torch.testing.assert_close(layer.weight.value() @ layer.weight.value().T, torch.eye(8), rtol=0, atol=1e-4)
