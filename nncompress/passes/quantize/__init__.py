"""`quantize`: weights of 2 to 8 bits, and int8 activations."""
