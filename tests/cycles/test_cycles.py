"""Cycles find the nodes that a task needs, record each cycle, and survive a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kills import Kill, Killed
from networks import built_once
from torch import nn

from nncompress.analysis.cost import cost
from nncompress.cycles import CycleSettings, cubic_sparsity, distort, nodes, run_cycles
from nncompress.data import open_data
from nncompress.errors import ModelFileError, NNCompressError, OutputError, UsageError
from nncompress.ir import Model
from nncompress.train import TrainSettings


@built_once
def network(hidden: int = 24, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 1)).eval()
    return Model.from_module(module, (torch.randn(2, 3),))


@pytest.fixture
def sums(tmp_path):
    """Positive inputs, of which one ReLU gives the sum exactly."""
    x = np.random.default_rng(0).uniform(0, 1, (600, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x.sum(1))
    return open_data(str(tmp_path / "d.npz"), network().inputs)


TRAINING = TrainSettings(epochs=6, batch=50, lr=0.05, loss="rmse")


def test_nodes_that_never_fire_go_and_the_cycle_ends(sums, tmp_path):
    model = network()
    with torch.no_grad():
        model.tensor("0.bias")[:10] = -100.0
    settings = CycleSettings(criterion="activation-count")
    pruned, result = run_cycles(model, sums, TRAINING, settings, folder=tmp_path / "c")
    assert result.stopped == "nothing left to prune"
    assert result.cycles[0].pruned >= 10
    assert nodes(pruned) == result.nodes
    (left,) = result.nodes.values()
    assert left == 24 - sum(c.pruned for c in result.cycles)
    rows = [json.loads(line) for line in (tmp_path / "c" / "cycles.jsonl").read_text().splitlines()]
    assert [row["cycle"] for row in rows] == [c.cycle for c in result.cycles]
    assert [record["pass"] for record in pruned.history] == ["cycle"]


def test_a_bound_on_the_loss_decides_how_many_nodes_are_left(sums, tmp_path):
    settings = CycleSettings(ratio=0.75, max_loss=0.04)
    pruned, result = run_cycles(network(), sums, TRAINING, settings, folder=tmp_path / "c")
    assert list(result.nodes.values()) == [1]
    assert result.loss <= 0.04
    x = next(sums.batches(600))
    with torch.no_grad():
        error = pruned(*x.inputs).flatten() - x.labels.flatten()
    assert float(error.square().mean().sqrt()) == pytest.approx(result.loss, rel=1e-3)


def test_a_cycle_that_loses_too_much_is_taken_back(sums, tmp_path):
    """One node cannot give |x1 - 1/2| and x2 at once: the last pruning is undone."""
    x = np.random.default_rng(1).uniform(0, 1, (600, 3)).astype(np.float32)
    np.savez(tmp_path / "e.npz", x=x, y=np.abs(x[:, 0] - 0.5) * 4 + x[:, 1])
    data = open_data(str(tmp_path / "e.npz"), network().inputs)
    settings = CycleSettings(ratio=0.9, max_loss=0.3)
    training = TrainSettings(epochs=20, batch=50, lr=0.05, loss="rmse")
    _, result = run_cycles(network(), data, training, settings, folder=tmp_path / "c")
    assert any(not cycle.accepted for cycle in result.cycles)
    assert result.stopped == "the loss allows no fewer nodes"
    assert result.loss <= 0.3
    accepted = [sum(c.nodes.values()) for c in result.cycles if c.accepted]
    assert sum(result.nodes.values()) == accepted[-1] == min(accepted)


def test_a_killed_run_ends_the_same(sums, tmp_path):
    settings = CycleSettings(ratio=0.5, max_cycles=2, distort=True, retries=1)
    training = TrainSettings(epochs=2, batch=50, lr=0.05, loss="rmse")
    whole, expected = run_cycles(network(), sums, training, settings, folder=tmp_path / "whole")
    for at in (5, 30, 45, 70, 20):
        with pytest.raises(Killed):
            run_cycles(
                network(), sums, training, settings, folder=tmp_path / "c", resume=True, progress=Kill(at)
            )
    found, result = run_cycles(network(), sums, training, settings, folder=tmp_path / "c", resume=True)
    first, second = whole.state_dict(), found.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [(c.nodes, c.loss) for c in result.cycles] == [(c.nodes, c.loss) for c in expected.cycles]
    with pytest.raises(UsageError, match="another run"):
        run_cycles(network(seed=1), sums, training, settings, folder=tmp_path / "c", resume=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["model.pt2", "trained-1.pt2", "train-1.checkpoint", "state.json", "notes"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_was(sums, tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_bytes(b"weeks of work")
    settings = CycleSettings(ratio=0.5, max_cycles=1)
    with pytest.raises(UsageError, match="files that are not of cycles") as refusal:
        run_cycles(network(), sums, TRAINING, settings, folder=folder)
    assert refusal.value.got == name
    assert "--folder" in refusal.value.remedy
    assert contents(folder) == {name: b"weeks of work"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("how", "wrong"), [({"loss": "cross-entropy"}, {}), ({}, {"exclude": ("*",)}), ({}, {"exclude": ("z",)})]
)
def test_what_is_refused_before_anything_is_trained_leaves_nothing(sums, tmp_path, there, how, wrong):
    folder, before = tmp_path / "a" / "b", {path.name for path in tmp_path.iterdir()}
    if there:
        folder.mkdir(parents=True)
    training = TrainSettings(epochs=1, batch=100, lr=0.05, **how)
    with pytest.raises(NNCompressError):
        run_cycles(network(), sums, training, CycleSettings(ratio=0.5, **wrong), folder=folder)
    assert {path.name for path in tmp_path.rglob("*")} - before == ({"a", "b"} if there else set())


def test_a_run_deletes_and_replaces_only_what_it_wrote(sums, tmp_path):
    """What the user puts in the folder meanwhile stays, under the run's own names, too."""
    folder = tmp_path / "c"
    settings = CycleSettings(ratio=0.5, max_cycles=2)
    training = TrainSettings(epochs=1, batch=100, lr=0.05, loss="rmse")
    mine = {"model.pt2": b"1", "old.checkpoint": b"2", "pruned-1.pt2": b"3", ".nncompress-x.part": b"4"}

    def put(cycle):
        if cycle.cycle == 1:
            for name, content in mine.items():
                (folder / name).write_bytes(content)

    given = {"folder": folder, "resume": True}
    with pytest.raises(ModelFileError):  # pruned-1.pt2 was to be trained next
        run_cycles(network(), sums, training, settings, done=put, **given)
    (folder / "pruned-1.pt2").rename(folder / "kept.pt2")
    mine["kept.pt2"] = mine.pop("pruned-1.pt2")
    with pytest.raises(ModelFileError):
        run_cycles(network(), sums, training, settings, **given)
    assert {name: contents(folder)[name] for name in mine} == mine


def test_what_a_killed_run_left_goes_with_the_one_that_continues(sums, tmp_path, monkeypatch):
    """Killed between the state and the tidying after it: the next run tidies."""
    settings = CycleSettings(ratio=0.5, max_cycles=1)
    training = TrainSettings(epochs=1, batch=100, lr=0.05, loss="rmse")
    given = {"folder": tmp_path / "c", "resume": True}

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("nncompress.files.ledger.Ledger.remove", killed)
        with pytest.raises(Killed):
            run_cycles(network(), sums, training, settings, **given)
    assert {"start.pt2", "train-1.checkpoint"} <= set(contents(tmp_path / "c"))
    run_cycles(network(), sums, training, settings, **given)
    assert set(contents(tmp_path / "c")) == {
        *(".nncompress.json", "state.json", "cycles.jsonl", "trained-2.pt2", "pruned-1.pt2"),
    }


def test_one_process_at_a_time_writes_its_run_to_a_folder(sums, tmp_path):
    settings = CycleSettings(ratio=0.5, max_cycles=1)
    training = TrainSettings(epochs=1, batch=100, lr=0.05, loss="rmse")

    def another(cycle):
        with pytest.raises(OutputError, match="another process is writing"):
            run_cycles(network(), sums, training, settings, folder=tmp_path / "c", resume=True)

    run_cycles(network(), sums, training, settings, folder=tmp_path / "c", done=another)


def test_every_cycle_imitates_the_teacher(sums, tmp_path):
    """A teacher that gives half of the sum: the pruned student gives half of it, too, not the labels."""
    teacher = network(seed=3)
    with torch.no_grad():
        teacher.tensor("0.weight")[0] = 0.5
        teacher.tensor("0.bias")[0] = 0
        teacher.tensor("2.weight").zero_()[0, 0] = 1
        teacher.tensor("2.bias").zero_()
    training = TrainSettings(epochs=10, batch=50, lr=0.05, teacher_weight=1.0)
    settings = CycleSettings(ratio=0.5, max_cycles=1)
    given = {"folder": tmp_path / "c", "resume": True}
    found, result = run_cycles(network(), sums, training, settings, teacher=teacher, **given)
    assert list(result.nodes.values()) == [12]
    batch = next(sums.batches(600))
    with torch.no_grad():
        error = found(*batch.inputs).flatten() - batch.labels.flatten() / 2
    assert float(error.square().mean().sqrt()) < 0.05
    with pytest.raises(UsageError, match="different teacher"):
        run_cycles(network(), sums, training, settings, teacher=network(seed=4), **given)


def test_connections_follow_the_cubic_ramp(sums, tmp_path):
    settings = CycleSettings(sparsity=0.8, max_cycles=3)
    pruned, _ = run_cycles(network(), sums, TRAINING, settings, folder=tmp_path / "c")
    weights = torch.cat([pruned.tensor(n).detach().flatten() for n in ("0.weight", "2.weight")])
    assert float((weights == 0).float().mean()) == pytest.approx(0.8, abs=0.02)
    ramp = [cubic_sparsity(0.8, t, 10) for t in range(11)]
    assert ramp[0] == 0
    assert ramp[10] == pytest.approx(0.8)
    assert ramp[5] == pytest.approx(0.8 * 7 / 8)


def test_distortion_is_the_papers_and_spares_pruned_zeros():
    model = network(200)
    with torch.no_grad():
        model.tensor("0.weight")[:50] = 0
        model.tensor("2.weight").mul_(100)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distort(model, seed=1)
    moved = {name: tensor - before[name] for name, tensor in model.state_dict().items()}
    assert torch.equal(moved["0.weight"][:50], torch.zeros(50, 3))
    size = 1 - float(before["0.weight"].var(correction=0))
    assert 0.95 * size < float(moved["0.weight"].max()) <= size + 1e-6
    assert float(moved["0.weight"].min()) >= 0
    assert torch.equal(moved["2.weight"], torch.zeros_like(moved["2.weight"]))  # its variance is above 1


@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"sparsity": 0.5}])
def test_cycles_count_prunings(sums, tmp_path, how):
    """--max-cycles 1 prunes once, all the way, and trains what is left."""
    training = TrainSettings(epochs=1, batch=100, lr=0.05, loss="rmse")
    settings = CycleSettings(max_cycles=1, **how)
    found, result = run_cycles(network(), sums, training, settings, folder=tmp_path / "c")
    assert [cycle.pruned > 0 for cycle in result.cycles] == [True, False]
    assert (result.prunings, result.stopped) == (1, "max cycles")
    assert found.history[-1]["cycles"] == 1
    if "sparsity" in how:
        weights = torch.cat([found.tensor(n).detach().flatten() for n in ("0.weight", "2.weight")])
        assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    else:
        assert list(result.nodes.values()) == [12]


def test_a_folder_of_another_count_is_not_continued(sums, tmp_path):
    """State that earlier versions wrote counts trainings: it would end elsewhere."""
    training = TrainSettings(epochs=1, batch=100, lr=0.05, loss="rmse")
    given = {"folder": tmp_path / "c", "resume": True}
    run_cycles(network(), sums, training, CycleSettings(ratio=0.5, max_cycles=1), **given)
    path = tmp_path / "c" / "state.json"
    state = json.loads(path.read_text())
    del state["identity"]["format"]
    path.write_text(json.dumps(state))
    with pytest.raises(UsageError, match="different format"):
        run_cycles(network(), sums, training, CycleSettings(ratio=0.5, max_cycles=1), **given)
    for wrong in (
        {"rows": 5},
        {"current": "../x"},
        {"best": 3},
        {"best_loss": "low"},
        {"retried": -1},
        {"new": 1},
    ):
        path.write_text(json.dumps({**state, "state": {**state["state"], **wrong}}))
        with pytest.raises(UsageError, match="cannot be read"):
            run_cycles(network(), sums, training, CycleSettings(ratio=0.5, max_cycles=1), **given)


@pytest.mark.parametrize("options", [{"ratio": 0.5, "outliers": 2}, {"criterion": "luck"}, {"max_cycles": 0}])
def test_settings_that_do_not_fit_are_refused(options):
    with pytest.raises(UsageError):
        CycleSettings(**options)


def test_nodes_move_to_where_they_are_needed_under_one_budget(sums, tmp_path):
    """Two hidden layers of 4 and 40 nodes and a budget of parameters: both are pruned, and both get nodes
    back, never beyond the budget; the folder resumes to the same."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 1)
    model = Model.from_module(nn.Sequential(*layers).eval(), (torch.randn(2, 3),))
    budget = cost(model).parameters
    settings = CycleSettings(ratio=0.25, grow="gradient", max_params=budget, max_cycles=2, samples=200)
    training = TrainSettings(epochs=2, batch=50, lr=0.01)
    folder = tmp_path / "c"
    found, result = run_cycles(model, sums, training, settings, folder=folder)
    assert cost(found).parameters <= budget
    first, second, last = result.cycles
    assert first.pruned == 11
    assert first.grown > 0
    assert second.nodes != first.nodes
    assert all(3 * n + n + n * m + m + m + 1 <= budget for n, m in (c.nodes.values() for c in result.cycles))
    assert (last.pruned, last.grown) == (0, 0)
    again, _ = run_cycles(model, sums, training, settings, folder=folder, resume=True)
    assert torch.equal(again.tensor("0.weight"), found.tensor("0.weight"))


@pytest.mark.parametrize(
    "options", [{"grow": "auto"}, {"max_macs": 1e6}, {"grow": "std", "max_macs": 1, "max_params": 1}]
)
def test_growth_goes_with_one_budget(options):
    with pytest.raises(UsageError, match="one budget"):
        CycleSettings(**options)
