"""One training run: its model, optimizer and position, one step at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nncompress import __version__
from nncompress.analysis.accuracy import class_labels
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, DeviceError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.normalize import op_name
from nncompress.progress import Progress
from nncompress.results import Result
from nncompress.train import checkpoint as checkpoints
from nncompress.train.augment import Augmentation
from nncompress.train.distributed import Group
from nncompress.train.graph import (
    channels_last,
    check_match,
    lay_out,
    layer_weights,
    regularized,
    trainable,
    training_graph,
    zero_masks,
)
from nncompress.train.objective import Penalty, Task, feature_distance, imitation, root
from nncompress.train.precision import Precision
from nncompress.train.quantized import (
    add_float_copies,
    refuse_other_rounding,
    remove_copies,
    round_copies,
)
from nncompress.train.schedule import learning_rate
from nncompress.train.settings import TrainSettings
from nncompress.train.validation import validate


@dataclass(frozen=True)
class TrainResult(Result):
    """What a run did.

    Attributes:
        loss: mean over the last epoch, penalties and teacher included.
        validation: of the weights that were kept; empty without validation data.
        kept_epoch: whose weights were kept, from 1.
        stopped: "all epochs", or "no improvement" (--patience).
        epochs: one row each, as in the log.
    """

    kind: ClassVar[str] = "train"

    loss: float
    validation: dict[str, float]
    kept_epoch: int
    stopped: str
    epochs: tuple[dict[str, Any], ...]


@dataclass
class _State:
    """Where a run is; with the tensors and the optimizer, all that a checkpoint needs."""

    step: int = 0
    loss_sum: float = 0.0
    records: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best_tensors: dict[str, Tensor] | None = None
    waited: int = 0
    seconds: float = 0.0


class Run:
    """Everything of one run; `state` and the tensors are all that changes."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        settings: TrainSettings,
        validation: Dataset | None,
        teacher: Model | None,
        progress: Progress,
    ) -> None:
        refuse_other_rounding(model)
        if settings.task in ("classification", "regression"):
            dataset.require_labels(settings.task)
        if settings.match and teacher is None:
            raise UsageError("train: --match needs a teacher", remedy="--teacher original.pt2")
        self.original, self.settings, self.progress = model, settings, progress
        self.dataset, self.validation = dataset, validation
        self.group, self.device = Group.current(), _device(settings.device)
        self.precision = Precision(settings.precision, self.device)
        self.state = _State()

        # The model, and over the same tensors two graphs that run it: in evaluation and in training mode.
        self.model = model.copy()
        self.model.graph_module.to(self.device)
        self.copies = add_float_copies(self.model)  # of int8 weights
        lay_out(self.model, channels_last)
        self.trained = trainable(self.model, settings.freeze)
        self.evaluated = training_graph(self.model, training=False)
        graph = training_graph(self.model, frozen=settings.freeze, taps=settings.match, copies=self.copies)
        self.module = self.group.wrap(graph, unused=len(model.outputs) > 1)
        norms = any(op_name(node) == "batch_norm" for node in model.graph.nodes)
        self.least = 2 if norms else 1  # one record has no variance to normalise by
        self.masks = {} if settings.dense else zero_masks(self.model, self.trained, self.copies)
        weights = layer_weights(self.model, self.copies)
        self.penalty = Penalty(
            settings.l1, settings.l2, regularized(self.trained, weights, settings.regularize)
        )
        self.teacher = None
        if teacher is not None:
            check_match(model, teacher, settings.match)
            taught = teacher.copy()
            lay_out(taught, channels_last)
            self.teacher = training_graph(taught, training=False, taps=settings.match).to(self.device)
        self.augmentation = Augmentation(settings, dataset) if settings.augments else None
        self.optimizer = _optimizer(settings, list(self.trained.values()))

        self.batch_size = dataset.fixed_batch or settings.batch
        records = dataset.planned_records(settings.limit)
        records = len(dataset) if records is None else records
        self.steps_per_epoch = math.ceil(records / self.batch_size)
        if not self.steps_per_epoch:
            raise DataError(f"{dataset.spec} has no records to train on")
        self.task: Task | None = None

    # -- where it is -------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return len(self.state.rows)

    def finished(self) -> bool:
        patience = self.settings.patience
        return self.epoch >= self.settings.epochs or (patience is not None and self.state.waited >= patience)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.settings).items()},
            "data": self.dataset.spec,
            "validation": self.validation.spec if self.validation else None,
            "model": checkpoints.weights_digest(self.original),
            "processes": self.group.size,
        }

    def snapshot(self) -> dict[str, Any]:
        return {
            **vars(self.state),
            "tensors": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        checkpoints.restore_tensors(self.model, snapshot.pop("tensors"))
        self.optimizer.load_state_dict(snapshot.pop("optimizer"))
        self.precision.scaler.load_state_dict(snapshot.pop("scaler"))
        self.state = _State(**snapshot)

    # -- one epoch ---------------------------------------------------------------------------------------

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch that were not taken yet, in the order that seed and epoch give."""
        order = _derived(self.settings.seed, self.epoch)
        batches = self.dataset.batches(self.batch_size, self.settings.limit, order)
        yield from itertools.islice(batches, self.state.step - self.epoch * self.steps_per_epoch, None)

    def step(self, batch: Batch) -> None:
        """One update of the weights."""
        settings, state = self.settings, self.state
        description = f"epoch {self.epoch + 1} of {settings.epochs}"
        if state.records:
            description += f", loss {state.loss_sum / state.records:.4g}"
        done = state.step - self.epoch * self.steps_per_epoch
        self.progress.step(description, done, self.steps_per_epoch)
        rate = learning_rate(settings, state.step, self.steps_per_epoch)
        torch.manual_seed(_derived(settings.seed, state.step, self.group.rank + 1))
        state.step += 1
        part = self.group.part(batch, self.least)
        if part is None:
            return
        mine, share = part
        if self.augmentation is not None:
            mine = self.augmentation(mine)

        # Forward and backward; zeros that pruning made get no gradient, so that no optimizer moves them.
        loss = self._loss(mine, share)
        scaler = self.precision.scaler
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(self.optimizer)
        for name, mask in self.masks.items():
            gradient = self.trained[name].grad
            if gradient is not None:
                gradient.mul_(mask)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scaler.step(self.optimizer)
        scaler.update()

        value = float(self.group.average(loss.detach()))
        if not math.isfinite(value):
            raise VerificationError(
                f"training diverged at step {state.step} (epoch {self.epoch + 1})",
                got=f"a loss of {value}",
                remedy=f"a smaller --lr than {settings.lr:g}, --warmup 1, or --clip 1",
            )
        state.loss_sum += value * len(batch)
        state.records += len(batch)

    def _loss(self, batch: Batch, share: float) -> Tensor:
        """What is minimised, on the records `batch` of this process, weighted by `share`."""
        settings = self.settings
        inputs = tuple(channels_last(x.to(self.device)) for x in batch.inputs)
        with self.precision.forward():
            outputs = self.module(*inputs)
        output, features = outputs[0].float(), outputs[len(outputs) - len(settings.match) :]
        parts: list[Tensor] = []
        own = 1.0 if self.teacher is None else 1.0 - settings.teacher_weight
        if own > 0:
            task = self._task_for(output, batch)
            mean = task.mean(output, self._target(task, output, batch).to(self.device))
            value = root(mean, share, self.group) if task.loss == "rmse" else mean * share
            parts.append(own * value)
        if self.teacher is not None:
            with torch.no_grad(), self.precision.forward():
                answers = self.teacher(*inputs)
            scores = output.dim() == 2 and output.shape[1] > 1 and settings.task != "regression"
            imitated = imitation(output, answers[0].float(), settings.temperature, scores)
            parts.append(settings.teacher_weight * imitated * share)
            if settings.match:
                taught = answers[len(answers) - len(settings.match) :]
                parts.append(settings.match_weight * feature_distance(features, taught) * share)
        penalty = self.penalty()
        if penalty is not None:
            parts.append(penalty)
        return torch.stack(parts).sum()

    def _task_for(self, output: Tensor, batch: Batch) -> Task:
        if self.task is None:
            self.task = Task.choose(self.settings, output, batch, self.dataset.spec)
        return self.task

    def _target(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """The target; a label that does not fit is looked up in the data's own order, to name its record."""
        try:
            return task.target(output, batch)
        except DataError:
            first = 0
            for part in self.dataset.batches(self.batch_size):
                if task.kind == "classification" and part.labels is not None:
                    checkable = output[:1].expand(len(part), *output.shape[1:])
                    class_labels(checkable, part.labels, self.dataset.spec, first)
                first += len(part)
            raise

    def end_epoch(self) -> dict[str, Any]:
        """Measure, decide whether this epoch is the best, and begin the next."""
        state, settings = self.state, self.settings
        state.step = (self.epoch + 1) * self.steps_per_epoch
        rate = learning_rate(settings, state.step - 1, self.steps_per_epoch)
        if not state.records:
            raise DataError(
                f"{self.dataset.spec} has too few records to train on", expected="2, better many more"
            )
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": state.step,
            "lr": rate,
            "loss": state.loss_sum / state.records,
        }
        round_copies(self.model, self.copies)
        if self.validation is not None:
            self.group.share_buffers(self.model.graph_module)
            task = self.task or self._first_task(self.validation)
            row["validation"] = validate(
                self.evaluated, self.validation, task, self.batch_size, self.device, self.progress
            )
        loss = row["validation"]["loss"] if self.validation is not None else row["loss"]
        if loss < state.best_loss * (1 - settings.min_improvement) or not math.isfinite(state.best_loss):
            state.best_loss, state.best_epoch, state.waited = loss, self.epoch + 1, 0
            if settings.patience is not None:
                state.best_tensors = {k: v.cpu().clone() for k, v in self.model.state_dict().items()}
        else:
            state.waited += 1
        row["seconds"] = round(state.seconds, 3)
        state.rows.append(row)
        state.loss_sum, state.records = 0.0, 0
        return row

    def _first_task(self, dataset: Dataset) -> Task:
        """The task where only a teacher was imitated, or a finished run was resumed."""
        for batch in dataset.batches(self.batch_size, limit=self.batch_size):
            with torch.no_grad():
                output = self.evaluated(*(x.to(self.device) for x in batch.inputs))[0]
            return self._task_for(output, batch)
        raise DataError(f"{dataset.spec} has no records")

    def result(self) -> tuple[Model, TrainResult]:
        """The trained model, in evaluation mode on the CPU, with the run in its history."""
        state, settings = self.state, self.settings
        kept = self.epoch
        self.group.share_buffers(self.model.graph_module)
        if settings.patience is not None and state.best_tensors is not None:
            checkpoints.restore_tensors(self.model, state.best_tensors)
            kept = state.best_epoch
        round_copies(self.model, self.copies)
        remove_copies(self.model, self.copies)
        self.model.graph_module.to("cpu")
        lay_out(self.model, Tensor.contiguous)
        for parameter in self.model.graph_module.parameters():
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        result = TrainResult(
            loss=state.rows[kept - 1]["loss"],
            validation=state.rows[kept - 1].get("validation", {}),
            kept_epoch=kept,
            stopped="all epochs" if self.epoch >= settings.epochs else "no improvement",
            epochs=tuple(state.rows),
        )
        record = {"pass": "train", "settings": settings.settings(), "epochs": kept, "loss": result.loss}
        self.model.history.append({**record, "validation": result.validation, "version": __version__})
        return self.model, result


def _optimizer(settings: TrainSettings, parameters: list[Any]) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("train: there is no CUDA device here", remedy="--device cpu")
    return torch.device(name)


def _derived(*numbers: int) -> int:
    """A seed of its own for every combination of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def private_randomness(device: torch.device) -> Iterator[None]:
    """The caller's random state is what it was afterwards."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
