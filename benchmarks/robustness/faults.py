"""What is left of a file when its writer is killed or interrupted: counts per format and command.

    python -m benchmarks.robustness.faults --kills 100 --signals 20

One process imports torch, loads the model and runs a command up to the moment when it begins to write; there
it forks, once per fault, so that every child lives through the writing only. Half of the children die before
a random call to the system (open, rename, remove, …), the other half at a random moment in between. Then:

- every output is the old file or the new one, whole (`torn` counts the others);
- everything else in the directory is what it was (`lost`);
- the next write there leaves nothing of the dead one (`left`).

SIGINT and SIGTERM must end with 130 and 143, one line on stderr, and leave nothing (`rude` counts others).
A run that can be resumed is resumed after every tenth kill and must end in the same weights (`resumed`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.robustness.fault_series import Command, faults

SESSION = (".nncompress",)
TRAINING = ("--data", "data.npz", "--epochs", "2", "--batch", "20")
COMMANDS = (
    Command("prune .pt2", ("prune", "m.pt2", "--sparsity", "0.5", "-o", "out.pt2"), ("out.pt2", *SESSION)),
    Command(
        "export .pt2 entropy",
        ("export", "m.pt2", "--storage", "entropy", "-o", "out.pt2"),
        ("out.pt2", *SESSION),
    ),
    Command(
        "export .safetensors", ("export", "m.pt2", "-o", "out.safetensors"), ("out.safetensors", *SESSION)
    ),
    Command(
        "export .onnx",
        ("export", "m.pt2", "-o", "out.onnx"),
        ("out.onnx", *SESSION),
        "nncompress.export.write.onnx:convert",
    ),
    Command(
        "export .ort",
        ("export", "m.pt2", "-o", "out.ort"),
        ("out.ort", "out.required_operators.config", *SESSION),
        "nncompress.export.write.onnx:convert",
    ),
    Command(
        "export .pte",
        ("export", "m.pt2", "-o", "out.pte"),
        ("out.pte", *SESSION),
        "nncompress.export.write.pte:_compile",
    ),
    Command(
        "session, .original.pt2",
        ("prune", "m.pt", "--input", "1x1x8x8", "--sparsity", "0.5"),
        ("m.prune.pt2", *SESSION),
    ),
    Command("new", ("new", "sine", "-o", "out.pt2"), ("out.pt2", *SESSION)),
    Command(
        "train",
        ("train", "m.pt2", *TRAINING, "-o", "out.pt2"),
        ("out.pt2", "out.pt2.checkpoint", "out.pt2.jsonl", *SESSION),
        resumes=True,
    ),
    Command(
        "cycle",
        ("cycle", "m.pt2", *TRAINING, "--ratio", "0.5", "--max-cycles", "1", "-o", "out.pt2"),
        ("out.pt2", "m.cycles", *SESSION),
        resumes=True,
    ),
    Command(
        "bench .json, .csv",
        ("bench", "m.pt2", "--time", "1s", "-o", "out.json", "-o", "out.csv"),
        ("out.json", "out.csv"),
    ),
    Command(
        "sensitivity",
        ("sensitivity", "m.pt2", "--method", "prune-nodes", "--folder", "kept"),
        ("kept",),
        fresh=True,
    ),
    Command(
        "optimize",
        (
            *("optimize", "m.pt2", "--data", "data.npz", "--max-drop", "90", "--goal", "macs"),
            *("--trials", "2", "--folder", "kept", "-o", "out.pt2"),
        ),
        ("kept", "out.pt2", "out.toml", *SESSION),
        fresh=True,
    ),
    Command(
        "optimize --finetune",
        (
            *(
                "optimize",
                "m.pt2",
                "--data",
                "data.npz",
                "--max-drop",
                "1",
                "--goal",
                "macs",
                "--trials",
                "2",
            ),
            *("--fit", "fit.npz", "--finetune", "0.05", "--folder", "kept", "-o", "out.pt2"),
        ),
        ("kept", "out.pt2", "out.toml", *SESSION),
        fresh=True,
    ),
    Command("report", ("report", "m.pt2", "-o", "out.html"), ("out.html",)),
    Command(
        "latency table",
        ("factorize", "m.pt2", "--latency", "0.9", "-o", "out.pt2"),
        ("out.pt2", "cache", *SESSION),
        fresh=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", type=int, default=20, help="of SIGINT and of SIGTERM each")
    parser.add_argument("--only", help="commands whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| command | kills | old | new | torn | lost | left | resumed | signals | rude |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for command in COMMANDS:
        if options.only is None or options.only in command.name:
            found = faults(command, make_inputs, options.kills, options.signals, options.seed)
            resumed = f"{found['resumed']}/{found['resumes']}" if command.resumes else "–"
            columns = [found[key] for key in ("kill", "old", "new", "torn", "lost", "left")]
            print(
                f"| {command.name} | {' | '.join(map(str, columns))} | {resumed} | {found['signal']} "
                f"| {found['rude']} |",
                flush=True,
            )


def make_inputs() -> None:
    """Two models as .pt and .pt2, data, and files of the user under names that ours could take."""
    from nncompress import export
    from nncompress.ir import Model

    for seed, name in enumerate(("kept", "other")):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 3),
        ).eval()  # fmt: skip
        torch.save(module, f"{name}.pt")
        export.write(Model.from_module(module, (torch.randn(2, 1, 8, 8),)), f"{name}.pt2")
    chance = np.random.default_rng(0)
    x = chance.normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez("data.npz", x=x, y=chance.integers(0, 3, 40))
    np.savez("fit.npz", x=x + 1, y=chance.integers(0, 3, 40))
    for name in ("mine.pt2", "mine.checkpoint", "out.pt2.mine", ".nncompress-mine.part"):
        Path(name).write_text("the user's")


if __name__ == "__main__":
    main()
