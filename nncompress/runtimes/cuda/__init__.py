"""torch and ONNX Runtime on an NVIDIA GPU, and the faster kernels of linear layers there."""
