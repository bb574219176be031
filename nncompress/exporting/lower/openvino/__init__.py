"""What OpenVINO computes in its own way: edits of an `.onnx` before it is read to be written as `.xml`."""
