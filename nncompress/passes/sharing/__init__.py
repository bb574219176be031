"""What `share` is made of: blocks and stages of a residual graph, the weight that fits several layers best."""
