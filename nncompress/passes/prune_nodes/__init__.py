"""`prune-nodes`: remove whole channels, heads, hidden units."""
