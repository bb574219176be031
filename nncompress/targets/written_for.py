"""What a file was written for: kept in it, and told where it runs elsewhere.

nncompress.target    {"target": "ort-cpu", "rewrites": {"amx-tiles": 11}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from nncompress.devices import processor
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.targets import SAID, TARGETS, Target

PROPERTY = "nncompress.target"


def record(target: Target | None, rewrites: Mapping[str, int]) -> dict[str, str]:
    """The metadata property of a file written for `target`; nothing for a plain one."""
    if target is None:
        return {}
    return {PROPERTY: json.dumps({"target": target.name, "rewrites": dict(rewrites)})}


def described(rewrites: Mapping[str, int]) -> str:
    """ "11 weights moved by one for AMX tiles"; "" where there are none."""
    return ", ".join(f"{count} {SAID[name]}" for name, count in rewrites.items() if name in SAID)


def notes(metadata: Mapping[str, str], runtime: str, device: str = "cpu") -> tuple[str, ...]:
    """What a reader of its timings and outputs must know of a file that was written for somewhere else.

    Args:
        metadata: of the file; anyone may have written it.
        runtime: that it is opened in: a key of `nncompress.runtimes.RUNTIMES`.
    """
    written = _read(metadata)
    if written is None:
        return ()
    target, rewrites = written
    text = described(rewrites) or "with nothing in it that others run otherwise"
    if (target.runtime, target.device) != (runtime, device):
        here = next((t.name for t in TARGETS.usable() if (t.runtime, t.device) == (runtime, device)), "")
        remedy = f"nncompress export MODEL -o NAME.onnx --target {here}" if here else "export it plain"
        return (f"it was written for {target.name} ({text}): {remedy} writes it for here",)
    found = processor()
    other = []
    if "amx-tiles" in rewrites and "amx_int8" not in found.flags:
        other.append("this processor has no AMX")
    if "unsigned-weights" in rewrites and not found.saturates:
        other.append("this processor needs no unsigned weights")
    return tuple(
        f"it was written on another machine ({text}), and {why}: it may be slower here than a file that "
        "nncompress export writes here"
        for why in other
    )


def _read(metadata: Mapping[str, str]) -> tuple[Target, dict[str, int]] | None:
    """(target, counts of rewrites) where the file says one that is known."""
    try:
        content = parse_json(metadata.get(PROPERTY, "null"))
    except Unreadable:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("target"), str):
        return None
    target = next((t for t in TARGETS.usable() if t.name == content["target"]), None)
    stated = content.get("rewrites")
    counts = stated if isinstance(stated, dict) else {}
    known = {name: n for name, n in counts.items() if name in SAID and type(n) is int and n > 0}
    return None if target is None else (target, known)
