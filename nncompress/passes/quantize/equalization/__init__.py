"""The same function with other scales per channel, which rounding hurts less."""
