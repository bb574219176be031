"""Every operator that a `.pt2` may call, with hostile arguments, through the door that commands use.

    python -m benchmarks.fuzz.operators --tries 50 --out FOLDER     files that went wrong are kept in FOLDER

Arguments are indices, sizes and factors far out of range, tensors of wrong ranks and dtypes, empty,
overlapping, in strange strides, NaN, and sometimes of another type. What is wrong, `process.py` says.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.fuzz.cases import TARGETS
from benchmarks.fuzz.good import good_files
from benchmarks.fuzz.operator_graphs import OperatorGraph
from benchmarks.fuzz.process import Counts, batch
from nncompress.loading.json_schema import Rejected
from nncompress.loading.pt2.operators import operator_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20, help="of each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="operators whose name matches this", default="")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = Counts(options.out.resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # good files lie beside
        (Path(folder) / "good.pt2").write_bytes(good_files(Path(folder))["pt2"][0])
        TARGETS["pt2"].read(Path(folder) / "good.pt2")  # torch makes a folder of its own, once
        for target, operator in operators():
            if not re.search(options.only, target):
                continue

            def make(index: int, target: str = target, operator: Any = operator) -> bytes:
                return OperatorGraph(target, operator, Random(f"{target} {options.seed} {index}")).content()

            outcomes = batch(target, make, TARGETS["pt2"].read, Path(folder) / target, "a.pt2", options.tries)
            for index, outcome in enumerate(outcomes):
                counts.add("pt2", f"{target}-{options.seed}-{index}", outcome)
    print(f"{len(list(operators()))} operators")
    print(counts)


def operators() -> Iterator[tuple[str, Any]]:
    """The admitted ones, by the name that a file calls them."""
    for registered in sorted(torch._C._dispatch_get_all_op_names()):
        namespace, _, rest = registered.partition("::")
        name, _, overload = rest.partition(".")
        target = f"torch.ops.{namespace}.{name}.{overload or 'default'}"
        try:
            operator_name(target)
        except Rejected:
            continue
        yield target, getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


if __name__ == "__main__":
    main()
