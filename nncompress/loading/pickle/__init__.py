"""Opening what `torch.save` pickled, without running code."""
