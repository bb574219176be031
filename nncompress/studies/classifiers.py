"""The classifiers of a study, trained; kept in its folder, so that an interrupted study goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from nncompress.errors import UsageError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.studies.images import PER_IMAGE, Crops, Images, open_images
from nncompress.studies.study import Request
from nncompress.train import TrainSettings, train

QUICK_TRAIN, QUICK_TEST = 2000, 1000  # images
SHIFT = 4  # pixels, where the images are as large as the model takes them


def open_some(request: Request, study: str) -> tuple[Images, Images]:
    """Training and test images of the request's data; for a quick run, few of them.

    Raises:
        UsageError, DataError: no data, or not labelled images of one size.
    """
    limits = (QUICK_TRAIN, QUICK_TEST) if request.quick else (None, None)
    return open_images(request.data, study, limits)


def settings_for(request: Request, paper_epochs: int, **options: object) -> TrainSettings:
    """The training of a study: the paper's number of epochs, unless the request says how many.

    Momentum 0.9 and batches of 128 as in the papers; the rate falls along a cosine instead of in steps, which
    serves short budgets as well as long ones.
    """
    epochs = request.epochs or (1 if request.quick else paper_epochs)
    chosen = {"batch": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "warmup": min(1.0, epochs / 4)}
    return TrainSettings(**{"epochs": epochs, "task": "classification", **chosen, **options})  # type: ignore[arg-type]


def trained(
    request: Request,
    name: str,
    model: Model,
    images: Images,
    settings: TrainSettings,
    *,
    seed: int,
    teacher: Model | None = None,
) -> Model:
    """`model` after training, from the study's folder if it is there already.

    Raises:
        UsageError: the folder holds it from another training.
    """
    model.metadata["normalize"] = PER_IMAGE
    settings = replace(settings, seed=seed)
    path = request.folder / f"{name}-{seed}.pt2"
    made = {"trained on": images.spec, "samples": len(images), "settings": settings.settings()}
    if path.exists():
        found = load_model(path)
        if found.metadata.get("study") != made:
            raise UsageError(
                f"{path} is of another training",
                got=str(found.metadata.get("study")),
                expected=str(made),
                remedy="another --keep, or the options of the first run",
            )
        return found
    request.say(f"training {name}, seed {seed}: {settings.epochs} epochs of {len(images)} images")
    data = Crops(images, model.inputs)
    if data.room == (0, 0):
        settings = replace(settings, crop=SHIFT)
    model, _ = train(
        model,
        data,
        settings,
        teacher=teacher,
        checkpoint=path.with_suffix(".checkpoint"),
        resume=True,
        progress=request.progress,
    )
    model.metadata["study"] = made
    write(model, path)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return model


def trained_with_seeds(
    request: Request, name: str, build: Callable[..., Model], images: Images, settings: TrainSettings
) -> list[Model]:
    """As many as the request says, one by default. build: `seed` → an untrained model."""
    seeds = range(request.seed, request.seed + (request.runs or 1))
    return [trained(request, name, build(seed=seed), images, settings, seed=seed) for seed in seeds]


def budget(request: Request, images: Images, settings: TrainSettings, paper_epochs: int) -> str:
    """The budget of this run in words, with the paper's where it was larger."""
    text = f"{settings.epochs} epoch{'s' * (settings.epochs > 1)} of {len(images):,} images ({images.spec})"
    if settings.epochs < paper_epochs:
        text += (
            f"; the paper's budget is about {paper_epochs} epochs, so its accuracy is not to be expected here"
        )
    return text


class _Framed(nn.Module):
    def __init__(self, model: Model, top: int, left: int, height: int, width: int) -> None:
        super().__init__()
        self.network = model.graph_module
        self.rows, self.columns = slice(top, top + height), slice(left, left + width)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images[:, :, self.rows, self.columns])[0]


def framed(model: Model, height: int, width: int) -> Model:
    """The model on larger images, of which it takes the centre: so that it can be timed beside others."""
    channels, own_height, own_width = model.inputs[0].shape[1:]
    if (own_height, own_width) == (height, width):
        return model
    assert isinstance(own_height, int)
    assert isinstance(own_width, int)
    top, left = (height - own_height) // 2, (width - own_width) // 2
    network = _Framed(model.copy(), top, left, own_height, own_width)
    return Model.from_module(network, (torch.zeros(2, int(channels), height, width),))
