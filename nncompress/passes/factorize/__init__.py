"""`factorize`: low-rank factors instead of layers."""
