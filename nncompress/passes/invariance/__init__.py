"""Other forms of the same function: channels scaled, turned or centred; and the proof that nothing moved."""
