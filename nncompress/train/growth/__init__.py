"""Growth while training."""
