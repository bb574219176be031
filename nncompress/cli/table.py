"""The table of commands, and what `nncompress --help` prints of it; nothing else is imported for that."""

from __future__ import annotations

import os
import sys

# command -> one line. The commands of passes repeat their pass's `summary` (a test compares them).
COMMANDS = {
    "look at a model": {
        "inspect": "layers with their parameters, MACs and bytes; --units: what can be pruned together",
        "sensitivity": "which layer bears what: error of the outputs against gain, layer by layer",
        "eval": "accuracy, or agreement with the original",
        "bench": "latency, memory and size of models, interleaved in one run",
    },
    "one pass": {
        "prune": "zero small weights: by threshold, to a sparsity, or in an N:M pattern",
        "prune-nodes": "remove whole nodes (channels, heads, hidden units) with everything tied to them",
        "cluster": "few distinct values per weight, stored as codebook and indices of 1 to 8 bits",
        "factorize": "replace layers by low-rank factors where that multiplies less",
        "reduce": "remove nodes and lower ranks together under one budget, repaired in one go",
        "substitute": "cheaper operations instead of K×K convolutions",
        "share": "residual blocks of a stage share one 3×3 weight",
        "grow": "add nodes (channels, heads, hidden units) without changing what the model computes",
        "quantize": "weights of 2 to 8 bits, int8 activations, calibrated on data",
    },
    "training": {
        "train": "train, fine-tune or distil; resumes after a kill",
        "cycle": "train and prune in cycles, until nothing is left to prune",
        "reproduce": "the papers' experiments, their numbers beside ours",
    },
    "whole pipelines": {
        "compress": "an ordered pipeline of passes, from a recipe or --pass",
        "optimize": "find the pipeline under a bound on accuracy, size or latency, with a promise",
        "report": "one page of what runs have left behind: gains, losses, plots, the recipe",
        "export": "write .onnx, .ort, .xml, .pte (run in their runtimes), .pt2, .safetensors",
        "doctor": "what is installed, what each device can run, how to add the rest",
        "targets": "the runtimes that --target names, and which is fastest here",
    },
    "a fresh model": {
        "new": "an architecture of the papers with fresh weights; --list shows them",
    },
}

EXAMPLES = """\
  nncompress inspect model.pt
  nncompress prune model.pt --std 0.5
  nncompress compress model.pt --recipe small.toml -o small.onnx
  nncompress bench model.pt small.onnx --data val.npz"""


def help_text() -> str:
    """What `nncompress --help` prints, at most 80 columns wide."""
    lines = [
        "Make a trained PyTorch model smaller and faster, and know that it is.",
        "",
        "usage: nncompress COMMAND [MODEL] [OPTIONS]",
    ]
    for group, commands in {**COMMANDS, **added_commands()}.items():
        lines += ["", f"{group}:"]
        for name, summary in commands.items():
            first, *rest = _wrapped(summary, 60)
            lines.append(f"  {name:<14} {first}")
            lines += [f"  {'':<14} {line}" for line in rest]
    lines += [
        "",
        "MODEL left out: what the previous command wrote in this directory.",
        "nncompress COMMAND --help: its options, with examples.",
        "-q: results and errors only; -v: each step as a line, with the time left.",
        "nncompress --version; --traceback before COMMAND shows where an error arose.",
        "",
        "examples:",
        EXAMPLES,
    ]
    return "\n".join(lines)


def added_commands() -> dict[str, dict[str, str]]:
    """The passes of other packages, as a group of `COMMANDS`; nothing of theirs is imported."""
    if not _any_added():
        return {}
    from nncompress.extensions import distribution, offered

    ours = {name for group in COMMANDS.values() for name in group}
    added = {
        name: f"a pass of {' and '.join(map(distribution, points))}"
        for name, points in offered("nncompress.passes").items()
        if name not in ours
    }
    return {"passes of other packages": added} if added else {}


def _any_added() -> bool:
    """Whether an installed package may add a pass, by a look at the files that would say so.

    `importlib.metadata` alone would make `--help` take twice as long where, as mostly, there is nothing.
    """
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except NotADirectoryError:  # an archive
            return True
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(f"{folder or '.'}/{name}/entry_points.txt", "rb") as file:
                        if b"[nncompress.passes]" in file.read():
                            return True
                except OSError:
                    pass
    return False


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
