"""What `substitute` is made of: the operations that stand for a convolution, and their initial weights."""
