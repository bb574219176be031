"""Where a run took place, as pairs of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncompress.report.facts.limits import clipped
from nncompress.report.units import size

_NAMES = {
    "cpu": "processor",
    "architecture": "architecture",
    "cores": "cores",
    "cores_usable": "cores usable",
    "instruction_sets": "instruction sets",
    "virtual_machine": "virtual machine",
    "governor": "frequency governor",
    "load_average": "load average",
    "memory": "memory",
    "system": "system",
    "python": "Python",
}


def environment(found: Mapping[str, Any]) -> dict[str, str]:
    """What `nncompress.benchmarking.environment` records, in words; what is not known is left out."""
    texts = {}
    for key, title in _NAMES.items():
        value = found.get(key)
        if value in (None, [], ""):
            continue
        if key == "memory" and isinstance(value, int | float):
            texts[title] = size(value)
        elif isinstance(value, bool):
            texts[title] = "yes" if value else "no"
        elif isinstance(value, list):
            texts[title] = clipped(", ".join(map(str, value)))
        elif isinstance(value, float):
            texts[title] = f"{value:.2f}"
        else:
            texts[title] = clipped(str(value))
    versions = found.get("versions")
    if isinstance(versions, dict):
        texts |= {clipped(str(name)): clipped(str(version)) for name, version in versions.items()}
    return texts
