"""A machine on which time passes only where a test says so: what it measures does not depend on the load.

Artifacts are really opened and really run; what a call takes is told by `cost`, with 1 % of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nncompress.benchmarking import measure, sessions
from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency.layer_file import Chain, weights
from nncompress.benchmarking.sessions import Candidate
from nncompress.ir import Model
from nncompress.runtimes import Runner

OPENING_NS = 1_000_000


class ScriptedMachine:
    """Both clocks, which are one: nobody else runs here."""

    shortest_sample_ns = 200_000

    def __init__(self) -> None:
        self.now = 0
        self._noise = np.random.default_rng(0)

    def wall(self) -> int:
        return self.now

    cpu = wall

    def perf_counter(self) -> float:
        return self.now / 1e9

    def taking(self, nanoseconds: float, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call`, which takes this long."""

        def timed() -> Any:
            self.now += round(nanoseconds * (1 + 0.01 * self._noise.standard_normal()))
            return call()

        return timed


def artifact_bytes(candidate: Candidate, runner: Runner) -> float:
    """10 ns for each byte of a file or a model: a matrix product reads each weight once."""
    if isinstance(candidate.artifact, Model):
        return 10.0 * sum(t.numel() * t.element_size() for t in candidate.artifact.state_dict().values())
    return 10.0 * (runner.file_size or 0)


def chain_weights(chain: Chain, shape: tuple[int, ...]) -> float:
    """10 ns per weight, in int8 a quarter of that."""
    return (2.5 if chain[0].precision == "int8" else 10.0) * weights(chain)


def script(
    patch: pytest.MonkeyPatch,
    cost: Callable[[Candidate, Runner], float] = artifact_bytes,
    chain_cost: Callable[[Chain, tuple[int, ...]], float] = chain_weights,
) -> ScriptedMachine:
    """From now on, `bench` and the latencies of whole models and of layers are of such a machine.

    Args:
        cost: nanoseconds of one call of an artifact.
        chain_cost: and of a chain of layers, on an input of this shape.
    """
    machine = ScriptedMachine()
    really_open, really_call = Candidate.open, layer_latency._call

    def opened(candidate: Candidate, threads: int, *, anew: bool = False) -> Runner:
        runner = really_open(candidate, threads, anew=anew)
        bind = runner.bind
        runner.bind = lambda *inputs: machine.taking(cost(candidate, runner), bind(*inputs))  # type: ignore[method-assign]
        machine.now += OPENING_NS
        return runner

    def call_of(chain: Chain, shape: tuple[int, ...], *how: Any) -> Callable[[], Any]:
        return machine.taking(chain_cost(chain, shape), really_call(chain, shape, *how))

    patch.setattr(Candidate, "open", opened)
    patch.setattr(layer_latency, "_call", call_of)
    patch.setattr(measure, "SystemClock", lambda: machine)
    patch.setattr(sessions, "time", machine)
    patch.setattr(layer_latency, "time", machine)
    return machine
