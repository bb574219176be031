"""Rewrites for ONNX Runtime's int8 kernels, in the order that `rewrite` gives them."""
