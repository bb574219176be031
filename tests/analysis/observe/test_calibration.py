import numpy as np
import pytest
import torch
from networks import built_once
from torch import nn

from nncompress.analysis.observe import calibration
from nncompress.analysis.observe.batch_size import largest_batch, quick_batch
from nncompress.analysis.observe.calibration import BINS, Histogram, choose_range, histograms
from nncompress.data import Batch
from nncompress.errors import DataError, UnsupportedError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import QParams
from nncompress.progress import NullProgress


class Records:
    """A data set of given batches."""

    def __init__(self, *batches: torch.Tensor) -> None:
        self._batches = batches

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        for batch in self._batches:
            for part in batch.split(batch_size):
                yield Batch((part,), None)


def filled(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def rounding_error(values: torch.Tensor, low: float, high: float) -> float:
    grid = QParams.covering(low, high)
    stored = (values / grid.scale).round().add(grid.zero_point).clamp(0, 255)
    return float(((stored - grid.zero_point) * grid.scale - values).double().square().mean())


def test_histogram_grows_without_losing_counts():
    parts = [torch.randn(1000) * 10.0**k for k in (-3, 0, 2, 1)]
    histogram, values = filled(*parts), torch.cat(parts)
    assert histogram.counts.sum() == 4000
    assert histogram.low == values.min()
    assert histogram.high == values.max()
    edges = np.arange(-BINS, BINS + 1) * histogram.width
    expected, _ = np.histogram(values.numpy().astype(np.float64), edges)
    # float32 may put a value on an edge into the bin beside
    assert np.abs(np.cumsum(expected) - np.cumsum(histogram.counts)).max() <= 2
    assert np.count_nonzero(histogram.counts) > 20
    assert max(-histogram.low, histogram.high) > BINS * histogram.width / 4


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_percentile_matches_the_quantile(shift):
    values = torch.randn(200_000) + shift
    low, high = choose_range(filled(values), "percentile", 99.0)
    assert high == pytest.approx(float(np.quantile(values.numpy(), 0.99)), abs=0.02)
    assert low == pytest.approx(min(0.0, float(np.quantile(values.numpy(), 0.01))), abs=0.02)


@pytest.mark.parametrize("relu", [False, True])
def test_mse_is_near_the_best_clip_found_by_brute_force(relu):
    values = torch.distributions.Laplace(0.0, 1.0).sample((100_000,))
    values = torch.cat([values, torch.tensor([80.0, -80.0])])
    values = values.relu() if relu else values
    low, high = choose_range(filled(values), "mse")
    chosen = rounding_error(values, low, high)
    everything = rounding_error(values, float(values.min()), float(values.max()))
    best = min(
        rounding_error(values, 0.0 if relu else -a, b)
        for a in ([1.0] if relu else np.linspace(1, 40, 60))
        for b in np.linspace(1, 40, 60)
    )
    assert chosen <= 1.1 * best
    assert chosen < (everything if relu else 0.9 * everything)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse", "entropy"])
def test_ranges_hold_zero_and_lie_in_what_was_seen(method):
    for values in (torch.rand(5000) + 1, -torch.rand(5000) - 1, torch.randn(5000), torch.zeros(10)):
        low, high = choose_range(filled(values), method)
        assert low <= 0 <= high
        assert low >= min(0.0, float(values.min()))
        assert high <= max(0.0, float(values.max()))


@built_once
def network(weight: float = 1.0) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    nn.init.constant_(module[0].weight[0], weight)
    return Model.from_module(module, (torch.randn(2, 2, 6, 6),))


def watch(model: Model, records: Records):
    node = model.graph.output_node().args[0][0]
    found = histograms(model, [node], records, limit=None, batch_size=4, progress=NullProgress())
    return found[node]


def test_observes_what_the_model_computes_however_it_is_batched():
    model, x = network(), torch.randn(10, 2, 6, 6)
    whole = watch(model, Records(x))
    y = model(x)
    assert whole.high == pytest.approx(float(y.detach().max()), rel=1e-6)
    assert whole.counts.sum() == y.numel()
    parts = watch(model, Records(x[:3], x[3:]))
    assert parts.high == pytest.approx(whole.high, rel=1e-6)


def test_bad_data_is_refused():
    x = torch.randn(4, 2, 6, 6)
    with pytest.raises(DataError, match="empty"):
        watch(network(), Records())
    with pytest.raises(DataError, match="constant"):
        watch(network(), Records(torch.full_like(x, 3.0)))
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        watch(network(), Records(x))
    with pytest.raises(UnsupportedError, match="the result of relu behind 0"):
        watch(network(float("inf")), Records(torch.randn(4, 2, 6, 6)))


def test_records_that_are_all_the_same_are_refused_whatever_their_channels_hold():
    model = Model.from_module(torch.nn.Conv2d(3, 2, 1).eval(), (torch.randn(2, 3, 4, 4),))
    record = torch.randn(1, 3, 1, 1).expand(1, 3, 4, 4)  # a constant image, normalised per channel

    class Same:
        def batches(self, batch_size, limit=None, shuffle_seed=None):
            yield from (Batch((record.expand(4, -1, -1, -1),), None) for _ in range(3))

    with pytest.raises(DataError, match="all 12 samples are the same"):
        histograms(model, [], Same(), limit=None, batch_size=4, progress=NullProgress())


def test_of_very_many_values_an_even_part_is_counted_and_the_ends_are_of_all(monkeypatch):
    monkeypatch.setattr(calibration, "MOST", 1000)
    values = torch.randn(8, 7, 49, generator=torch.Generator().manual_seed(0))
    values[:, :, 3] += 5  # one column of each row of 49: 7 divides that, so every 7th value would be biased
    values[0, 0, 1] = 40.0
    some, every = Histogram(), Histogram()
    some.add(values)
    monkeypatch.setattr(calibration, "MOST", 1 << 18)
    every.add(values)
    assert (some.low, some.high) == (every.low, every.high)
    assert 500 < some.counts.sum() <= 1000
    shares = [float((h.counts * (h.centers > 2.5)).sum() / h.counts.sum()) for h in (some, every)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_a_batch_that_runs_quickly_goes_down_with_the_size_of_its_values():
    small, large = (
        Model.from_module(nn.Conv2d(3, 8, 3).eval(), (torch.randn(2, 3, size, size),)) for size in (8, 512)
    )
    assert quick_batch(small) > 1000
    assert quick_batch(large) < 16
    assert quick_batch(large) <= largest_batch(large)
