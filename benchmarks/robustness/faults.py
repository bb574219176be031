"""What is left of a file when its writer is killed or interrupted: counts per format and command.

    python -m benchmarks.robustness.faults --kills 100 --signals 10
    python -m benchmarks.robustness.faults --kills 100 --storms        several processes in one folder

One process imports torch and runs a command; at each of its writes it forks, once per fault, children that
live through that write only (`fault_series`). Half of them die before a random call to the system (open,
rename, remove, …), the other half at a random moment. Then:

- every output is the old file or the new one, whole (`torn` counts the others);
- everything else in the directory is what it was (`lost`);
- the next write there leaves nothing of the dead one (`left`).

SIGINT and SIGTERM must end with 130 and 143, one line on stderr, and leave nothing (`rude` counts others).
Some of the killed runs are continued and must end in the weights of the undisturbed one (`resumed`).
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.robustness.fault_commands import COMMANDS
from benchmarks.robustness.fault_series import faults
from benchmarks.robustness.fault_storms import STORMS, storm

_NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Embedding(24, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", type=int, default=20, help="of SIGINT and of SIGTERM each")
    parser.add_argument("--storms", action="store_true", help="several processes at work in one folder")
    parser.add_argument("--only", nargs="+", help="commands whose name contains one of these")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = [each.name for each in (STORMS if options.storms else COMMANDS)]
    asked = options.only or names
    if missing := [part for part in asked if not any(part in name for name in names)]:
        parser.error(f"no name contains {', '.join(missing)}; there are: {', '.join(names)}")
    chosen = {name for name in names if any(part in name for part in asked)}
    torch.set_num_threads(1)  # a fork has none of the other threads
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    if options.storms:
        _storms(chosen, options.kills, options.seed)
        return
    print("| command | kills | old | new | torn | lost | left | resumed | signals | rude |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for command in COMMANDS:
        if command.name in chosen:
            found = faults(command, make_inputs, options.kills, options.signals, options.seed)
            resumed = "–" if command.continues is None else f"{found['resumed']}/{found['resumes']}"
            columns = [found[key] for key in ("kill", "old", "new", "torn", "lost", "left")]
            print(
                f"| {command.name} | {' | '.join(map(str, columns))} | {resumed} | {found['signal']} "
                f"| {found['rude']} |",
                flush=True,
            )


def _storms(chosen: set[str], kills: int, seed: int) -> None:
    print("| commands | kills | ended | torn | lost | left | as undisturbed |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for each in STORMS:
        if each.name in chosen:
            found = storm(each, make_inputs, kills, seed)
            keys = ("kill", "ended", "torn", "lost", "left", "same")
            print(f"| {each.name} | {' | '.join(str(found[key]) for key in keys)} |", flush=True)


def make_inputs() -> None:
    """Two models of each format, data, and files of the user under names that ours could take."""
    from safetensors.torch import save_file

    from nncompress import exporting
    from nncompress.ir import Model

    scope: dict[str, type] = {}
    exec(_NET, scope)
    Path("net.py").write_text(_NET)
    for seed, name in enumerate(("kept", "other")):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 3),
        ).eval()  # fmt: skip
        torch.save(module, f"{name}.pt")
        exporting.write(Model.from_module(module, (torch.randn(2, 1, 8, 8),)), f"{name}.pt2")
        save_file(scope["build"]().state_dict(), f"{name}.safetensors")
    chance = np.random.default_rng(0)
    x = chance.normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez("data.npz", x=x, y=chance.integers(0, 3, 40))
    np.savez("fit.npz", x=x + 1, y=chance.integers(0, 3, 40))
    np.savez("tokens.npz", x=chance.integers(0, 24, (40, 5)))
    for name in ("mine.pt2", "mine.checkpoint", "out.pt2.mine", ".nncompress-mine.part"):
        Path(name).write_text("the user's")


if __name__ == "__main__":
    main()
