import numpy as np
import pytest

from nncompress.data.dataset import Dataset
from nncompress.data.fit import fit_inputs
from nncompress.data.source import ArraySource, Field
from nncompress.errors import DataError


class Shuffled:
    """A stream in another order at every call."""

    fields, has_labels, class_names, normalization = (Field("x", "float32", (2,)),), True, None, None

    def __init__(self, records: int) -> None:
        self.samples, self.calls = records, 0

    def stream(self):
        self.calls += 1
        order = np.random.default_rng(self.calls).permutation(self.samples)
        for start in range(0, self.samples, 7):
            part = order[start : start + 7]
            yield (np.stack([part, -part], 1).astype(np.float32),), part


def dataset(records: int, kind: str, fixed_batch: int | None = None) -> Dataset:
    rows = np.arange(records, dtype=np.float32)
    source = (
        ArraySource({"x": np.stack([rows, -rows], 1)}, np.arange(records), origin="here")
        if kind == "array"
        else Shuffled(records)
    )
    conversions = fit_inputs(source.fields, None, None, asked=False, origin="here")
    return Dataset("here", source, conversions, fixed_batch)


def ids(part: Dataset, limit: int | None = None) -> list[int]:
    return [int(i) for batch in part.batches(5, limit) for i in batch.inputs[0][:, 0]]


@pytest.mark.parametrize("kind", ["array", "stream"])
@pytest.mark.parametrize("records", [40, 1000])
def test_no_record_is_in_both_parts_and_both_are_always_the_same(kind, records):
    data = dataset(records, kind)
    fitted, held = data.split()
    again, held_again = data.split()
    assert set(ids(fitted)) == set(ids(again))
    assert not set(ids(fitted)) & {*ids(held), *ids(held_again)}
    assert 1 <= len(ids(held)) <= 64
    assert len(ids(fitted)) >= 0.7 * records
    assert held.has_labels
    assert all(batch.labels.tolist() == batch.inputs[0][:, 0].tolist() for batch in held.batches(9))
    if kind == "array":
        assert set(ids(held)) == set(ids(held_again))
        assert sorted(ids(fitted) + ids(held)) == list(range(records))
        # however few are fitted to, the ones held out stay out
        assert not set(ids(fitted, limit=16)) & set(ids(held))
        assert max(np.diff(sorted(ids(held)))) <= 2 * records / len(ids(held))  # spread over ordered classes


@pytest.mark.parametrize("kind", ["array", "stream"])
@pytest.mark.parametrize("records", [1, 8])
def test_few_records_are_all_fitted_to(kind, records):
    fitted, held = dataset(records, kind).split()
    assert held is None
    assert sorted(ids(fitted)) == list(range(records))


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_a_fixed_batch_gets_whole_batches_of_both(kind):
    fitted, held = dataset(200, kind, fixed_batch=10).split()
    assert {len(batch) for part in (fitted, held) for batch in part.batches(3)} == {10}
    assert len(ids(held)) >= 10
    assert len(ids(fitted)) >= 100
    assert not set(ids(fitted)) & set(ids(held))
    assert dataset(19, kind, fixed_batch=10).split()[1] is None


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_no_batch_has_fewer_samples_than_the_model_takes_at_a_time(kind):
    for records, size, sizes in ((5, 2, [2, 3]), (5, 4, [5]), (4, 1, [2, 2]), (6, 4, [4, 2])):
        data = dataset(records, kind)
        data.at_least(2)
        assert [len(batch) for batch in data.batches(size)] == sizes
        assert [len(x) for x, *_ in data.input_batches(size)] == sizes
        assert sorted(ids(data)) == list(range(records))
        assert [len(batch) for batch in data.batches(size, limit=1)] == [2]
    data = dataset(41, kind)
    data.at_least(2)
    assert all(len(batch) > 1 for part in data.split() for batch in part.batches(4))
    data = dataset(1, kind)
    with pytest.raises(DataError, match="fewer samples than the model takes at a time"):
        data.at_least(2) or list(data.batches(3))  # of a stream nobody knows it before
