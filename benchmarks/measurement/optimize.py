"""What `optimize` found against each pass alone and against uniform settings, at the same bound of accuracy.

    nncompress optimize MODEL --data DATA --max-drop 3 --goal size --trials 60
    python -m benchmarks.measurement.optimize MODEL.optimize

The search itself bisects every pass alone and every uniform combination, so its folder holds what each of
them reaches: of the trials that hold the bound on the half of the data that chooses, the best of each kind.
Below, at equal accuracy: every uniform trial that no other uniform one beats in both, and the best of those
per layer that lose no more than it.
Latencies are those of one machine, the first by name of those that measured here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from nncompress.search.trial import record, upper

PER_LAYER = ("ratios", "keep", "loss_weight")


def kind(trial: Mapping[str, Any]) -> str:
    """ "factorize → quantize, per layer"."""
    names = list(dict.fromkeys(each["name"] for each in trial["recipe"]))
    layered = any(name in each for each in trial["recipe"] for name in PER_LAYER)
    trained = ", trained" if "trained" in trial else ""
    return " → ".join(names) + (", per layer" if layered else ", uniform") + trained


def main(folder: Path) -> None:
    bounds = json.loads((folder / "search.json").read_text(encoding="utf-8"))["bounds"]
    goal, bound = bounds["goal"], bounds["drop"]
    if bound is None:
        raise SystemExit("for searches with --max-drop")
    trials = [record(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("trials/*.json")]
    machine = min((name for trial in trials for name in trial.get("latency", {})), default="")

    def reached(trial: Mapping[str, Any]) -> float:
        if goal != "latency":
            return float(trial[goal])
        return float(trial.get("latency", {}).get(machine, {}).get("share", inf))

    best: dict[str, dict[str, Any]] = {}
    tried: dict[str, int] = {}
    for trial in trials:
        tried[kind(trial)] = tried.get(kind(trial), 0) + 1
        if "lost" in trial and upper(trial) <= bound and reached(trial) < inf:
            best[kind(trial)] = min(best.get(kind(trial), trial), trial, key=reached)
    print(f"best {goal} with at most {bound:g} of {bounds['metric']} lost, with 95 % confidence")
    for name in sorted(tried, key=lambda each: reached(best[each]) if each in best else inf):
        if name not in best:
            print(f"{name:55} {tried[name]:3} trials: none holds")
            continue
        row = best[name]
        shown = f"{row['size']:.0f} bytes" if goal == "size" else f"{reached(row):.3f}"
        print(
            f"{name:55} {tried[name]:3} trials: {shown:>12}, lost {row['lost']:.4f}, {row['macs']:.3f} MACs"
        )
    print("\nuniform, and the best per layer that loses no more")
    measured = [trial for trial in trials if "lost" in trial and reached(trial) < inf]
    least = inf
    for trial in sorted(measured, key=lambda each: (each["lost"], reached(each))):
        if "uniform" not in kind(trial) or reached(trial) >= least or trial["lost"] > 2 * bound:
            continue
        least = reached(trial)
        others = [each for each in measured if "per layer" in kind(each) and each["lost"] <= trial["lost"]]
        best_one = min(others, key=reached, default=None)
        beside = "none" if best_one is None else f"{reached(best_one):.6g}, lost {best_one['lost']:.4f}"
        print(f"{kind(trial):55} {least:.6g}, lost {trial['lost']:.4f}: {beside}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
