"""Weights without a graph, put into the architecture that they belong to."""
