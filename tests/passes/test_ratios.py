"""`--ratios`: a strength per group or layer, the same as text, as a recipe and as a record."""

import numpy as np
import pytest
import torch
from networks import built_once
from torch import nn

from nncompress import pipeline
from nncompress.data import open_data
from nncompress.errors import DataError, UsageError
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, PruneNodes
from nncompress.recipe import parse_pass, read_recipe


@built_once
def perceptron() -> Model:
    torch.manual_seed(0)
    layers = (nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    return Model.from_module(nn.Sequential(*layers).eval(), (torch.randn(2, 20),))


@pytest.fixture
def net() -> Model:
    return perceptron()


def shapes(model: Model) -> list[list[int]]:
    return [list(value.shape) for name, value in model.state_dict().items() if value.dim() == 2]


def test_only_the_groups_named_lose_nodes(net):
    result, _ = pipeline.run(net, [PruneNodes(ratios=("0=0.5", "2=0.1"))], Context())
    assert shapes(result) == [[20, 20], [27, 20], [4, 27]]
    result, _ = pipeline.run(net, [PruneNodes(ratios=("2=0.5",))], Context())
    assert shapes(result) == [[40, 20], [15, 40], [4, 15]]


def test_only_the_layers_named_are_factorized_to_their_share(net):
    result, (step,) = pipeline.run(net, [Factorize(ratios=("2=0.4",))], Context())
    assert shapes(result) == [[40, 20], [6, 40], [30, 6], [4, 30]]  # 0.4 · 40 · 30 / (40 + 30) = 6.9
    assert {c.where for c in step.changes if not c.applied} == {"0", "4"}


@pytest.mark.parametrize("kind", [PruneNodes, Factorize])
def test_as_text_as_a_table_and_as_recorded(tmp_path, kind):
    made = kind(ratios=("0=0.5", "layer1.0=0.25"))
    assert parse_pass(str(made)) == made
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[[pass]]\nname = "{made.name}"\nratios = {{"0" = 0.5, "layer1.0" = 0.25}}\n')
    assert read_recipe(recipe) == [made]
    assert kind(**made.settings()) == made


@pytest.mark.parametrize("kind", [PruneNodes, Factorize])
@pytest.mark.parametrize("pair", ["0", "=0.5", "0=", "0=half", "0=0", "0=1", "0=nan", "0=-0.1"])
def test_what_is_no_pair_is_refused(kind, pair):
    with pytest.raises(UsageError, match="--ratios is no name and share"):
        kind(ratios=(pair,))


@pytest.mark.parametrize("kind", [PruneNodes, Factorize])
def test_contradictions_are_refused(net, kind):
    with pytest.raises(UsageError, match="twice"):
        kind(ratios=("0=0.5", "0=0.4"))
    with pytest.raises(UsageError, match=r"each say|one way"):
        kind(ratios=("0=0.5",), macs=0.5)
    with pytest.raises(UsageError, match="--ratios missing names no"):
        pipeline.run(net, [kind(ratios=("missing=0.5",))], Context())


def samples_of(spec: object) -> set[float]:
    return {float(x) for batch in open_data(spec).batches(8) for x in batch.inputs[0][:, 0]}


def test_halves_are_two_parts_and_stay_what_they_are(tmp_path):
    file = tmp_path / "d.npz"
    np.savez(file, x=np.arange(31, dtype=np.float32)[:, None], y=np.arange(31) % 3)
    first, second = samples_of(f"{file}?half=1"), samples_of(f"{file}?half=2")
    assert (len(first), len(second), len(first | second)) == (15, 16, 31)
    assert first == samples_of(f"{file}?half=1")
    assert sorted(first) != [float(i) for i in range(15)]
    with pytest.raises(DataError, match="no such half"):
        open_data(f"{file}?half=3")
    with pytest.raises(DataError, match="takes no options"):
        open_data(f"{file}?half=1&quarter=2")
