"""Calls of one operator with arguments that no model has: indices, sizes and factors far outside its tensors.

Run in a process of its own, because what is looked for kills it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.fuzz.hostile_values import SHAPES, value

MOST_SECONDS = 20  # of processor time, whatever else the machine does
MOST_WAITED = 900


def outcome(operator: Any, seed: int, tries: int) -> str:
    """ "" where every call returned or raised; else what became of the process: "killed by signal 11"."""
    child = os.fork()
    if child == 0:
        # the child must not return into the caller's frames
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**29
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            signal.alarm(MOST_WAITED)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            _call_often(operator, Random(seed), tries)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else f"killed by signal {-code}" if code < 0 else "the calls could not be made"


def _call_often(operator: Any, random: Random, tries: int) -> None:
    warnings.simplefilter("ignore")
    for _ in range(tries):
        shape = random.choice(SHAPES)
        given = [
            a
            for a in operator._schema.arguments
            if not a.kwarg_only and (not a.has_default_value() or random.random() < 0.5)
        ]
        positional = []
        for argument in given:
            positional.append(value(str(argument.type), argument.name, shape, random))
        required = {
            a.name: value(str(a.type), a.name, shape, random)
            for a in operator._schema.arguments
            if a.kwarg_only and not a.has_default_value()
        }
        with contextlib.suppress(Exception), torch.no_grad():
            operator(*positional, **required)
