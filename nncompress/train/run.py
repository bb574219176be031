"""One training run: its model, optimizer and position, one step at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.answer import settle_answer
from nncompress.analysis.cost import cost
from nncompress.data import Batch, Dataset
from nncompress.errors import DataError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gathers
from nncompress.ir.graph.ops import op_name
from nncompress.progress import Progress
from nncompress.train import checkpoint as checkpoints
from nncompress.train.augment import Augmentation
from nncompress.train.distributed import Group
from nncompress.train.graph import (
    channels_last,
    lay_out,
    layer_weights,
    regularized,
    trainable,
    training_graph,
    widened_masks,
    zero_masks,
)
from nncompress.train.growth.grow import Growing, Grown, Held
from nncompress.train.growth.settings import GrowSettings
from nncompress.train.loss.objective import Objective, Penalty
from nncompress.train.loss.remembered import Remembered
from nncompress.train.loss.teacher import Teacher
from nncompress.train.loss.validation import HeldOut
from nncompress.train.optimizer import carry_over, make_optimizer
from nncompress.train.precision import Precision, device_of
from nncompress.train.quantized import (
    add_float_copies,
    refuse_other_rounding,
    remove_copies,
    round_copies,
)
from nncompress.train.schedule import learning_rate
from nncompress.train.seeds import derived_seed
from nncompress.train.settings import TrainSettings
from nncompress.train.state import EPOCH, State, TrainResult
from nncompress.version import __version__


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
        growth: GrowSettings | None = None,
    ) -> None:
        refuse_other_rounding(model)
        if settings.task in ("classification", "regression"):
            dataset.require_labels(settings.task)
        if settings.match and teacher is None:
            raise UsageError("train: --match needs a teacher", remedy="--teacher original.pt2")
        self.original, self.settings, self.progress = model, settings, progress
        self.dataset, self.held_out = dataset, HeldOut(validation, settings)
        self.group, self.device = Group.current(), device_of(settings.device)
        self.precision = Precision(settings.precision, self.device)
        self.state = State()
        self.growing = Growing.of(growth, model, dataset, settings, self.group, progress)
        self.held: Held | None = None  # what stays as it was after a growth, for a while
        settle_answer(model, dataset)
        self.model = model.copy()
        self.copies = add_float_copies(self.model)  # of int8 weights
        trainable(self.model, settings.freeze)  # refuses patterns that match nothing, though they may end
        self._build()
        self.masks = {} if settings.dense else zero_masks(self.model, self.copies)
        norms = any(op_name(node) == "batch_norm" for node in model.graph.nodes)
        self.least = max(2 if norms else 1, dataset.least_batch)  # one sample has no variance to normalise by
        self.augmentation = Augmentation(settings, dataset) if settings.augments else None

        self.batch_size = dataset.fixed_batch or settings.batch
        samples = dataset.planned_samples(settings.limit)
        samples = len(dataset) if samples is None else samples
        self.steps_per_epoch = math.ceil(samples / self.batch_size)
        if not self.steps_per_epoch:
            raise DataError(f"{dataset.spec} has no samples to train on")
        taught_by = None
        if teacher is not None:
            known = Remembered.of_run(dataset, settings, self.group.size, self.device, progress)
            taught_by = Teacher(teacher, model, settings, self.precision, self.device, known)
        self.teacher = None if teacher is None else checkpoints.weights_digest(teacher)
        self.objective = Objective(settings, dataset, taught_by, self.group, self.batch_size)

    def _build(self) -> None:
        """What follows from the model: over its tensors two graphs that run it, in evaluation and in training
        mode; what is trained of it; the optimizer."""
        settings, frozen = self.settings, self.settings.frozen(self.epoch)
        self.model.graph_module.to(self.device)
        lay_out(self.model, channels_last)
        self.trained = trainable(self.model, frozen)
        self.evaluated = training_graph(self.model, training=False)
        graph = training_graph(self.model, frozen=frozen, matched=settings.match, copies=self.copies)
        self.module = self.group.wrap(graph)
        weights = layer_weights(self.model, self.copies)
        self.penalty = Penalty(
            settings.l1, settings.l2, regularized(self.trained, weights, settings.regularize)
        )
        self.optimizer = make_optimizer(settings, list(self.trained.values()))

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
            **checkpoints.data_identity("data", self.dataset),
            **checkpoints.data_identity("validation", self.held_out.dataset),
            "model": checkpoints.weights_digest(self.original),
            "teacher": self.teacher,
            "processes": self.group.size,
            **({} if self.growing is None else asdict(self.growing.settings)),
        }

    def snapshot(self) -> dict[str, Any]:
        return {
            **vars(self.state),
            "tensors": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "masks": {name: mask.bool() for name, mask in self.masks.items()},
            "grown": None if self.growing is None else vars(self.growing.state),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        tensors, optimizer, masks, grown = (
            snapshot.pop(key) for key in ("tensors", "optimizer", "masks", "grown")
        )
        self.precision.scaler.load_state_dict(snapshot.pop("scaler"))
        self.state = State(**snapshot)
        gathers: Mapping[str, Gathers] = {}
        if self.growing is not None:
            self._to_cpu()
            self.growing.state = Grown(**grown)
            gathers = self.growing.replay(self.model)
        self._build()
        checkpoints.restore_tensors(self.model, tensors)
        self.optimizer.load_state_dict(optimizer)
        self.masks = {name: mask.to(self.model.tensor(name)) for name, mask in masks.items()}
        self._hold(gathers)

    def begin(self) -> str:
        """Which loss is minimised, and why. A few samples of both data are looked at: what does not fit is
        told before an epoch is spent.

        Raises:
            DataError: labels do not fit the outputs.
        """
        held_out = self.held_out.dataset
        if not self.objective.imitates_only:
            self.objective.settle(self.evaluated, self.dataset, self.device)
        elif held_out is not None and self.settings.metric is None:
            self.objective.settle(self.evaluated, held_out, self.device)
        self.held_out.check(self.evaluated, self.objective.task, self.device)
        return self.objective.sentence()

    # -- a model that changes ----------------------------------------------------------------------------

    def _to_cpu(self) -> None:
        """The model as passes take it."""
        self.model.graph_module.to("cpu")
        lay_out(self.model, Tensor.contiguous)

    def _rebuild(self, gathers: Mapping[str, Gathers]) -> None:
        """Go on with a model that has grown, or more of which is trained; the optimizer keeps its state."""
        optimizer, trained = self.optimizer, self.trained
        self._build()
        carry_over(optimizer, self.optimizer, trained, self.trained, gathers)
        self._hold(gathers)

    def _hold(self, gathers: Mapping[str, Gathers]) -> None:
        holds = self.growing is not None and self.growing.holds(self.epoch)
        self.held = (self.held or Held(self.trained, gathers)) if holds else None

    def _adapt(self, loss: float, score: float) -> dict[str, Any]:
        """Between epochs: grow where the loss has stopped falling, train what is not frozen any more.

        Returns:
            What the log says of it.
        """
        growing, settings = self.growing, self.settings
        step = None
        if growing is not None and self.epoch < settings.epochs and growing.due(loss):
            self.group.share_buffers(self.model.graph_module)
            self._to_cpu()
            step, fit = growing.grow(self.model, self.batch_size, self.epoch, settings.seed)
            self.model.graph_module = step.model.graph_module
        if step is not None and step.added:
            self.held = None
            self._rebuild(step.gathers)
            self.masks = widened_masks(self.masks, self.model, step.gathers)
            self._keep_best(score)  # as good as the last one was, with all its patience before it
            sizes = {name: step.sizes[name] + units for name, units in step.added.items()}
            told = {"grown": sizes, "macs": cost(self.model).macs}
            return told if math.isnan(fit.share) else told | {"latency": round(fit.share, 3)}
        if step is not None or settings.frozen(self.epoch) != settings.frozen(self.epoch - 1):
            self._rebuild({})
        self._hold({})
        return {}

    # -- one epoch ---------------------------------------------------------------------------------------

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch that were not taken yet, in the order that seed and epoch give."""
        order = derived_seed(self.settings.seed, self.epoch)
        batches = self.dataset.batches(self.batch_size, self.settings.limit, order)
        yield from itertools.islice(batches, self.state.step - self.epoch * self.steps_per_epoch, None)

    def step(self, batch: Batch) -> None:
        """One update of the weights."""
        settings, state = self.settings, self.state
        description = f"{EPOCH} {self.epoch + 1} of {settings.epochs}"
        if state.samples:
            description += f", loss {state.loss_sum / state.samples:.4g}"
        done = state.step - self.epoch * self.steps_per_epoch
        self.progress.step(description, done, self.steps_per_epoch)
        rate = learning_rate(settings, state.step, self.steps_per_epoch)
        torch.manual_seed(derived_seed(settings.seed, state.step, self.group.rank + 1))
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
        for name, parameter in self.trained.items():
            if name in self.masks and parameter.grad is not None:
                parameter.grad.mul_(self.masks[name])
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scaler.step(self.optimizer)
        scaler.update()
        if self.held is not None:
            self.held.put_back()

        value = float(self.group.average(loss.detach()))
        if not math.isfinite(value):
            raise VerificationError(
                f"training diverged at step {state.step} (epoch {self.epoch + 1})",
                got=f"a loss of {value}",
                remedy=f"a smaller --lr than {settings.lr:g}, --warmup 1, or --clip 1",
            )
        state.loss_sum += value * len(batch)
        state.samples += len(batch)

    def _loss(self, batch: Batch, share: float) -> Tensor:
        """What is minimised, on the samples `batch` of this process, weighted by `share`."""
        inputs = tuple(channels_last(x.to(self.device)) for x in batch.inputs)
        labels = None if batch.labels is None else batch.labels.to(self.device)
        with self.precision.forward():
            outputs = self.module(*inputs)
        loss, penalty = self.objective(outputs, Batch(inputs, labels), share), self.penalty()
        return loss if penalty is None else loss + penalty

    def end_epoch(self) -> dict[str, Any]:
        """Measure, decide whether this epoch is the best, and begin the next."""
        state, settings = self.state, self.settings
        state.step = (self.epoch + 1) * self.steps_per_epoch
        rate = learning_rate(settings, state.step - 1, self.steps_per_epoch)
        if not state.samples:
            raise DataError(
                f"{self.dataset.spec} has too few samples to train on", expected="2, better many more"
            )
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": state.step,
            "lr": rate,
            "loss": state.loss_sum / state.samples,
        }
        round_copies(self.model, self.copies)
        if self.held_out.dataset is not None:
            self.group.share_buffers(self.model.graph_module)
        metric_alone = self.objective.imitates_only and settings.metric is not None
        task = None if metric_alone else self.objective.task
        found = self.held_out.measured(self.evaluated, task, self.batch_size, self.device, self.progress)
        if found:
            row["validation"] = found
        loss = found.get("loss", row["loss"])
        row["seconds"] = round(state.seconds, 3)
        state.rows.append(row)
        score = self.held_out.score(row)
        least = settings.min_improvement * abs(state.best_loss)
        if score < state.best_loss - least or not math.isfinite(state.best_loss):
            self._keep_best(score)
        else:
            state.waited += 1
        state.loss_sum, state.samples = 0.0, 0
        row |= self._adapt(loss, score)
        return row

    def _keep_best(self, score: float) -> None:
        """The model as it is after the last epoch is the one to beat."""
        state = self.state
        state.best_loss, state.best_epoch, state.waited = score, self.epoch, 0
        if self.settings.patience is not None:
            state.best_tensors = {k: v.cpu().clone() for k, v in self.model.state_dict().items()}

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
        self._to_cpu()
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
        if self.growing is not None:
            record |= {"growth": self.growing.settings.settings(), "steps": len(self.growing.state.steps)}
        self.model.history.append({**record, "validation": result.validation, "version": __version__})
        return self.model, result
