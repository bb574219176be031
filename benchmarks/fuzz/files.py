"""Fuzzing of everything that reads a file: thousands of broken files, in processes that may die.

    python -m benchmarks.fuzz.files --minutes 60 --out FOLDER     files that went wrong are kept in FOLDER

A case takes a good file of one kind and damages it: bytes, members of an archive, values of a JSON document,
opcodes of a pickle. Then it is read as the commands read it, and used. What is wrong, `process.py` says.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.fuzz.cases import TARGETS, Target
from benchmarks.fuzz.damage import mutated
from benchmarks.fuzz.good import good_files
from benchmarks.fuzz.process import Counts, batch

BATCH = 25  # cases per process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds, joined by commas", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = Counts(options.out.resolve())
    with tempfile.TemporaryDirectory() as folder:
        run(options.only.split(","), options.minutes * 60, options.seed, counts, Path(folder))
    print(counts)


def run(kinds: list[str], seconds: float, seed: int, counts: Counts, folder: Path) -> None:
    """Fuzz the `kinds` in turn for so long."""
    os.chdir(folder)
    good = good_files(folder)
    check_good(good, kinds, folder)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        target = TARGETS[kinds[number % len(kinds)]]

        def make(index: int, target: Target = target, number: int = number) -> bytes:
            return case(good[target.kind], target, seed * 1_000_003 + number, index)

        where = folder / f"{number}"
        for outcome in batch(target.kind, make, target.read, where, target.place, BATCH, target.prepare):
            executed = counts.executions[target.kind] + 1
            counts.add(target.kind, f"{target.kind}-{seed}-{number}-{executed}", outcome)
        number += 1


def check_good(good: dict[str, list[bytes]], kinds: list[str], folder: Path) -> None:
    """Every file is read as it is: damaged from something that is refused anyhow, it would try little."""
    for kind in kinds:
        target, count = TARGETS[kind], len(good[kind])
        found = batch(
            kind, good[kind].__getitem__, target.read, folder / "good", target.place, count, target.prepare
        )
        for index, outcome in enumerate(found):
            if outcome.what != "read":
                raise SystemExit(f"the good file {index} of {kind} is not read: {outcome.what}")


def case(good: list[bytes], target: Target, seed: int, index: int) -> bytes:
    """The content of one case: the same for the same numbers."""
    random = Random(seed * 1000 + index)
    return mutated(random.choice(good), target.kind, random)


if __name__ == "__main__":
    main()
