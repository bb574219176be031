"""Architectures to prune: every family at the smallest size that keeps its structure, random weights.

`ARCHITECTURES` are our own definitions; `architectures.huggingface.ARCHITECTURES` come from configurations of
the `transformers` package. A network with random weights often ignores its input or explodes, and a numeric
check on it proves nothing: `build` perturbs constant initialisations and settles batch norms on noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.architectures import attention as a
from benchmarks.architectures import convolutional as c
from benchmarks.architectures import dense as d
from benchmarks.architectures import recurrent as r
from benchmarks.architectures import residual as s
from nncompress.ir import Model


@dataclass(frozen=True)
class Input:
    """One input without its batch dim; integers below `high` where that is given."""

    shape: tuple[int, ...]
    high: int = 0

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        if self.high:
            return torch.randint(0, self.high, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


@dataclass(frozen=True)
class Architecture:
    family: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]

    def draw(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(each.draw(batch, generator) for each in self.inputs)


def settle(module: nn.Module, draw: Callable[[int, int], tuple[Tensor, ...]], seed: int = 0) -> nn.Module:
    """Perturb constant initialisations, enlarge tiny ones, settle batch norms on noise; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() <= 1:
                continue
            if float(parameter.std()) < 1e-3:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif parameter.dim() >= 2:  # configurations with an initializer_range of 0.02 are nearly constant
                wanted = parameter[0].numel() ** -0.5
                parameter.mul_(max(1.0, wanted / float(parameter.std())))
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.momentum = None  # a cumulative average
                if m.weight is not None and float(m.weight.abs().mean()) < 0.1:
                    m.weight.add_(1.0)  # some configurations start at N(0, 0.02)
        module.train()
        for step in range(3):
            module(*draw(16, step))
    return module.eval()


def build(architecture: Architecture, seed: int = 0) -> Model:
    """A settled network as a `Model`; `make` is called under a fixed seed."""
    torch.manual_seed(seed)
    module = settle(architecture.make(), architecture.draw, seed)
    return Model.from_module(module, architecture.draw(2))


IMAGE = (Input((3, 32, 32)),)
SMALL = (Input((3, 16, 16)),)
TOKENS = (Input((12,), 50),)

ARCHITECTURES: dict[str, Architecture] = {
    "cifar-resnet20": Architecture("ResNet", s.CifarResNet, IMAGE),
    "resnet-average-pad": Architecture("ResNet", s.AveragePad, SMALL),
    "resnet18": Architecture("ResNet", s.ResNet, IMAGE),
    "resnet50": Architecture("ResNet", partial(s.ResNet, bottleneck=True), IMAGE),
    "preact-resnet": Architecture("ResNet", s.PreActivation, SMALL),
    "resnext": Architecture("ResNeXt", partial(s.ResNet, bottleneck=True, groups=8, inner=2.0), IMAGE),
    "se-resnet": Architecture("SENet", partial(s.ResNet, bottleneck=True, se=True), IMAGE),
    "regnet-y": Architecture("RegNet", partial(s.ResNet, (1, 2), 24, True, 6, True, 1.0), IMAGE),
    "res2net": Architecture("Res2Net", s.Res2Net, SMALL),
    "sknet": Architecture("SKNet", s.SKNet, SMALL),
    "dpn": Architecture("DPN", s.DPN, SMALL),
    "resnest": Architecture("ResNeSt", s.SplitAttention, SMALL),
    "nfnet": Architecture("NFNet", s.NFNet, SMALL),
    "weight-norm": Architecture("weight norm", s.WeightNorm, SMALL),
    "vgg": Architecture("VGG", partial(c.VGG, bn=False), IMAGE),
    "vgg-bn": Architecture("VGG", c.VGG, IMAGE),
    "alexnet": Architecture("AlexNet", c.AlexNet, IMAGE),
    "googlenet": Architecture("Inception", c.GoogLeNet, IMAGE),
    "inception-v3": Architecture("Inception", c.InceptionV3, IMAGE),
    "squeezenet": Architecture("SqueezeNet", c.SqueezeNet, IMAGE),
    "densenet": Architecture("DenseNet", c.DenseNet, SMALL),
    "cspnet": Architecture("CSPNet", c.CSPNet, SMALL),
    "mobilenet-v1": Architecture("MobileNet", c.MobileNetV1, IMAGE),
    "mobilenet-v2": Architecture("MobileNet", partial(c.MobileNet, nn.ReLU6(), False), IMAGE),
    "mobilenet-v3": Architecture("MobileNet", partial(c.MobileNet, nn.Hardswish(), True), IMAGE),
    "efficientnet": Architecture("EfficientNet", partial(c.MobileNet, nn.SiLU(), True), IMAGE),
    "mixnet": Architecture("MixNet", c.MixConv, SMALL),
    "ghostnet": Architecture("GhostNet", c.GhostNet, SMALL),
    "shufflenet-v1": Architecture("ShuffleNet", c.ShuffleNetV1, SMALL),
    "shufflenet-v1-g4": Architecture("ShuffleNet", partial(c.ShuffleNetV1, 32, 4), SMALL),
    "shufflenet-v2": Architecture("ShuffleNet", c.ShuffleNetV2, SMALL),
    "unet": Architecture("U-Net", d.UNet, IMAGE),
    "unet-bilinear-groupnorm": Architecture("U-Net", partial(d.UNet, "bilinear", "group"), IMAGE),
    "unet-instancenorm": Architecture("U-Net", partial(d.UNet, "bilinear", "instance"), IMAGE),
    "fpn": Architecture("detection", d.FPN, IMAGE),
    "deeplab-aspp": Architecture("segmentation", d.ASPP, SMALL),
    "dcgan": Architecture("GAN", d.Generator, (Input((16,)),)),
    "stylegan": Architecture("GAN", d.StyleGenerator, (Input((16,)),)),
    "espcn": Architecture("super-resolution", d.ESPCN, (Input((1, 12, 12)),)),
    "edsr": Architecture("super-resolution", d.EDSR, SMALL),
    "autoencoder": Architecture("autoencoder", d.Autoencoder, (Input((1, 28, 28)),)),
    "tied-autoencoder": Architecture("autoencoder", d.TiedAutoencoder, (Input((20,)),)),
    "video": Architecture("3-D", c.Video, (Input((3, 6, 12, 12)),)),
    "siamese": Architecture("two inputs", c.Siamese, SMALL * 2),
    "vit": Architecture("ViT", a.ViT, SMALL),
    "vit-written-out": Architecture("ViT", partial(a.ViT, fused=False, qk_norm=True), SMALL),
    "deit": Architecture("DeiT", partial(a.ViT, distilled=True), SMALL),
    "cait": Architecture("CaiT", partial(a.ViT, scale=True, fused=False, talking=True), SMALL),
    "swin": Architecture("Swin", a.Swin, SMALL),
    "mlp-mixer": Architecture("MLP-Mixer", a.Mixer, SMALL),
    "resmlp": Architecture("MLP-Mixer", a.ResMLP, SMALL),
    "gmlp": Architecture("gMLP", a.GMLP, (Input((10, 16)),)),
    "convnext": Architecture("ConvNeXt", a.ConvNeXt, IMAGE),
    "convnext-v2": Architecture("ConvNeXt", partial(a.ConvNeXt, grn=True), IMAGE),
    "poolformer": Architecture("PoolFormer", a.PoolFormer, SMALL),
    "convmixer": Architecture("ConvMixer", a.ConvMixer, SMALL),
    "llama-gqa": Architecture("Llama", a.Llama, TOKENS),
    "einsum-attention": Architecture("transformer", a.EinsumAttention, (Input((7, 24)),)),
    "linear-attention": Architecture("transformer", a.LinearAttention, (Input((3, 8, 8)),)),
    "xcit": Architecture("transformer", a.ChannelAttention, (Input((7, 24)),)),
    "torch-transformer": Architecture("transformer", a.TorchTransformer, (Input((6, 24)), Input((5, 24)))),
    "mixture-of-experts": Architecture("MoE", a.MoE, (Input((16,)),)),
    "lstm-cells": Architecture("recurrent", r.CellStack, (Input((4, 8)),)),
    "gru-cells": Architecture("recurrent", partial(r.CellStack, "gru"), (Input((4, 8)),)),
    "rnn-cells": Architecture("recurrent", partial(r.CellStack, "rnn"), (Input((4, 8)),)),
    "lstm-written-out": Architecture("recurrent", r.WrittenLSTM, (Input((4, 6)),)),
    "lstm": Architecture("recurrent", r.SequenceRNN, (Input((6,), 30),)),
    "gru-bidirectional": Architecture("recurrent", partial(r.SequenceRNN, "gru", True), (Input((6,), 30),)),
    "tcn": Architecture("1-D", r.TCN, (Input((4, 20)),)),
    "wavenet": Architecture("1-D", r.WaveNet, (Input((1, 20)),)),
    "conv-tasnet": Architecture("1-D", r.ConvTasNet, (Input((1, 64)),)),
    "recommender": Architecture("three inputs", r.Recommender, (Input((), 20), Input((), 30), Input((6,)))),
}


def everything(*, own: bool = False) -> dict[str, Architecture]:
    """Our own and, unless `own`, those of the `transformers` package; a note where that is not installed."""
    if own:
        return dict(ARCHITECTURES)
    try:
        from benchmarks.architectures import huggingface, more_huggingface
    except ImportError:
        print("without `transformers`: our own definitions only", file=sys.stderr)
        return dict(ARCHITECTURES)
    return ARCHITECTURES | huggingface.ARCHITECTURES | more_huggingface.ARCHITECTURES
