"""How long `nncompress --help` and `--version` take, as a multiple of `python -c pass`.

    python -m benchmarks.cost.cli_startup [--rounds 30]

Interleaved, in random order, medians. Ends with exit code 1 above the limit of 3x.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from statistics import median

LIMIT = 3.0
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "nncompress --help": [sys.executable, "-m", "nncompress", "--help"],
    "nncompress --version": [sys.executable, "-m", "nncompress", "--version"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name in random.sample(list(COMMANDS), len(COMMANDS)):
            begin = time.perf_counter()
            subprocess.run(COMMANDS[name], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begin)
    base = median(times["python -c pass"][1:])  # the first round reads the files from disk
    worst = 0.0
    for name, seconds in times.items():
        ratio = median(seconds[1:]) / base
        worst = max(worst, ratio)
        print(f"{name:22} {1e3 * median(seconds[1:]):6.1f} ms  {ratio:.2f}x")
    print(f"limit {LIMIT:.0f}x: {'kept' if worst <= LIMIT else 'BROKEN'}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
