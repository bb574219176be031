"""The parts of `cluster`: which values a weight may take, and which of them each weight takes."""
