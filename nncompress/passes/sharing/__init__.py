"""What `share` is made of: blocks and stages of a residual graph, and the weight for several layers."""
