"""`share`: residual blocks share a weight."""
