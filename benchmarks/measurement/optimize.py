"""What `optimize` found against each pass alone and against uniform settings, at the same bound of accuracy.

    nncompress optimize MODEL --data DATA --max-drop 3 --goal size --trials 60
    python -m benchmarks.measurement.optimize MODEL.optimize

The search itself bisects every pass alone and every uniform combination, so its folder holds what each of
them reaches: of the trials that hold the bound on the half of the data that chooses, the best of each kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncompress.search.trial import record, upper


def kind(trial: Mapping[str, Any]) -> str:
    """ "factorize → quantize, per layer"."""
    names = list(dict.fromkeys(each["name"] for each in trial["recipe"]))
    layered = any("ratios" in each or "keep" in each for each in trial["recipe"])
    trained = ", trained" if "trained" in trial else ""
    return " → ".join(names) + (", per layer" if layered else ", uniform") + trained


def main(folder: Path) -> None:
    bounds = json.loads((folder / "search.json").read_text(encoding="utf-8"))["bounds"]
    goal, bound = bounds["goal"], bounds["drop"]
    if bound is None or goal == "latency":
        raise SystemExit("for searches with --max-drop and --goal macs or size")
    trials = [record(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("trials/*.json")]
    best: dict[str, dict[str, Any]] = {}
    tried: dict[str, int] = {}
    for trial in trials:
        tried[kind(trial)] = tried.get(kind(trial), 0) + 1
        if "lost" in trial and upper(trial) <= bound:
            found = best.setdefault(kind(trial), trial)
            best[kind(trial)] = min(found, trial, key=lambda each: each[goal])
    print(f"best {goal} with at most {bound:g} of {bounds['metric']} lost, with 95 % confidence")
    for name in sorted(tried, key=lambda each: best[each][goal] if each in best else float("inf")):
        if name not in best:
            print(f"{name:55} {tried[name]:3} trials: none holds")
            continue
        row = best[name]
        shown = f"{row[goal]:.3f}" if goal == "macs" else f"{row[goal]:.0f} bytes"
        print(
            f"{name:55} {tried[name]:3} trials: {shown:>12}, lost {row['lost']:.4f}, {row['macs']:.3f} MACs"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
