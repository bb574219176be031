"""`cluster`: few distinct weights."""
