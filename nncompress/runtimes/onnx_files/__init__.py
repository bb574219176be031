"""What an `.onnx` says of itself, read before it is run."""
