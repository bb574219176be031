"""How far outputs moved, and which layers moved them."""
