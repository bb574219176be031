"""The one intermediate representation: a flat ATen graph with its inputs, weights and history."""

from nncompress.ir.model import InputSpec, Model

__all__ = ["InputSpec", "Model"]
