"""What `factorize` is made of: which weights (targets), which factors (forms), put into the graph."""
