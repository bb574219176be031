"""Prune every architecture by 30 %, prove it, export it, run it in ONNX Runtime; print the table.

    python -m benchmarks.sweeps.prune [NAME ...] [--no-onnx] [--own]

`share`: parameters that lie in at least one removable unit. `error`: pruned model against the original
with the removed units' consumers at zero, relative. `effect`: how far that removal moved the output (0
would prove nothing). `input`: how far the output moves with the input. `onnx`: ONNX Runtime against the
pruned model. `analysis`: CPU seconds until the dependency groups are known; `CPU`: of the whole row, from the
trained module to the exported file that was run. A row fails beyond 60 of these.
Needs `transformers` for the second half of the list; without it that half is skipped with a note.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from benchmarks.architectures import Architecture, build, everything  # noqa: E402
from nncompress.analysis.couplings import find_couplings, prove, remove_units  # noqa: E402
from nncompress.exporting import write  # noqa: E402
from nncompress.ir import Model  # noqa: E402

COLUMNS = "architecture groups share parameters after MACs after error effect input onnx analysis CPU"
CPU_BOUND = 60.0


def distance(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(left, right))


def onnx_distance(model: Model) -> float:
    """Export, run in ONNX Runtime, compare: `write` does all three and refuses what does not agree."""
    with tempfile.TemporaryDirectory() as folder:
        return write(model, Path(folder) / "pruned.onnx").relative_error


def row(name: str, architecture: Architecture, onnx: bool, ratio: float = 0.3) -> tuple[list[str], bool]:
    begun = time.process_time()
    model = build(architecture)
    with torch.no_grad():
        moved = distance(*(model.outputs_of(*model.example_inputs(3, seed=s)) for s in (1, 2)))
    start = time.process_time()
    couplings = find_couplings(model)
    analysis = time.process_time() - start
    generator = np.random.default_rng(0)
    removal = {
        g.name: generator.choice(g.size, min(g.size - 1, max(1, round(ratio * g.size))), replace=False)
        for g in couplings.groups
    }
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    before, after = couplings.parameters(), sum(p.numel() for p in pruned.graph_module.parameters())
    macs = max(1, couplings.macs())
    there = onnx_distance(pruned) if onnx else float("nan")
    proven = proof.error < 1e-4 and min(proof.effect, moved) > 20 * proof.error
    total = time.process_time() - begun
    good = proven and total < CPU_BOUND and proof.effect > 1e-4 and moved > 1e-5 and not there > 1e-3
    cells = [
        name, str(len(couplings.groups)), f"{couplings.prunable_share():.0%}", f"{before:,}",
        f"{after / before:.0%}", f"{macs:,}", f"{couplings.macs(removal) / macs:.0%}",
        f"{proof.error:.1e}", f"{proof.effect:.2g}", f"{moved:.2g}", f"{there:.1e}", f"{analysis:.2f}",
        f"{total:.1f}",
    ]  # fmt: skip
    return cells, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--own", action="store_true", help="our own definitions only")
    arguments = parser.parse_args()
    known = everything(own=arguments.own)
    chosen = {k: v for k, v in known.items() if not arguments.names or k in arguments.names}
    print("| " + " | ".join(COLUMNS.split()) + " |\n" + "|---" * len(COLUMNS.split()) + "|")
    failed = []
    for name, architecture in chosen.items():
        try:
            cells, good = row(name, architecture, not arguments.no_onnx)
        except Exception as error:  # one architecture must not hide the others
            cells, good = [name, f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"], False
        if not good:
            failed.append(name)
        print("| " + " | ".join(cells) + " |" + ("" if good else " FAILED"), flush=True)
    print(
        f"\n{len(chosen) - len(failed)} of {len(chosen)} proven" + (f"; failed: {failed}" if failed else "")
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
