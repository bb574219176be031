"""The passes. One word names a pass everywhere: command, recipe entry, file and class.

Adding a pass: its file, a line here, its test file. The command, the recipe entry, the JSON record and the
conformance tests follow from the dataclass.
"""

from __future__ import annotations

from nncompress.passes.base import Change, Context, Pass
from nncompress.passes.cluster.options import Cluster
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.grow.options import Grow
from nncompress.passes.prune.options import Prune
from nncompress.passes.prune_nodes.options import PruneNodes
from nncompress.passes.quantize.options import Quantize
from nncompress.passes.share.options import Share
from nncompress.passes.substitute.options import Substitute

_ALL: tuple[type[Pass], ...] = (Prune, PruneNodes, Cluster, Factorize, Substitute, Share, Grow, Quantize)
PASSES: dict[str, type[Pass]] = {each.name: each for each in _ALL}

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
    "Share",
    "Substitute",
]
