"""Criteria that look at what the units send to the layers that read them: after the ReLU, per the papers.

Everything streams: no activation outlives its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.answer import answer_index, output_dims
from nncompress.analysis.couplings import Site
from nncompress.analysis.curvature.autograd import gradient_batch_size
from nncompress.analysis.curvature.losses import task_loss
from nncompress.analysis.curvature.squared_gradients import mean_squared_gradients
from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.importance.magnitude import per_unit
from nncompress.analysis.importance.ranking import Scores
from nncompress.analysis.importance.sample_dims import SampleDims
from nncompress.analysis.observe.gradient_hooks import GradientHooks, loss_products
from nncompress.analysis.observe.statistics import ChannelStatistics, observe
from nncompress.data import Batch, Dataset
from nncompress.ir import Model
from nncompress.progress import Progress


def read_sites(choice: Choice) -> list[Site]:
    """Where the choice's consumers read it; without consumers, the last value that carries it."""
    read = {consumer.layer.data for consumer in choice.consumers}
    found = {site.node: site for site in choice.sites if site.node in read}
    if found:
        return list(found.values())
    return [choice.sites[-1]] if choice.sites else []


def sum_by_unit(site: Site, per_index: Tensor, size: int) -> Tensor:
    """Sum `[..., indices]` into `[..., units]`."""
    own = np.flatnonzero(site.unit >= 0)
    total = torch.zeros(*per_index.shape[:-1], size, dtype=per_index.dtype)
    return total.index_add_(-1, torch.from_numpy(site.unit[own]), per_index[..., own])


def activation_statistics(
    model: Model,
    choices: Sequence[Choice],
    data: Dataset,
    limit: int | None,
    batch_size: int,
    statistic: Callable[[ChannelStatistics], Tensor],
    progress: Progress,
) -> dict[str, Scores]:
    """A per-channel statistic of what each unit sends on, averaged over the places where it is read.

    Returns: choice name -> `[units]`.
    """
    wanted = {c.name: [(site, ChannelStatistics(site.dim)) for site in read_sites(c)] for c in choices}
    watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
    for pairs in wanted.values():
        for site, statistics in pairs:
            watches.setdefault(site.node, []).append(statistics.add)
    batches = (b.inputs for b in data.batches(batch_size, limit))
    observe(model, batches, watches, progress=progress, total=data.planned_samples(limit))
    scores = {}
    for choice in choices:
        total = torch.zeros(choice.size, dtype=torch.float64)
        indices = torch.zeros(choice.size, dtype=torch.float64)
        for site, statistics in wanted[choice.name]:
            values = statistic(statistics)
            total += sum_by_unit(site, values, choice.size)
            indices += sum_by_unit(site, torch.ones_like(values), choice.size)
        scores[choice.name] = (total / indices.clamp(min=1)).numpy()
    return scores


def activity(statistics: ChannelStatistics) -> Tensor:
    """The share of values that are not zero (the papers' activation count, per value)."""
    return statistics.active / statistics.count


def variance(statistics: ChannelStatistics) -> Tensor:
    return statistics.variance


def gradient_products(
    model: Model,
    choices: Sequence[Choice],
    data: Dataset,
    limit: int | None,
    batch_size: int,
    progress: Progress,
) -> Iterator[dict[str, Tensor]]:
    """Per batch: choice name -> `[samples, units]`: the first-order change of each sample's loss (negated) if
    the unit were silent: sum of activation × gradient over everything that reads the unit."""
    reads = {c.layer.node: c.layer.data for choice in choices for c in choice.consumers}
    bare = {choice.name: read_sites(choice) for choice in choices if not choice.consumers}
    hooks = GradientHooks(model, reads, [site.node for sites in bare.values() for site in sites])
    planned, seen = data.planned_samples(limit), 0
    dims, watched = SampleDims(model), [*reads.values(), *(s.node for sites in bare.values() for s in sites)]
    size = gradient_batch_size(model, batch_size)
    if any(dims.of(node, size) is None for node in watched):
        size = 1  # what a sample's loss owes to a value that all samples share shows in a batch of its own
    for batch in data.batches(size, limit):
        progress.step("gradients of the loss", seen, planned)
        with torch.enable_grad():
            loss = task_loss(hooks.outputs(*batch.inputs)[answer_index(model, data)], batch, data.spec)
        read, value = hooks.gradients(loss)
        found = {}
        count = len(batch)
        for choice in choices:
            total = torch.zeros(count, choice.size, dtype=torch.float64)
            for c in choice.consumers:
                site = next((s for s in choice.sites if s.node is c.layer.data), None)
                if site is not None and c.layer.node in read:
                    products = loss_products(hooks.read[c.layer.node], read[c.layer.node])
                    total += sum_by_unit(site, dims.total(site.node, products, count, site.dim), choice.size)
            for site in bare.get(choice.name, ()):
                if site.node in value:
                    products = loss_products(hooks.value[site.node], value[site.node])
                    total += sum_by_unit(site, dims.total(site.node, products, count, site.dim), choice.size)
            found[choice.name] = total
        seen += len(batch)
        yield found
    progress.step("gradients of the loss", seen, planned)


def taylor(products: Iterator[dict[str, Tensor]]) -> dict[str, Scores]:
    """E |Σ a·∂L/∂a|: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", eq. 8."""
    return _mean(products, torch.abs)


def fisher(products: Iterator[dict[str, Tensor]]) -> dict[str, Scores]:
    """½ E (Σ a·∂L/∂a)²: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning",
    eq. 9."""
    return _mean(products, lambda product: 0.5 * product.square())


def _mean(products: Iterator[dict[str, Tensor]], function: Callable[[Tensor], Tensor]) -> dict[str, Scores]:
    total: dict[str, Tensor] = {}
    samples = 0
    for batch in products:
        for name, product in batch.items():
            added = function(product).sum(0)
            total[name] = total[name] + added if name in total else added
        samples += len(next(iter(batch.values())))
    return {name: (value / max(samples, 1)).numpy() for name, value in total.items()}


def optimal_brain_damage(
    model: Model,
    choices: Sequence[Choice],
    data: Dataset,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> dict[str, Scores]:
    """½ Σ h w² over every weight that the unit touches (LeCun et al. 1990, "Optimal Brain Damage", eq. 5).

    h is the diagonal of the loss's second derivative as Σ_n (∂L_n/∂w)². With a random sign per sample one
    backward pass per batch estimates it: the cross terms between samples vanish in expectation.
    """
    touched = sorted({m.tensor for c in choices for m in c.members})
    weights = {n: model.tensor(n) for n in touched if isinstance(model.tensor(n), torch.nn.Parameter)}
    generator = torch.Generator().manual_seed(seed)

    def loss(batch: Batch) -> Tensor:
        signs = torch.randint(0, 2, (len(batch),), generator=generator).double() * 2 - 1
        outputs = model.outputs_of(*batch.inputs)
        index = answer_index(model, data)
        answer = outputs[index].movedim(output_dims(model.outputs_of, batch, outputs)[index] or 0, 0)
        total = torch.zeros((), dtype=torch.float64)
        for row, sign in enumerate(signs):
            one = Batch(batch.inputs, None if batch.labels is None else batch.labels[row : row + 1])
            total = total + sign * task_loss(answer[row : row + 1], one, data.spec)
        return total

    curvature = mean_squared_gradients(
        model,
        weights,
        data,
        loss,
        limit=limit,
        batch_size=batch_size,
        progress=progress,
        label="second derivatives",
    )
    scores = {}
    for choice in choices:
        total = torch.zeros(choice.size, dtype=torch.float64)
        for tensor, dim in sorted({(m.tensor, m.dim) for m in choice.members if m.tensor in weights}):
            saliency = 0.5 * curvature[tensor] * weights[tensor].detach().double().square()
            total += per_unit(choice, tensor, dim, saliency)
        scores[choice.name] = total.numpy()
    return scores
