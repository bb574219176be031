"""`--stream`: a pass over a checkpoint larger than memory, one weight at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncompress.cli.console import print_json, progress, say, show
from nncompress.errors import UsageError
from nncompress.loading.state_dict.shards import open_checkpoint
from nncompress.options import flag_of
from nncompress.passes import Pass
from nncompress.report.streamed import streamed
from nncompress.results import SCHEMA
from nncompress.streaming import run

TAKEN = ("output", "json")  # of what commands that run passes share


def run_streamed(
    each: Pass, model: str | None, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Run the pass over the weights of MODEL, and write the folder that -o names.

    Args:
        values, defaults: of the options that commands which run passes share.

    Raises:
        UsageError: MODEL or -o is missing, or an option is given that needs the network.
    """
    if model is None:
        raise UsageError(
            f"{each.name} --stream needs MODEL: a .safetensors file, its index, or a folder of shards",
            remedy=f"nncompress {each.name} folder --stream -o smaller",
        )
    for name, value in values.items():
        if name not in TAKEN and value != defaults[name]:
            raise UsageError(
                f"{each.name} --stream goes without {flag_of(name)}: it sees weights, and no network",
                remedy="leave one of them out",
            )
    output = values["output"]
    if output is None or Path(output).suffix:
        raise UsageError(
            f"{each.name} --stream writes a folder of shards",
            got="no -o" if output is None else f"-o {output}",
            remedy="-o with the name of a folder",
        )
    source = open_checkpoint(model)
    with progress() as bar:
        done = run(each, source, output, progress=bar)
    if values["json"]:
        print_json(
            {
                "schema": SCHEMA,
                "kind": "stream",
                "pass": each.name,
                "settings": each.settings(),
                **done.to_json(),
            }
        )
        return
    show(streamed(done))
    arch = "" if "config.json" in done.copied else " --arch file.py:factory"
    say(
        "each weight was treated by itself: how far the outputs of the network moved was not measured; "
        f"nncompress eval {output}{arch} --data DATA tells, where memory allows it"
    )
