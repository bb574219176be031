"""The graph itself: made by `torch.export`, normalised, run, verified."""
