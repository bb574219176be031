"""What a run minimises, and how well it does on held-out samples."""
