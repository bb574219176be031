from __future__ import annotations

import collections

import pytest
import torch

from nncompress.data import open_data
from nncompress.errors import DataError
from nncompress.ir import InputSpec

MODULE = """
import numpy as np, torch
X = torch.arange(40, dtype=torch.float32).reshape(10, 4)
Y = torch.arange(10)
def arrays(): return X, Y
def alone(): return X.numpy()
def two(): return (X, X[:, :2]), Y
def generator():
    for i in range(0, 10, 3):
        yield X[i:i + 3], Y[i:i + 3]
def loader(): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
def records(): return torch.utils.data.TensorDataset(X, Y)
def unlabelled():
    for i in range(0, 10, 5):
        yield X[i:i + 5]
def fails(): raise KeyError("nope")
def fails_later():
    yield X, Y
    raise KeyError("nope")
def leaves(): raise SystemExit(0)
def leaves_later():
    yield X, Y
    raise SystemExit(0)
def nothing(): return iter(())
def number(): return 3
def changes():
    yield X, Y
    yield X[:, :3], Y
def nan_later():
    yield X, Y
    bad = X.clone(); bad[4, 1] = float("nan")
    yield bad, Y
def mismatch():
    yield X, Y[:3]
constant = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    name = f"mydata_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("function", ["arrays", "generator", "loader", "records"])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_every_form_gives_the_same_batches(here, features4, function, batch_size):
    dataset = open_data(f"{here}:{function}", features4)
    for _ in range(2):  # a second pass starts over
        batches = list(dataset.batches(batch_size))
        assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert torch.equal(torch.cat([b.inputs[0] for b in batches]), torch.arange(40.0).reshape(10, 4))
        assert torch.cat([b.labels for b in batches]).tolist() == list(range(10))
    assert len(dataset) == 10


@pytest.mark.parametrize("function", ["arrays", "generator"])
def test_a_shuffle_keeps_all_records_and_a_limit_some(here, features4, function):
    dataset = open_data(f"{here}:{function}", features4)
    labels = torch.cat([b.labels for b in dataset.batches(3, shuffle_seed=1)]).tolist()
    assert labels != list(range(10))
    assert sorted(labels) == list(range(10))
    assert sum(len(b) for b in dataset.batches(4, limit=5)) == 5


def test_labels_may_be_missing_and_inputs_several(here, features4):
    assert open_data(f"{here}:alone", features4).has_labels is False
    assert [b.labels for b in open_data(f"{here}:unlabelled", features4).batches(3)] == [None] * 4
    model = [InputSpec("a", "float32", ("batch", 4)), InputSpec("b", "float32", ("batch", 2))]
    (batch,) = open_data(f"{here}:two", model).batches(10)
    assert [tuple(x.shape) for x in batch.inputs] == [(10, 4), (10, 2)]
    assert batch.labels is not None


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("fails", "raised KeyError"),
        ("leaves", "raised SystemExit"),
        ("nothing", "gives no batches"),
        ("number", "does not return data"),
        ("absent", "has no function"),
        ("constant", "has no function"),
        ("two", "as many inputs"),
        ("mismatch", "number of labels"),
    ],
)
def test_what_a_function_declares_wrongly_is_refused_at_opening(here, features4, function, says):
    with pytest.raises(DataError, match=says):
        open_data(f"{here}:{function}", features4)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("fails_later", "raised KeyError"),
        ("leaves_later", "raised SystemExit"),
        ("changes", "from sample 10 on differs"),
        ("nan_later", "sample 14 of x holds NaN"),
    ],
)
def test_a_batch_that_is_wrong_is_refused_when_reached(here, features4, function, says):
    dataset = open_data(f"{here}:{function}", features4)
    with pytest.raises(DataError, match=says):
        list(dataset.batches(4))


def test_modules_that_cannot_be_imported():
    with pytest.raises(DataError, match="cannot be imported"):
        open_data("no_such_module_at_all:f")


def named(size: int = 8, **more: object) -> list[dict[str, object]]:
    """Two batches of two inputs and labels, in another order than the model's."""
    x = torch.arange(4.0 * size).reshape(size, 4)
    first, second = ({"labels": torch.arange(size), "b": x + added, "a": x} for added in (100, 0))
    return [first | more, second]


@pytest.mark.parametrize("wrap", [dict, collections.UserDict])
def test_batches_that_are_dictionaries_are_taken_by_the_names_of_the_inputs(wrap):
    specs = [InputSpec(name, "float32", ("batch", 4)) for name in ("a", "b")]
    for inputs, names in ((specs, ()), (None, ("a", "b"))):
        first, second = open_data([wrap(each) for each in named()], inputs, names=names).batches(8)
        assert torch.equal(first.inputs[1], first.inputs[0] + 100)
        assert torch.equal(second.inputs[1], second.inputs[0])
        assert first.labels.tolist() == list(range(8))


def test_one_input_may_have_any_name_in_a_dictionary():
    images = [{"image": torch.zeros(3, 4), "label": torch.arange(3)}]
    (batch,) = open_data(images, [InputSpec("x", "float32", ("batch", 4))]).batches(3)
    assert batch.inputs[0].shape == (3, 4)


@pytest.mark.parametrize("more", [{"index": torch.arange(8)}, {"c": torch.zeros(8, 4)}])
def test_a_dictionary_with_other_names_is_refused(more):
    specs = [InputSpec(name, "float32", ("batch", 4)) for name in ("a", "b")]
    with pytest.raises(DataError, match=r"other names than the model's inputs[\s\S]*expected: a, b"):
        open_data(named(**more), specs)


def test_a_dictionary_of_arrays_is_data():
    data = {"label": [0, 1, 2], "x": torch.zeros(3, 4)}
    (batch,) = open_data(data, [InputSpec("x", "float32", ("batch", 4))]).batches(3)
    assert batch.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (torch.empty(4, 4, device="meta"), "no plain numbers(.|\n)*on meta"),
        (torch.eye(4).to_sparse(), "no plain numbers(.|\n)*sparse_coo"),
        ([torch.zeros(4, 4), torch.zeros(4)], r"(.|\n)*a tuple: \(x, y\)"),
    ],
)
def test_tensors_that_are_no_data_in_memory_are_told(data, says):
    with pytest.raises(DataError, match=says):
        open_data(data, [InputSpec("x", "float32", ("batch", 4))])
