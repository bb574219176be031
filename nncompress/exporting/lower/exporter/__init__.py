"""What torch's ONNX exporter would refuse, say otherwise or drop, said so that it does not."""
