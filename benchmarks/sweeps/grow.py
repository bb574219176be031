"""Double every group of every architecture and check that it computes what it did; print the table.

    python -m benchmarks.sweeps.grow [NAME ...]

`grown`: groups that were doubled, by new nodes or (`copies`) where a norm runs over them; `left`: groups
whose growth could not be proven, with the reason. `params`: how many times as many. `error`: outputs after
against before, relative to the largest.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings

import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from benchmarks.architectures import ARCHITECTURES, Architecture, build  # noqa: E402
from nncompress.analysis.cost import cost  # noqa: E402
from nncompress.analysis.growth import Amount, Wish, grow_step  # noqa: E402
from nncompress.progress import NullProgress  # noqa: E402

COLUMNS = "architecture groups grown copies left params error seconds"
TOLERANCE = 1e-4


def row(name: str, architecture: Architecture) -> tuple[list[str], bool]:
    model = build(architecture)
    start = time.perf_counter()
    settings = {"limit": None, "batch_size": 4, "seed": 0, "progress": NullProgress()}
    grown = grow_step(model, Wish(Amount(factor=2.0)), None, **settings)
    seconds = time.perf_counter() - start
    inputs = model.example_inputs(3, seed=7)
    with torch.no_grad():
        pairs = list(zip(grown.model.outputs_of(*inputs), model.outputs_of(*inputs)))
    error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    times = cost(grown.model).parameters / cost(model).parameters
    figures = [len(grown.sizes), len(grown.added), len(grown.copies & grown.added.keys()), len(grown.left)]
    cells = [name, *map(str, figures), f"{times:.1f}x", f"{error:.0e}", f"{seconds:.1f}"]
    for group, why in grown.left.items():
        print(f"    {name}: {group}: {why}", flush=True)
    return cells, error <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    wanted = parser.parse_args().names or list(ARCHITECTURES)
    print("| " + " | ".join(COLUMNS.split()) + " |", flush=True)
    print("|" + "---|" * len(COLUMNS.split()), flush=True)
    good = 0
    for name in wanted:
        try:
            cells, right = row(name, ARCHITECTURES[name])
        except Exception as error:  # a row of its own, and on with the next
            cells, right = [name, f"{type(error).__name__}: {str(error).splitlines()[0]}"], False
        good += right
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"{good} of {len(wanted)} compute what they did")
    return good < len(wanted)


if __name__ == "__main__":
    sys.exit(main())
