"""Weights of few values or many zeros at the least error of the layer's output."""
