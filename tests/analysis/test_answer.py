"""Which output labels belong to, and along which dims records lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import nncompress
from nncompress.analysis.accuracy import compare, evaluate, evaluate_paired
from nncompress.analysis.answer import ANSWER, answer_index, index_of, settle_answer
from nncompress.data import Batch, open_data
from nncompress.errors import DataError, UsageError, VerificationError
from nncompress.ir import InputSpec, Model
from nncompress.ir.graph.sample_dims import INDEPENDENT, dependence

FREE = [InputSpec("x", "float32", ("batch", 8))]


@pytest.fixture
def data(tmp_path):
    def made(labels, specs=FREE, **arrays):
        x = {"x": np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)}
        np.savez(tmp_path / "d.npz", **{**x, **arrays}, y=labels)
        return open_data(str(tmp_path / "d.npz"), specs)

    return made


def heads(**sizes):
    torch.manual_seed(0)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(8, size) for size in sizes.values())

        def forward(self, x):
            return tuple(head(x) for head in self.heads)

    return Model.from_module(Heads().eval(), (torch.randn(2, 8),))


def test_the_output_that_the_labels_fit(data):
    model = heads(box=4, scores=10)
    labels = np.arange(40) % 10
    dataset = data(labels)
    x = torch.cat([b.inputs[0] for b in dataset.batches(64)])
    truth = float((model.outputs_of(x)[1].argmax(1).numpy() == labels).mean())
    assert evaluate(model, dataset).top1 == pytest.approx(truth)
    assert settle_answer(model, dataset)
    assert model.metadata[ANSWER] == answer_index(model) == 1


def test_labels_that_begin_low_do_not_mislead(data):
    """Sorted by class, the first batch fits the box too; what counts are the labels of all records."""
    assert evaluate(heads(box=4, scores=10), data(np.arange(100) // 10), batch_size=8).samples == 100


def test_where_several_fit_the_user_is_asked(data):
    model, dataset = heads(a=10, b=12), data(np.arange(40) % 10)
    with pytest.raises(DataError, match="fit several") as error:
        evaluate(model, dataset)
    assert "--output-index" in error.value.remedy
    with pytest.raises(DataError, match="labels may belong to any"):
        answer_index(model, dataset)
    assert evaluate(model, dataset, output=1).samples == 40
    with pytest.raises(DataError, match="fit none"):
        evaluate(heads(a=4, b=5), dataset)


class Squeezed(nn.Sequential):
    """One number per sample, of a single sample without the dim of its batch."""

    def __init__(self):
        super().__init__(nn.Linear(8, 1))

    def forward(self, x):
        return super().forward(x).squeeze()


@pytest.mark.parametrize(("count", "batch"), [(5, 2), (1, 64)])
def test_a_single_sample_that_loses_its_batch_is_measured_as_the_others(count, batch, data):
    labels = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    net, said = Squeezed().eval(), []
    model = nncompress.load(net, input="Bx8", notice=said.append)
    assert "a squeeze()" in " ".join(said)
    dataset = data(labels)
    with torch.no_grad():
        answers = torch.cat([net(b.inputs[0]).reshape(-1) for b in dataset.batches(64)]).numpy()
    expected = np.sqrt(np.square(answers - labels).mean())
    assert evaluate(model, dataset, batch_size=batch).rmse == pytest.approx(expected, rel=1e-5)
    other = nncompress.load(Squeezed().eval(), input="Bx8", notice=said.append)
    found = compare(model, other, dataset.batches(batch))
    assert found.samples == count
    assert found.outputs[0].max_abs > 0


def test_outputs_by_number_and_name():
    assert index_of(("box", "scores"), "1") == index_of(("box", "scores"), "scores") == 1
    with pytest.raises(UsageError, match="no output 2"):
        index_of(("box", "scores"), "2")


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_class_numbers_as_answers(data, shape):
    dataset = data(np.arange(40) % 4)
    weight = torch.randn(8, 4)
    numbers = lambda x: (x @ weight).argmax(1).reshape(shape)  # noqa: E731
    scores = lambda x: x @ weight  # noqa: E731
    assert evaluate(numbers, dataset).top1 == evaluate(scores, dataset).top1
    assert evaluate_paired(numbers, scores, dataset).only_changed == 0
    (difference,) = compare(numbers, numbers, dataset.batches(16)).outputs
    assert difference.agreement == 1


def test_classes_that_are_ruled_out(data):
    """-inf is a score; NaN, and a record without any finite score, are not."""
    dataset, off = data(np.arange(40) % 4), torch.tensor([False, False, True, False])
    weight = torch.randn(8, 4)
    masked = lambda x: (x @ weight).masked_fill(off, -torch.inf)  # noqa: E731
    assert evaluate(masked, dataset).samples == 40
    assert compare(masked, masked, dataset.batches(16)).outputs[0].max_abs == 0
    with pytest.raises(VerificationError, match="sample 0 is NaN or infinite"):
        evaluate(lambda x: masked(x).fill_(-torch.inf), dataset)
    with pytest.raises(VerificationError, match="sample 0 is NaN or infinite"):
        compare(masked, lambda x: x @ weight, dataset.batches(16))


class Recurrent(nn.Module):
    def __init__(self, time_first):
        super().__init__()
        self.cell = nn.GRU(8, 6, num_layers=2, batch_first=not time_first)
        self.head, self.time_first = nn.Linear(6, 5), time_first

    def forward(self, x, state):
        y, state = self.cell(x, state)
        return self.head(y[-1] if self.time_first else y[:, -1]), state


@pytest.mark.parametrize("time_first", [False, True])
def test_records_along_other_dims_are_fed_and_scored_one_by_one(tmp_path, time_first):
    torch.manual_seed(0)
    module = Recurrent(time_first).eval()
    x, state = torch.randn(30, 7, 8), torch.randn(30, 2, 6)
    dims = [1 if time_first else 0, 1]
    examples = (x[:2].movedim(0, dims[0]).contiguous(), state[:2].movedim(0, 1).contiguous())
    model = Model.from_module(module, examples, sample_dims=dims)
    assert [spec.batch_dim for spec in model.inputs] == dims
    assert dependence(model.outputs_of, model.inputs, model.example_inputs(3), alone=True) < 1e-5
    alone = []
    for a, b in zip(x, state):
        given = a[:, None] if time_first else a[None]
        alone.append(int(module(given, b[:, None])[0].argmax()))
    labels = np.where(np.arange(30) < 20, alone, (np.array(alone) + 1) % 5)
    np.savez(tmp_path / "d.npz", x=x, state=state, y=labels)
    dataset = open_data(str(tmp_path / "d.npz"), model.inputs)
    for size in (1, 2, 7):  # two layers, seven steps, and five classes have sizes of their own
        assert evaluate(model, dataset, batch_size=size).top1 == pytest.approx(20 / 30)
        assert compare(model, model, dataset.batches(size)).outputs[1].cosine == pytest.approx(1)


def test_a_table_that_all_records_share(data):
    specs = [InputSpec("x", "float32", ("batch", 8)), InputSpec("table", "float32", (8, 3), fixed_dim=None)]
    table = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    dataset = data(np.arange(10) % 3, specs, table=table)
    (batch,) = dataset.batches(16)
    assert len(batch) == 10
    assert torch.equal(batch.inputs[1], torch.from_numpy(table))
    part = batch.part(slice(2, 5))
    assert (part.inputs[0].shape, part.inputs[1].shape, len(part.labels)) == ((3, 8), (8, 3), 3)
    assert evaluate(lambda x, t: x @ t, dataset).samples == 10


def test_of_a_large_batch_that_is_fixed_few_samples_are_run_alone():
    """A file of 1 kB that fixed a batch of 2^20 was loaded for minutes: a run for each of its samples."""
    count, runs = 2**14, []
    specs, x = [InputSpec("x", "float32", (count, 2))], (torch.randn(count, 2),)

    def counted(x):
        runs.append(len(x))
        return x.relu()

    assert dependence(counted, specs, x, alone=True) == 0
    assert len(runs) < 20
    assert dependence(lambda x: x.cumsum(0), specs, x, alone=True) > 0.1


def test_dependence_sees_time_and_mixing():
    specs = [InputSpec("x", "float32", ("batch", 4, 8))]
    x = (torch.randn(3, 4, 8),)
    causal = lambda x: x.cumsum(0)  # noqa: E731  the first step does not depend on the later ones
    assert dependence(causal, specs, x, alone=True) > 0.1
    assert dependence(causal, specs, x, alone=False) > 0.1
    assert dependence(lambda x: x - x.mean(0), specs, x, alone=True) > 0.1
    assert dependence(torch.relu, specs, x, alone=True) == 0
    assert dependence(lambda x: x.sum(0), specs, x, alone=True) == float("inf")
    assert dependence(torch.relu, [InputSpec("x", "float32", (1, 8))], (torch.randn(1, 8),), False) is None


@pytest.mark.parametrize("seed", range(6))  # of three random scores, one in six lies in order already
@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: x.sort(0).values,
        lambda x: x.sort(0, descending=True).values,
        lambda x: x.cummax(0).values,
        lambda x: x.sum(1, keepdim=True).sort(0).values + x,
        lambda x: x.roll(2, 0),
        lambda x: x.roll(3, 0),
        lambda x: x[torch.arange(len(x)) * 7 % len(x)],
        lambda x: torch.cat([x[:1], (x[2:] + x[:-2]) / 2, x[-1:]]) if len(x) > 1 else x,
    ],
)
def test_dependence_sees_mixing_in_whatever_order_samples_lie(mixing, seed):
    x = (torch.randn(3, 1, generator=torch.Generator().manual_seed(seed)),)
    assert dependence(mixing, [InputSpec("x", "float32", ("batch", 1))], x, alone=True) > INDEPENDENT


def test_a_part_of_a_batch_keeps_its_layout():
    batch = Batch((torch.arange(12).reshape(2, 6),), torch.arange(6), (1,))
    assert len(batch) == 6
    assert batch.part(slice(1, None, 2)).inputs[0].tolist() == [[1, 3, 5], [7, 9, 11]]
