"""What every op of an ONNX graph computes, in ATen calls."""
