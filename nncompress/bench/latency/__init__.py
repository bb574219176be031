"""Latencies that decide: of layers, of whole models and of targets on this machine, measured once and remembered."""
