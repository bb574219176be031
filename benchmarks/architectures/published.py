"""Architectures of torchvision and timm at a small image size, random weights; their names have the package's
before them (`timm-levit_128s`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module

from torch import Tensor, nn

from benchmarks.architectures import Architecture, Input

CLASSES = 10
FIXED = {"img_size": 64}  # of networks that are built for one size

TORCHVISION: dict[str, dict[str, object]] = {
    "resnet18": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "densenet121": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "regnet_y_400mf": {},
    "mnasnet0_5": {},
    "convnext_tiny": {},
    "swin_t": {},
    "vit_b_32": {"image_size": 64},
    "segmentation.lraspp_mobilenet_v3_large": {"weights_backbone": None},
}
TIMM: dict[str, dict[str, object]] = {
    "resnet10t": {},
    "mobilenetv4_conv_small": {},
    "efficientvit_b0": {},
    "mobilevit_xxs": {},
    "deit_tiny_patch16_224": FIXED,
    "convnextv2_atto": {},
    "edgenext_xx_small": {},
    "ghostnet_050": {},
    "hrnet_w18_small": {},
    "pit_ti_224": FIXED,
    "levit_128s": FIXED,
    "poolformerv2_s12": {},
    "repvgg_a0": {},
    "tinynet_e": {},
    "dla46_c": {},
    "skresnet18": {},
    "xcit_nano_12_p16_224": {},
    "fastvit_t8": {},
    "mobileone_s0": {},
    "coat_lite_tiny": FIXED,
    "starnet_s1": {},
    "regnetx_002": {},
    "resmlp_12_224": FIXED,
    "gernet_s": {},
    "rexnet_100": {},
    "crossvit_9_240": {},
}


class _Scores(nn.Module):
    """A segmentation network without the dictionary around its scores."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.net(image)["out"]
        return scores


def _torchvision(name: str, settings: dict[str, object]) -> nn.Module:
    group, _, factory = name.rpartition(".")
    models = import_module(f"torchvision.models.{group}" if group else "torchvision.models")
    net: nn.Module = getattr(models, factory)(weights=None, num_classes=CLASSES, **settings)
    return _Scores(net) if group else net


def _timm(name: str, settings: dict[str, object]) -> nn.Module:
    net: nn.Module = import_module("timm").create_model(name, num_classes=CLASSES, **settings)
    return net


def published() -> dict[str, Architecture]:
    """What is installed of them; a note for what is not."""
    packages: dict[str, tuple[dict[str, dict[str, object]], Callable[..., nn.Module]]] = {
        "torchvision": (TORCHVISION, _torchvision),
        "timm": (TIMM, _timm),
    }
    found: dict[str, Architecture] = {}
    for package, (table, make) in packages.items():
        try:
            import_module(package)
        except ImportError:
            print(f"without `{package}`", file=sys.stderr)
            continue
        for name, settings in table.items():
            images = (Input((3, 64, 64)),)
            found[f"{package}-{name}"] = Architecture(package, partial(make, name, settings), images)
    return found
