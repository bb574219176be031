"""`quantize`: int8 weights and activations."""
