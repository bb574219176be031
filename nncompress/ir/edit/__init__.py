"""All surgery on the graph."""
