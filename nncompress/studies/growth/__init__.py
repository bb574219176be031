"""Networks that grow while they train."""
