"""Look for networks that break a law: random ones for as long as is said, each failure made small.

    PYTHONPATH=tests/support python -m benchmarks.robustness.laws_long --minutes 20 --seed 1

prints every kind of failure once, with the smallest network found that shows it, and at the end how often
each law held, said nothing (the network ignores its input, a pass refused) and failed. Exit code 1 if any.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import re
import sys
import time
import traceback
import warnings
from dataclasses import replace
from typing import Any

import hypothesis
import laws
import torch
from hypothesis import strategies as st
from random_networks import DTYPES, Net, nets

_STEP = st.sampled_from(laws.STEPS)
_CHAIN = st.lists(_STEP, min_size=1, max_size=4).map(tuple)
_SCOPE = st.sampled_from(["global", "layer"])
_SHARE = st.sampled_from([0.1, 0.3, 0.5, 0.8])
_ANY_DTYPE = nets(dtypes=("float32", *DTYPES))
_GROW = st.sampled_from(
    ["grow:by=1", "grow:by=3,init=split", "grow:factor=1.5,round-to=2", "grow:by=2,where=std"]
)
_ROUND = st.sampled_from([s for s in laws.STEPS if s.startswith(("cluster", "quantize", "prune:pattern"))])
LAWS: dict[str, tuple[laws.Law, tuple[st.SearchStrategy[Any], ...], int]] = {  # law, arguments, weight
    "loads": (laws.loads_as_its_module, (_ANY_DTYPE,), 2),
    "any order": (laws.any_order, (_ANY_DTYPE, _CHAIN, st.booleans()), 8),
    "onnx": (laws.onnx_is_model, (nets(dtypes=("float32", "float32", "float16")), _CHAIN), 4),
    "nothing to do": (laws.nothing_to_do, (_ANY_DTYPE,), 1),
    "again": (laws.again_is_nothing, (nets(), _ROUND), 3),
    "stronger prune": (laws.stronger_prune_wins, (_ANY_DTYPE, _SHARE, _SHARE, _SCOPE), 1),
    "full rank": (laws.full_rank_keeps_the_function, (nets(), st.integers(1, 2)), 2),
    "grow": (laws.growing_keeps_the_function, (_ANY_DTYPE, _GROW), 3),
    "copy": (laws.a_copy_is_independent, (_ANY_DTYPE,), 1),
    "share": (laws.sharing_equals_changes_nothing, (nets(),), 1),
}  # fmt: skip


def outcome(name: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """("held" | "nothing" | kind of failure, details)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = LAWS[name][0](*arguments)
    except laws.Irrelevant:
        return "nothing", ""
    except Exception as error:  # whatever it is, it is what we look for
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/nncompress/" in f.filename]
        place = f"{frames[-1].filename.rsplit('/', 1)[1]}:{frames[-1].name}" if frames else ""
        line = re.sub(r"[\d.e+-]*\d[\d.e+-]*", "#", str(error).split("\n")[0])[:90]
        return f"{name}: {type(error).__name__} {place} {line}", "".join(traceback.format_exception(error))
    return "held", "; ".join(said) if isinstance(said, list) else ""


def smallest(name: str, arguments: tuple[Any, ...], kind: str, seconds: float = 30) -> tuple[Any, ...]:
    """Fewer layers, fewer steps, plainer options, while the same kind of failure shows."""
    end = time.monotonic() + seconds
    shrunk = True
    while shrunk and time.monotonic() < end:
        shrunk = False
        for candidate in _smaller(arguments):
            if time.monotonic() > end:
                break
            if outcome(name, candidate)[0] == kind:
                arguments, shrunk = candidate, True
                break
    return arguments


def _smaller(arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    found = []
    for i, value in enumerate(arguments):
        options: list[Any] = []
        if isinstance(value, Net):
            n = len(value.layers)
            options = [replace(value, layers=value.layers[:j] + value.layers[j + 1 :]) for j in range(n)]
            options += [replace(value, second=False)] if value.second else []
            options += [replace(value, head="classes")] if value.head != "classes" else []
            options += [replace(value, dtype="float32")] if value.dtype != "float32" else []
        elif isinstance(value, tuple) and len(value) > 1:
            options = [value[:j] + value[j + 1 :] for j in range(len(value))]
        found += [(*arguments[:i], option, *arguments[i + 1 :]) for option in options]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--law", choices=LAWS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * chosen.minutes
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: collections.Counter[str] = collections.Counter()
    refusals: collections.Counter[str] = collections.Counter()

    names = [chosen.law] if chosen.law else [n for n, (_, _, weight) in LAWS.items() for _ in range(weight)]
    cases = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), st.tuples(*LAWS[name][1])))
    quick = hypothesis.settings(
        max_examples=20, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip

    def look(case: tuple[str, tuple[Any, ...]]) -> None:
        if time.monotonic() > end:
            return
        name, arguments = case
        kind, details = outcome(name, arguments)
        known = kind in ("held", "nothing")
        counts[name][kind if known else "failed"] += 1
        if known:
            refusals.update(re.sub(r"[\d.]+", "#", each) for each in filter(None, details.split("; ")))
            return
        failures[kind] += 1
        if failures[kind] == 1:
            small = smallest(name, arguments, kind)
            print(f"\n=== {kind}\n{name}{small}\n{outcome(name, small)[1][-2500:]}", flush=True)

    for seed in itertools.count(1000 * chosen.seed):
        if time.monotonic() > end:
            break
        hypothesis.seed(seed)(quick(hypothesis.given(cases)(look)))()
    print("\n--- refusals")
    for text, count in refusals.most_common(60):
        print(f"{count:5} {text[:180]}")
    print("\n--- failures")
    for text, count in failures.most_common():
        print(f"{count:5} {text}")
    print("\n--- laws")
    for name, counted in counts.items():
        print(
            f"{name:16} held {counted['held']}, said nothing {counted['nothing']}, failed {counted['failed']}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
