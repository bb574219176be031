"""What `torch.export` emits, brought into the one form that every pass may rely on."""
