"""Low-rank decompositions of weights, and the ranks that an error or a budget allows."""
