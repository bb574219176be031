"""Does approximating a small model pay? (Çallı 2017, §2.4.3, §3.3.3)

Prune, cluster, factorize and quantize its small CIFAR-10 model. The thesis found no factorization that was
faster at the same accuracy.
"""

from __future__ import annotations

import time

from nncompress.data import Dataset
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.pipeline import run as run_passes
from nncompress.recipe import parse_pass
from nncompress.studies.classifiers import budget, settings_for, trained
from nncompress.studies.comparison import ComparisonResult, Entry, Measured, measure
from nncompress.studies.images import Crops, Images
from nncompress.studies.small_model import PAPER_EPOCHS, SMALL, images
from nncompress.studies.study import Request, Study
from nncompress.zoo.registry import architecture

CALIBRATION = 512  # images
LOSS = 0.5  # points that may be lost
CHAIN = ("prune:std=0.5", "cluster:decimals=2", "factorize:err=1e-3", "quantize")  # the thesis's order
OTHERS = {  # what this tool would do instead
    "quantize": ("quantize",),
    "prune-nodes, on data": ("prune-nodes:macs=0.8,round-to=8",),
    "factorize, on data": ("factorize:macs=0.8,round-to=8",),
    "prune-nodes, then quantize": ("prune-nodes:macs=0.8,round-to=8", "quantize"),
}


def run(request: Request) -> ComparisonResult:
    """The thesis's chain step by step, then single methods, on one trained model, without training on.

    Raises:
        UsageError, DataError: no data, or data and model do not fit.
    """
    started = time.monotonic()
    train, test = images(request, "approximation")
    model, origin = subject(request, train)
    held_out, calibration = samples(test, model), samples(train.spread(CALIBRATION), model)
    chains: dict[str, tuple[str, ...]] = {"original": ()} | {
        f"{'… → ' if n else ''}{CHAIN[n]}": CHAIN[: n + 1] for n in range(len(CHAIN))
    }
    entries = []
    made: dict[tuple[str, ...], Model] = {(): model}
    for name, passes in (chains | OTHERS).items():
        request.say(name)
        for n in range(1, len(passes) + 1):  # a chain goes on from where another one ended
            if passes[:n] not in made:
                made[passes[:n]] = compressed(request, made[passes[: n - 1]], passes[n - 1 : n], calibration)
        entries.append(Entry(name, [made[passes]], held_out))
    rows, warnings = measure(request, entries, paired=True, time_budget=8 if request.quick else 20)
    return ComparisonResult(
        "approximation",
        ("macs", "nonzero", "file_size", "top1", "difference", "speedup"),
        rows,
        origin,
        _verdict(rows),
        round(time.monotonic() - started, 1),
        (
            'paper: "could not find any factorization that would make this model faster while preserving the '
            'accuracy"; files did not shrink',
            *warnings,
        ),
    )


def samples(images: Images, model: Model) -> Crops:
    """The images, normalised as the model remembers."""
    return Crops(images, model.inputs, model.metadata.get("normalize"))


def subject(request: Request, train: Images) -> tuple[Model, str]:
    """The model to study, and in words where it is from: the request's, or the small one, trained.

    Raises:
        UsageError: the model does not take such images.
    """
    if request.model is not None:
        model = load_model(request.model)
        shapes = [spec.shape[1:] for spec in model.inputs]
        fits = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] == train.channels
        if not fits:
            raise UsageError(
                f"{request.model} does not take such images",
                got="; ".join(map(str, model.inputs)),
                expected=f"one input of {train.channels} channels",
            )
        return model, f"{request.model}, as it was trained"
    settings = settings_for(request, PAPER_EPOCHS, flip=True)
    model = architecture(SMALL).build(classes=train.classes, seed=request.seed)
    model = trained(request, SMALL, model, train, settings, seed=request.seed)
    return model, f"{SMALL}, trained for {budget(request, train, settings, PAPER_EPOCHS)}"


def compressed(request: Request, model: Model, passes: tuple[str, ...], calibration: Dataset) -> Model:
    """`model` after these passes, each verified."""
    context = Context(data=calibration, seed=request.seed, progress=request.progress, limit=CALIBRATION)
    return run_passes(model, [parse_pass(text) for text in passes], context)[0]


def _verdict(rows: tuple[Measured, ...]) -> str:
    kept = [row for row in rows[1:] if row.difference and 100 * row.difference.value >= -LOSS]
    faster = [row for row in kept if row.speedup is not None and row.speedup.low > 1]
    smallest = min(kept, key=lambda row: row.file_size, default=None)
    texts = []
    if faster:
        best = max(faster, key=lambda row: row.speedup.value if row.speedup else 0.0)
        assert best.speedup is not None
        texts.append(f"{best.name} pays in time, {best.speedup.value:.2f}x")
    else:
        texts.append("nothing pays in time")
    if smallest is not None and smallest.file_size < rows[0].file_size:
        texts.append(f"{smallest.name} in bytes, {rows[0].file_size / smallest.file_size:.1f} times fewer")
    return f"at no more than {LOSS} points lost, " + "; ".join(texts)


APPROXIMATION = Study(
    "approximation",
    "prune, cluster, factorize, quantize the small model",
    True,
    run,
    ("epochs", "keep", "model"),
    for_training=("epochs",),
)
