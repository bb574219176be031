"""Choosing a rank: the papers' loop against the closed form, at the same rank.

    python -m benchmarks.cost.factorize_speed [--size 1024] [--large 4096x11008] [--energy 0.8]

The loop (Çallı 2017 §2.1.4) lowers the rank by one, rebuilds the matrix and measures its error, until the
error exceeds the threshold. Both run in one process and one thread; times are that thread's CPU time. On the
large matrix the loop's time is interpolated between a few of its steps, which are run, without its SVD.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.lowrank.ranks import tails


def weights(rows: int, columns: int) -> Tensor:
    """A random matrix with singular values that decay like a trained layer's."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator)
    shared = torch.randn(rows, 32, generator=generator) @ torch.randn(32, columns, generator=generator)
    return (matrix + 0.5 * shared) / columns**0.5


def by_loop(matrix: Tensor, err: float) -> tuple[int, float]:
    """The lowest rank with a mean squared error below `err`, and seconds."""
    start = time.thread_time()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = len(s)
    while rank > 1:
        rebuilt = (u[:, : rank - 1] * s[: rank - 1]) @ v[: rank - 1]
        if float((matrix - rebuilt).square().mean()) >= err:
            break
        rank -= 1
    return rank, time.thread_time() - start


def loop_without_svd(matrix: Tensor, rank: int, steps: int) -> float:
    """Seconds of the loop's steps down to `rank`, interpolated between a few that are run.

    What a step takes depends on the shapes only, so random factors stand for those of the SVD, whose time
    does not count here.
    """
    rows, columns = matrix.shape
    full = min(rows, columns)
    u, s, v = torch.randn(rows, full), torch.randn(full), torch.randn(full, columns)
    seconds = []
    for each in torch.linspace(full - 1, max(rank - 1, 1), steps).round().int().tolist():
        start = time.thread_time()
        float((matrix - (u[:, :each] * s[:each]) @ v[:each]).square().mean())
        seconds.append(time.thread_time() - start)
    return (full - rank) * (sum(seconds) - (seconds[0] + seconds[-1]) / 2) / (steps - 1)


def by_closed_form(matrix: Tensor, err: float, budget: bool = False) -> tuple[int, float, float]:
    """The same rank; seconds until it is known, and seconds for the factors.

    Args:
        budget: compute the errors of all ranks, as `--macs` has to.
    """
    start = time.thread_time()
    spectrum = decompose(matrix, wanted=None if budget else Wanted(enough=err * matrix.numel()))
    rank = rank_for(tails(spectrum.values, spectrum.beyond), matrix.numel(), err)
    known = time.thread_time()
    spectrum.factors(rank)
    return rank, known - start, time.thread_time() - known


def rank_for(lost: Tensor, elements: int, err: float) -> int:
    return max(1, int((lost / elements >= err).sum()))


def compare(matrix: Tensor, energy: float, repeats: int, steps: int | None) -> None:
    """Print both.

    Args:
        steps: run only so many of the loop's.
    """
    err = (1 - energy) * float(matrix.square().mean())
    rows, columns = matrix.shape
    print(f"{rows}×{columns}; CPU seconds", flush=True)
    ways = {"one threshold (--err)": False, "all ranks (--macs)": True}
    found = {}
    for name, budget in ways.items():
        runs = [by_closed_form(matrix, err, budget) for _ in range(repeats)]
        found[name] = (runs[0][0], *(sorted(run[i] for run in runs)[repeats // 2] for i in (1, 2)))
    rank = found["all ranks (--macs)"][0]
    how = ""
    if steps is None:
        rank, loop = by_loop(matrix, err)
    else:
        loop = loop_without_svd(matrix, rank, steps)
        all_steps = min(rows, columns) - rank
        how = f"   ({all_steps} steps, interpolated between {steps} that were run; without its SVD)"
    print(f"  the papers' loop, rank {rank:5}       {loop:10.2f}{how}")
    for name, (rank, known, factors) in found.items():
        print(
            f"  {name:21}, rank {rank:5} {known:10.3f} {loop / known:6.0f}x"
            f"   with the factors {known + factors:10.3f} {loop / (known + factors):6.0f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--large", default="4096x11008")
    parser.add_argument("--energy", type=float, default=0.8, help="share of the squared weights that stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(weights(options.size, options.size), options.energy, repeats=7, steps=None)
    rows, columns = map(int, options.large.split("x"))
    compare(weights(rows, columns), options.energy, repeats=1, steps=3)


if __name__ == "__main__":
    main()
