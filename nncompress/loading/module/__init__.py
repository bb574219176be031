"""An `nn.Module`, of a pickle or in memory, traced to a graph."""
