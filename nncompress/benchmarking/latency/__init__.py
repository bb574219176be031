"""Latencies that passes and targets decide by: measured once on this machine, and remembered."""
