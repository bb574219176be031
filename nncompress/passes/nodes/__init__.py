"""How `prune-nodes` works: what to remove (`plan`), and removing it (`carry_out`)."""
