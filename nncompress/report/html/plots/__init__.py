"""Plots as geometry: where every line, mark and word is. The templates draw them."""
