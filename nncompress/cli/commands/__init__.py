"""A file per command: its options, and what its line starts. Those of passes come from their dataclasses."""
