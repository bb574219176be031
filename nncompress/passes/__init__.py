"""The passes. One word names a pass everywhere: command, recipe entry, folder and class.

Adding a pass: its folder, a line here, one in the table of `nncompress.cli.table`, its test file. The
command, the recipe entry, the JSON record and the conformance tests follow from the dataclass. A pass of
another package needs an entry point only (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nncompress.extensions import Registry, named
from nncompress.passes.base import Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from nncompress.passes.cluster.options import Cluster
    from nncompress.passes.factorize.options import Factorize
    from nncompress.passes.grow.options import Grow
    from nncompress.passes.prune.options import Prune
    from nncompress.passes.prune_nodes.options import PruneNodes
    from nncompress.passes.quantize.options import Quantize
    from nncompress.passes.reduce.options import Reduce
    from nncompress.passes.share.options import Share
    from nncompress.passes.substitute.options import Substitute

_OWN = {
    "prune": "nncompress.passes.prune.options:Prune",
    "prune-nodes": "nncompress.passes.prune_nodes.options:PruneNodes",
    "cluster": "nncompress.passes.cluster.options:Cluster",
    "factorize": "nncompress.passes.factorize.options:Factorize",
    "reduce": "nncompress.passes.reduce.options:Reduce",
    "substitute": "nncompress.passes.substitute.options:Substitute",
    "share": "nncompress.passes.share.options:Share",
    "grow": "nncompress.passes.grow.options:Grow",
    "quantize": "nncompress.passes.quantize.options:Quantize",
}


def _fault(name: str, found: Any) -> str:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        return f"{found!r:.80} is not a class derived from nncompress.passes.Pass"
    if getattr(found, "name", None) != name:
        return f"the class calls itself {getattr(found, 'name', None)!r}"
    if not isinstance(getattr(found, "summary", None), str) or not found.summary:
        return "the class has no summary"
    if "__dataclass_fields__" not in vars(found):
        return "the class is no dataclass of its own: @dataclass(frozen=True)"
    bare = [f.name for f in fields(found) if "help" not in f.metadata]
    return f"{', '.join(bare)}: an option is declared by option(default, help=...)" if bare else ""


PASSES: Registry[type[Pass]] = Registry("nncompress.passes", _OWN, _fault)

__all__ = [
    "PASSES",
    "Change",
    "Cluster",
    "Context",
    "Factorize",
    "Grow",
    "Pass",
    "Prune",
    "PruneNodes",
    "Quantize",
    "Reduce",
    "Share",
    "Substitute",
    "need_data",
    "option",
]


def __getattr__(name: str) -> Any:
    for place in _OWN.values():  # nncompress.passes.Prune, imported when named
        if place.endswith(f":{name}"):
            return named(place)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
