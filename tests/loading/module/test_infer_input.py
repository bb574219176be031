"""`--input`, and the guess where it is left out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nncompress.errors import UsageError
from nncompress.ir.graph.stated_input import InputShape, parse_input
from nncompress.loading import load_module
from nncompress.loading.module.infer_input import example_from_shapes, infer_input

# --- parsing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("1x3x32x32", [((1, 3, 32, 32), None)]),
        ("4", [((4,), None)]),
        ("1×3×8×8", [((1, 3, 8, 8), None)]),
        ("1x3x32x32,1x16:int64", [((1, 3, 32, 32), None), ((1, 16), "int64")]),
        ("1x16:int64, 1x16:bool", [((1, 16), "int64"), ((1, 16), "bool")]),
        ("x:Bx16,rate:", [((1, 16), None, "x", 0), ((), None, "rate")]),  # a number
        ("rate::int64", [((), "int64", "rate")]),
    ],
)
def test_input_shapes_are_read_as_typed(text, shapes):
    assert parse_input(text) == tuple(InputShape(*shape) for shape in shapes)


@pytest.mark.parametrize(
    "text",
    ["", "3,", "1x", "x3", "1x0x3", "-1x3", "axb", "1x3.5", "1 x 3", "1x3:int65", "1x3:", "a:b:c", "a::"],
)
def test_shapes_that_are_none(text):
    with pytest.raises(UsageError, match="--input"):
        parse_input(text)


def test_examples_of_given_shapes():
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    (ids,) = example_from_shapes(module, parse_input("3x50"))
    assert (ids.dtype, ids.shape) == (torch.int64, (3, 50))
    assert 0 <= ids.min() <= ids.max() < 7
    (half,) = example_from_shapes(nn.Linear(4, 2).half(), parse_input("1x4"))
    assert half.dtype == torch.float16
    image, mask = example_from_shapes(nn.Conv2d(3, 1, 1), parse_input("1x3x4x4,1x5:bool"))
    assert (image.dtype, mask.dtype, mask.all()) == (torch.float32, torch.bool, True)


class Weighted(nn.Module):
    """Token ids, and a weight of each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, i, w):
        return (self.table(i) * w.unsqueeze(-1)).mean(1)


@pytest.mark.parametrize(
    ("stated", "dtypes"),
    [
        ("i:Bx5:int64,w:Bx5", ["int64", "float32"]),
        ("w:Bx5,i:Bx5:int32", ["int32", "float32"]),
        ("i:Bx5,w:Bx5:float64", ["int64", "float64"]),
        ("i:Bx5,w:Bx5", ["int64", "int64"]),
        ("i:Bx5,w:Bx5:bool", ["int64", "bool"]),  # a mask, which says nothing of the ids
    ],
)
def test_a_dtype_of_one_input_is_not_that_of_the_next(stated, dtypes):
    told: list[str] = []
    model = load_module(Weighted(), input_shapes=stated, notice=told.append)
    assert [spec.dtype for spec in model.inputs] == dtypes
    taken = f"i:Bx5:{dtypes[0]},w:Bx5:{dtypes[1]}"
    assert any(f"inputs are taken as {taken}" in line for line in told)


# --- the guess ----------------------------------------------------------------------------------------------


class Cifar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def flat(size: int, channels: int = 3, kernel: int = 3) -> nn.Module:
    """Only one image size fits its linear layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 2, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * size**2, 3),
    )


def vgg(pooled: bool) -> nn.Module:
    """Five poolings; with an adaptive one at the end it runs on every size."""
    layers: list[nn.Module] = []
    for i in range(5):
        layers += [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
        layers += [nn.MaxPool2d(2)]
    layers += (
        [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(4 * 49, 3)]
        if pooled
        else [nn.Flatten(), nn.Linear(4, 3)]
    )
    return nn.Sequential(*layers)


class Stem(nn.Module):
    """As ImageNet networks begin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 7, stride=2, padding=3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1))


class Patches(nn.Module):
    """A vision transformer: positions for one image size only."""

    def __init__(self, size: int, patch: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2, 8))

    def forward(self, x):
        return self.patch(x).flatten(2).transpose(1, 2) + self.position


class Positions(nn.Module):
    """A language model of at most 12 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(20, 8)
        self.position = nn.Embedding(12, 8)

    def forward(self, ids, mask=None):
        return self.token(ids) + self.position(torch.arange(ids.shape[1]))


class LateFirst(nn.Module):
    """The head is registered before the layer that comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.conv = nn.Conv1d(5, 8, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean(2))


def signal() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 9, stride=4), nn.Flatten(), nn.Linear(4 * 254, 2))


GUESSES = {
    "features": (lambda: nn.Sequential(nn.Linear(13, 4), nn.ReLU(), nn.Linear(4, 1)), (13,)),
    "features after flattening": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), (784,)),
    "CIFAR-like": (Cifar, (3, 32, 32)),
    "one channel": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), (1, 28, 28)),
    "digits, flattened": (lambda: flat(28, 1), (1, 28, 28)),
    "digits of 8 pixels": (lambda: flat(8, 1), (1, 8, 8)),
    "LeNet on colours": (lambda: flat(32, 3, 5), (3, 32, 32)),
    "64 pixels": (lambda: flat(64), (3, 64, 64)),
    "48 pixels": (lambda: flat(48), (3, 48, 48)),
    "big stem": (Stem, (3, 224, 224)),
    "VGG of ImageNet": (lambda: vgg(pooled=True), (3, 224, 224)),
    "VGG of CIFAR": (lambda: vgg(pooled=False), (3, 32, 32)),
    "ViT 224": (lambda: Patches(224, 16), (3, 224, 224)),
    "ViT 32": (lambda: Patches(32, 4), (3, 32, 32)),
    "signal": (signal, (2, 1024)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1)), (1, 16, 112, 112)),
    "tokens": (lambda: nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2)), (16,)),
    "few positions": (Positions, (8,)),
    "sequence": (lambda: nn.LSTM(6, 3, batch_first=True), (16, 6)),
    "attention": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
        (16, 8),
    ),
    "normalisation first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)), (3, 32, 32)),
    "head registered first": (LateFirst, (5, 128)),
    "generator": (
        lambda: nn.Sequential(nn.Linear(10, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 1, 2)),
        (10,),
    ),
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_guessed_input_runs_and_is_said(name):
    make, expected = GUESSES[name]
    module = make().eval()
    inputs, sentence = infer_input(module)
    (x,) = inputs
    assert tuple(x.shape[1:]) == expected
    module(*inputs)
    assert "x".join(map(str, (1, *expected))) in sentence
    assert "--input" in sentence


def test_guess_names_the_layer():
    sentence = infer_input(Cifar().eval())[1]
    assert sentence.startswith(
        "input not given: guessed 1x3x32x32 from the first layer (conv, Conv2d, 3 channels)"
    )


def test_a_guessed_input_has_the_weights_dtype():
    (x,), _ = infer_input(Cifar().bfloat16().eval())
    assert x.dtype == torch.bfloat16


def test_guessing_leaves_the_module_as_it_was():
    module = vgg(pooled=True).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    infer_input(module)
    assert not any(m._forward_pre_hooks for m in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Two(nn.Module):
    def forward(self, left, right):
        return left + right


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x.reshape(3, 7, 11, 4))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Two(), r"2 inputs(.|\n)*left, right(.|\n)*--input"),
        (Odd(), r"usual sizes(.|\n)*--input"),
        (nn.ReLU(), r"no layer whose input size is known(.|\n)*--input"),
    ],
)
def test_what_cannot_be_guessed(module, message):
    with pytest.raises(UsageError, match=message):
        infer_input(module.eval())
