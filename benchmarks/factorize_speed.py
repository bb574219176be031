"""Choosing a rank: the papers' loop against the closed form, at the same rank.

    python benchmarks/factorize_speed.py [--size 1024] [--large 4096x11008] [--energy 0.9]

The loop (Çallı 2017 §2.1.4) lowers the rank by one, rebuilds the matrix and measures its error, until the
error exceeds the threshold. Both run in one process and one thread; times are that thread's CPU time. On the
large matrix the loop's time is that of its first steps times their number.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from nncompress.analysis.decompose import decompose
from nncompress.analysis.ranks import tails


def weights(rows: int, columns: int) -> Tensor:
    """A random matrix with singular values that decay like a trained layer's."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator)
    shared = torch.randn(rows, 32, generator=generator) @ torch.randn(32, columns, generator=generator)
    return (matrix + 0.5 * shared) / columns**0.5


def by_loop(matrix: Tensor, err: float, steps: int | None = None) -> tuple[int, float]:
    """The lowest rank with a mean squared error below `err`, and seconds; at most `steps` steps are run."""
    start = time.thread_time()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    decomposed = time.thread_time() - start
    rank = len(s)
    start = time.thread_time()
    while rank > 1 and (steps is None or rank > len(s) - steps):
        rebuilt = u[:, : rank - 1] @ torch.diag(s[: rank - 1]) @ v[: rank - 1]  # U' S' V'ᵀ
        if float((matrix - rebuilt).square().mean()) >= err:
            break
        rank -= 1
    looped = time.thread_time() - start
    if steps is not None:
        looped *= (len(s) - int(rank_for(s, matrix.numel(), err))) / max(len(s) - rank, 1)
    return rank, decomposed + looped


def by_closed_form(matrix: Tensor, err: float) -> tuple[int, float, float]:
    """The same rank; seconds until it is known, and seconds for the factors."""
    start = time.thread_time()
    spectrum = decompose(matrix)
    rank = rank_for(spectrum.values, matrix.numel(), err)
    known = time.thread_time()
    spectrum.factors(rank)
    return rank, known - start, time.thread_time() - known


def rank_for(values: Tensor, elements: int, err: float) -> int:
    return max(1, int((tails(values) / elements >= err).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--large", default="4096x11008")
    parser.add_argument("--energy", type=float, default=0.8, help="share of the squared weights that stays")
    options = parser.parse_args()
    torch.set_num_threads(1)

    matrix = weights(options.size, options.size)
    err = (1 - options.energy) * float(matrix.square().mean())
    loop_rank, loop_time = by_loop(matrix, err)
    runs = [by_closed_form(matrix, err) for _ in range(7)]
    (rank, *_), seconds, factors = runs[0], *(sorted(r[i] for r in runs)[3] for i in (1, 2))
    print(f"{options.size}×{options.size}, rank {rank} (the loop: {loop_rank}); CPU seconds")
    print(f"  rank, the papers' loop  {loop_time:10.2f}")
    print(f"  rank, closed form       {seconds:10.3f}   {loop_time / seconds:.0f}x faster")
    print(f"  its factors             {factors:10.3f}   {loop_time / (seconds + factors):.0f}x with them")

    rows, columns = map(int, options.large.split("x"))
    matrix = weights(rows, columns)
    err = (1 - options.energy) * float(matrix.square().mean())
    rank, seconds, factors = by_closed_form(matrix, err)
    _, loop_time = by_loop(matrix, err, steps=3)
    print(f"{rows}×{columns}, rank {rank}; CPU seconds")
    print(f"  rank, the papers' loop  {loop_time:10.0f}   (from its first 3 steps)")
    print(f"  rank, closed form       {seconds:10.1f}")
    print(f"  its factors             {factors:10.1f}")


if __name__ == "__main__":
    main()
