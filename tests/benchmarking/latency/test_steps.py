"""The widths at which kernels get faster, on machines whose clocks have steps."""

from math import ceil, prod

import pytest
from scripted_machine import script

from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency.steps import Steps
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.targets import TARGETS


@pytest.fixture
def steps(monkeypatch, tmp_path):
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 10)

    def on(clock, precision=""):
        script(monkeypatch, chain_cost=clock)
        return Steps(LatencyTable(TARGETS["ort-cpu"], tmp_path), precision)

    return on


def blocks(of):
    """1 µs for every block of `of` outputs, begun or full."""

    def clock(chain, shape):
        (layer,) = chain
        return 1e4 * ceil(layer.weight[0 if layer.op == "Conv" else -1] / of)

    return clock


@pytest.mark.parametrize("of", [1, 4, 16, 32])
def test_the_step_is_that_of_the_clock(steps, of):
    found = steps(blocks(of))
    assert found.of_kind(product=True) == of


def test_it_is_measured_by_op_and_precision_once(steps, monkeypatch):
    def clock(chain, shape):
        of = 16 if chain[0].precision == "int8" else 8 if chain[0].op == "Conv" else 4
        return blocks(of)(chain, shape)

    floats = steps(clock)
    assert (floats.of_kind(product=False), floats.of_kind(product=True)) == (8, 4)
    assert steps(clock, "int8").of_kind(product=False) == 16
    monkeypatch.setattr("nncompress.benchmarking.latency.table.measure", None)  # not again
    assert steps(clock).of_kind(product=False) == 8


def test_widths_that_are_no_multiples_may_be_slower_than_the_end_of_a_step(steps):
    """A kernel for blocks of 8, and a slow one for what is left."""

    def clock(chain, shape):
        outputs = chain[0].weight[-1]
        return 1e4 * (outputs if outputs % 8 == 0 else 1.3 * outputs)

    assert steps(clock).of_kind(product=True) == 8


def test_a_clock_that_goes_by_weights_has_none(steps):
    assert steps(lambda chain, _: 10.0 * prod(chain[0].weight)).of_kind(product=True) == 1
