"""Architectures of timm and torchvision by name, with settings: `timm:resnet18?num_classes=10`.

of_collection("timm:resnet18?num_classes=10")     the module, with the weights it begins its training with
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nncompress.errors import NNCompressError, UsageError
from nncompress.extras import need
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.user_code import last_line

COLLECTIONS = ("timm", "torchvision")


def names_architecture(model: str | Path) -> bool:
    """It is one of a collection, not a file."""
    return str(model).partition(":")[0] in COLLECTIONS and ":" in str(model)


def file_and_arch(
    model: Path, arch: str | None, weights: str | Path | None, weights_key: str | None
) -> tuple[Path | None, str]:
    """The file of the weights of MODEL, which names an architecture, and that; None: there is no such file.

    Raises:
        UsageError: MODEL is a file, --arch states the architecture once more, or --weights-key has no file.
    """
    if not names_architecture(model):
        raise UsageError(
            "--weights is for a MODEL that names an architecture",
            got=str(model),
            expected="timm:NAME or torchvision:NAME",
            remedy=f"{weights} --arch {model}" if ":" in str(model) else "leave --weights out",
        )
    if arch is not None:
        raise UsageError(f"{model} names the architecture", got=f"--arch {arch}", remedy="leave --arch out")
    if weights is None and weights_key is not None:
        raise UsageError("--weights-key is for a file of weights", remedy=f"{model} --weights FILE")
    return None if weights is None else Path(weights), str(model)


def of_collection(named: str) -> nn.Module:
    """A model of the package, its weights drawn with one seed: pretrained ones it would download.

    Raises:
        MissingExtraError: the package is not installed.
        UsageError: it knows no such architecture, or no such setting of it.
    """
    package, _, text = named.partition(":")
    need(package, named)
    name, _, query = text.partition("?")
    settings = {key: _plain(value) for key, _, value in (p.partition("=") for p in query.split("&") if p)}
    try:
        known = _names(package)
        if name.partition(".")[0] not in known:  # timm: "resnet50.a1_in1k" is one way to train it
            close = difflib.get_close_matches(name, known, 5, 0.5)
            raise UsageError(
                f"{named}: {package} has no architecture {name!r}",
                expected=f"one of its {len(known)}",
                remedy=f"close are: {', '.join(close)}" if close else f"such as {package}:{known[0]}",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _made(package, name, settings)
    except NNCompressError:
        raise
    except Exception as error:  # the package's own, of settings that it does not take
        raise UsageError(
            f"{named}: {package} cannot build it",
            got=last_line(error),
            remedy=f"settings of {package}'s own, as {package}:{name.partition('.')[0]}?num_classes=10",
        ) from error


def _names(package: str) -> list[str]:
    if package == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models()


def _made(package: str, name: str, settings: dict[str, Any]) -> nn.Module:
    if package == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **settings)
    from torchvision import models

    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        settings = {"weights_backbone": None, **settings}  # which it would download
    return models.get_model(name, weights=None, **settings)


def _plain(text: str) -> Any:
    """A number, true, false or null as JSON has it; any other text is itself."""
    try:
        return parse_json(text)
    except Unreadable:
        return text
