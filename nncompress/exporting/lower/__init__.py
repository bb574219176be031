"""Rewrites that a runtime's kernels ask for, a folder per runtime; beside them, what several formats need."""
