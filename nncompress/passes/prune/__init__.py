"""`prune`: threshold-prune connections."""
