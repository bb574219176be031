"""Rewrites of an ONNX graph for ONNX Runtime's kernels."""
