"""Repair without training: what is left of a model makes up for what was removed, in closed form."""

from __future__ import annotations

from nncompress.analysis.compensation.sequential import Cut, Fitted, compensate, without_data

__all__ = ["Cut", "Fitted", "compensate", "without_data"]
