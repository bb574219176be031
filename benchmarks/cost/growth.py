"""How time and memory of passes on data grow with parameters, samples and tokens.

    python -m benchmarks.cost.growth [--only quantize …]

Language models of bytes with random weights and four blocks. From 64 sequences of 32 tokens and a width of
256 one of the three is made four times as large (parameters by twice the width). CPU seconds and the most
memory of a process that loads, changes, checks and writes; `inspect` shows what loading takes of that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cost.commands import measured

BASE = {"width": 256, "samples": 64, "tokens": 32}
CASES = {"1": BASE, "parameters ×4": BASE | {"width": 512}, "samples ×4": BASE | {"samples": 256},
         "tokens ×4": BASE | {"tokens": 128}}  # fmt: skip
COMMANDS = {
    "inspect": ["inspect"],
    "quantize": ["quantize"],
    "quantize --weight-bits 4 --group-size 32": ["quantize", "--weight-bits", "4", "--group-size", "32"],
    "prune --pattern 2:4": ["prune", "--pattern", "2:4"],
    "prune-nodes --macs 0.8": ["prune-nodes", "--macs", "0.8"],
    "factorize --params 0.8": ["factorize", "--params", "0.8"],
}


def prepare(folder: Path) -> None:
    """1.pt2 and 1.npz, and so on, for each case."""
    import numpy as np
    import torch

    import nncompress
    from benchmarks.language.model import VOCABULARY, LanguageModel

    for name, case in CASES.items():
        torch.manual_seed(0)
        ids = torch.randint(0, VOCABULARY, (case["samples"], case["tokens"]))
        net = LanguageModel(case["width"], 4, 4).eval()
        nncompress.export(nncompress.load(net, input=(ids[:2],)), str(folder / f"{name}.pt2"))
        np.savez(folder / f"{name}.npz", x=ids.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({each[0] for each in COMMANDS.values()}))
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.cost.growth", "--prepare", name], check=True)
        print(f"| CPU seconds, GB | {' | '.join(CASES)} |\n{'|---' * (1 + len(CASES))}|", flush=True)
        for told, (command, *options) in COMMANDS.items():
            if given.only and command not in given.only:
                continue
            cells = []
            for case in CASES:
                line = [sys.executable, "-m", "nncompress", command, str(folder / f"{case}.pt2"), *options]
                if command != "inspect":
                    line += ["--data", str(folder / f"{case}.npz"), "-o", str(folder / "out.pt2"), "--json"]
                _, seconds, peak = measured(line)
                cells.append(f"{seconds:.0f} s, {peak:.2f}")
            print(f"| `{told}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
