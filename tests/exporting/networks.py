"""Networks that are hard to export, with weights perturbed so that outputs depend on every layer."""

import torch
from networks import built_once
from torch import nn
from torch.nn import functional as F

from nncompress.ir import Model


class Convolutional(nn.Module):
    """Batch norms, a strided zero-padded shortcut, ReLU6, depthwise and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.up, self.bn4 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)), inplace=True)
        y = self.bn2(self.wide(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        y = F.relu6(self.bn3(self.depthwise(y)))
        y = F.relu(self.bn4(self.up(y)))
        return self.head(y.mean((2, 3)))


class Language(nn.Module):
    """Token ids and a mask in, two outputs, the output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.mix = nn.Linear(16, 16)
        self.out = nn.Linear(16, 60, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids, mask):
        hidden = torch.tanh(self.mix(self.embed(ids))) * mask[..., None]
        return {"logits": self.out(hidden), "pooled": hidden.sum(1)}


def settle(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Random batch-norm affines, statistics from noise; then eval mode."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(*inputs)
    return module.eval()


@built_once
def convolutional(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(1)
    module = settle(Convolutional(), torch.randn(16, 3, 12, 12)).to(dtype)
    return Model.from_module(module, (torch.randn(2, 3, 12, 12, dtype=dtype),))


@built_once
def language(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(2)
    module = Language().eval().to(dtype)
    return Model.from_module(module, (torch.randint(0, 60, (2, 7)), torch.ones(2, 7, dtype=dtype)))
