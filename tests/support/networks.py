"""Small networks, one per thing that a pass could get wrong. Each maps to the inputs that it takes.

Weights are random, so every one is perturbed where its initialisation is constant and its batch norms are
settled on noise (`network`): otherwise many such networks ignore their input and a comparison proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from records import Whole
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.data import Batch
from nncompress.ir import Model
from nncompress.passes import Context


class Residual(nn.Module):
    """Basic blocks with a strided, zero-padded shortcut (He et al. 2015, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined by channel, then mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 1)
        self.mix = nn.Conv2d(14, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), torch.tanh(self.b(x))], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.mix(x)), 1).flatten(1))


class Depthwise(nn.Module):
    """Inverted residual: expand, depthwise, project; ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.expand(x)))
        x = self.bn3(self.project(F.relu6(self.bn2(self.depthwise(x)))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """A language-model shape: the output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(x))))


class Upsample(nn.Module):
    """Autoencoder with transposed convolutions, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mid = nn.ConvTranspose2d(8, 8, 3, stride=1, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(F.relu(self.mid(F.relu(self.bn(self.down(x)))))))


class Attention(nn.Module):
    """A pre-norm transformer block with a fused qkv projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 32)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, 4, T, 8)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Flatten(nn.Module):
    """A linear layer over channels × positions of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class TwoInputs(nn.Module):
    """An image and a vector of features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.fc = nn.Linear(6, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        x = F.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.cat([x, F.relu(self.fc(features))], 1))


class TwoOutputs(nn.Module):
    """A classifier and a regressor on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(10, 24)
        self.classes = nn.Linear(24, 5)
        self.value = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.trunk(x))
        return {"classes": self.classes(x), "value": self.value(x)}


class Stages(nn.Module):
    """Two stages of basic blocks with batch norm, then one that normalises first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            for inputs, outputs, stride in (
                (8, 8, 1),
                (8, 8, 1),
                (8, 8, 1),
                (8, 8, 1),
                (8, 12, 2),
                (12, 12, 1),
            )
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in self.convolutions)
        self.project = nn.Conv2d(8, 12, 1, stride=2)
        self.bn1, self.bn2 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.conv1 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.head = nn.Linear(12, 5)

    def _block(self, x: Tensor, number: int) -> Tensor:
        for i in (2 * number, 2 * number + 1):
            x = self.norms[i](self.convolutions[i](x))
            x = F.relu(x) if i % 2 == 0 else x
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self._block(x, 0) + x)
        x = F.relu(self._block(x, 1) + x)
        x = self._block(x, 2) + self.project(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((3, 8, 8),)),
    "stages": (Stages, ((3, 8, 8),)),
    "concat": (Concat, ((3, 8, 8),)),
    "depthwise": (Depthwise, ((3, 8, 8),)),
    "tied": (Tied, ((7,),)),
    "transposed": (Upsample, ((1, 8, 8),)),
    "attention": (Attention, ((6, 32),)),
    "flatten": (Flatten, ((3, 8, 8),)),
    "two-inputs": (TwoInputs, ((3, 9, 9), (6,))),
    "two-outputs": (TwoOutputs, ((10,),)),
}


def built_once(make: Callable[..., Model]) -> Callable[..., Model]:
    """`make`, which trains and traces in the first call with these arguments; every call gives a copy.

    The state of torch's generator is afterwards what `make` leaves, in whatever order tests run.
    """
    kept: dict[Any, tuple[Model, Tensor]] = {}

    @wraps(make)
    def copied(*arguments: Any, **named: Any) -> Model:
        key = arguments, tuple(named.items())
        if key not in kept:
            kept[key] = make(*arguments, **named), torch.get_rng_state()
        model, state = kept[key]
        torch.set_rng_state(state)
        return model.copy()

    return copied


def inputs(name: str, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of the network `name`: token ids for "tied", normal floats for the rest."""
    generator = torch.Generator().manual_seed(seed)
    shapes = NETWORKS[name][1]
    if name == "tied":
        return tuple(torch.randint(0, 32, (batch, *shape), generator=generator) for shape in shapes)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)


def network(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, its constants perturbed and its batch norms settled on noise."""
    torch.manual_seed(seed)
    module = NETWORKS[name][0]()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        module.train()
        for step in range(20):
            module(*inputs(name, 16, seed=100 + step))
    return module.eval()


@built_once
def model(name: str, seed: int = 0) -> Model:
    """The same as a `Model`."""
    return Model.from_module(network(name, seed), inputs(name, 2))


class Noise(Whole):
    """64 random samples for the network `name`."""

    has_labels = False
    fixed_batch = None
    spec = "random samples"

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 64

    def planned_samples(self, limit: int | None = None) -> int:
        return min(limit or 64, 64)

    def batches(
        self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None
    ) -> Iterator[Batch]:
        total = min(limit or 64, 64)
        for start in range(0, total, batch_size):
            yield Batch(inputs(self.name, min(batch_size, total - start), seed=500 + start), None)


def context(name: str) -> Context:
    """What a pass over the network `name` works with: random samples."""
    return Context(data=Noise(name), limit=64)  # type: ignore[arg-type]
