"""Repair without training: what is left of a model makes up for what was removed, in closed form."""

from __future__ import annotations

from nncompress.analysis.compensation.cut import Cut, Fitted, without_data
from nncompress.analysis.compensation.sequential import compensate, cut_walk

__all__ = ["Cut", "Fitted", "compensate", "cut_walk", "without_data"]
