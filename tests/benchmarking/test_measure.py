"""The measurement on a clock that only moves when the test says so."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from nncompress.benchmarking.measure import LONGEST_WARM_UP_NS, Measurement, undisturbed

MS = 1_000_000


class Machine:
    """Calls that take as long as they are told, and the clocks that see it."""

    shortest_sample_ns = 200_000

    def __init__(self):
        self.now = self.busy = 0
        self.order = []

    def wall(self):
        return self.now

    def cpu(self):
        return self.busy

    def call(self, name, cpu, away=0):
        def run():
            self.order.append(name)
            self.busy += cpu
            self.now += cpu + away

        return run


def test_times_are_what_the_clocks_say():
    machine = Machine()
    calls = [machine.call("a", 5 * MS, away=2 * MS), machine.call("b", 3 * MS)]
    measurement = Measurement(calls, clock=machine)
    for _ in range(4):
        measurement.round()
    a, b = measurement.times
    assert (a.wall_ns, a.cpu_ns) == ([7 * MS] * 4, [5 * MS] * 4)
    assert (b.wall_ns, b.cpu_ns) == ([3 * MS] * 4, [3 * MS] * 4)
    assert measurement.rounds == 4


def test_every_round_visits_every_arm_once_in_changing_order():
    machine = Machine()
    measurement = Measurement([machine.call(n, 50 * MS) for n in "abc"], clock=machine, seed=1)
    for _ in range(300):
        measurement.round()
    rounds = ["".join(machine.order[i : i + 3]) for i in range(0, 900, 3)]
    assert all(sorted(r) == list("abc") for r in rounds)
    counts = Counter(rounds)
    assert len(counts) == 6
    assert min(counts.values()) > 25  # 50 expected of each of the six orders
    again = Machine()
    repeated = Measurement([again.call(n, 50 * MS) for n in "abc"], clock=again, seed=1)
    for _ in range(300):
        repeated.round()
    assert again.order == machine.order


def test_short_calls_are_repeated_and_long_ones_not_rewarmed():
    machine = Machine()
    measurement = Measurement([machine.call("short", 1000), machine.call("long", 50 * MS)], clock=machine)
    measurement.warm_up()
    machine.order.clear()
    measurement.round()
    assert Counter(machine.order) == {"short": 201, "long": 1}  # 200 of 1 µs, and one to warm the cache
    assert measurement.times[0].wall_ns == [1000]


def test_warm_up_waits_until_times_settle():
    machine = Machine()
    speeds = iter([90 * MS, 60 * MS, 40 * MS, 30 * MS] + [20 * MS] * 1000)
    durations = []

    def call():
        duration = next(speeds)
        durations.append(duration)
        machine.busy += duration
        machine.now += duration

    rounds, settled = Measurement([call], clock=machine).warm_up()
    assert settled
    assert rounds >= 10
    assert durations[-8:] == [20 * MS] * 8


def test_slow_calls_settle_in_few_rounds():
    machine = Machine()
    assert Measurement([machine.call("slow", 900 * MS)], clock=machine).warm_up() == (4, True)


def test_other_programs_do_not_unsettle_cpu_time():
    def run(by_cpu):
        machine, away = Machine(), iter(range(0, 10**9, 3 * MS))
        calls = [lambda: machine.call("a", 5 * MS, away=next(away))()]
        return Measurement(calls, clock=machine, by_cpu=by_cpu).warm_up()[1]

    assert run(by_cpu=True)
    assert not run(by_cpu=False)


def test_warm_up_gives_up_on_a_machine_that_never_settles():
    machine = Machine()
    state = {"t": MS}

    def call():
        state["t"] = int(state["t"] * 1.1)
        machine.busy += state["t"]
        machine.now += state["t"]

    _, settled = Measurement([call], clock=machine).warm_up()
    assert not settled
    assert machine.now >= LONGEST_WARM_UP_NS


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_put_back(enabled):
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with undisturbed():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
