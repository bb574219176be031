"""The one intermediate representation: a flat ATen graph with its inputs, weights and history."""

from nncompress.ir.graph.inputs import InputSpec
from nncompress.ir.graph.model import Model
from nncompress.ir.python_names import correct_fx

__all__ = ["InputSpec", "Model"]

correct_fx()
