"""Passes on a model: `compress`, and a command for each pass."""
