"""Layers and their weights, whatever op or wrapper they are said in."""
