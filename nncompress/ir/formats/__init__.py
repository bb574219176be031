"""How numbers are kept: packed, 8 bits, other precisions."""
