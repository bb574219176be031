"""Train, prune, train again, until nothing is left to prune (Çallı 2017, §2.1.2 and Figure 2.3).

    while True:
        train until converged
        collect statistics with the weights locked, and prune what the criterion finds
        stop where it found nothing
        optionally distort the remaining weights, so that nodes no longer share a feature

With `max_loss` a cycle whose model does not get back below that loss is taken back, and half as many nodes
are tried: the number of nodes then follows from the loss that is asked for. With `retries` the last model is
distorted and trained again, and the best is kept: a way out of the flat places that training ends in.

Every cycle is a line of JSON, and the folder holds all that a killed run needs to go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nncompress.cycles.settings import CycleSettings

if TYPE_CHECKING:
    from nncompress.cycles.loop import Cycle, CycleResult, cubic_sparsity, distort, nodes, run_cycles

__all__ = ["Cycle", "CycleResult", "CycleSettings", "cubic_sparsity", "distort", "nodes", "run_cycles"]


def __getattr__(name: str) -> Any:  # the command line reads the options without importing torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nncompress.cycles import loop

    return getattr(loop, name)
