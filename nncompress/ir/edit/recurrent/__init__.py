"""Recurrent layers and cells, spelled out: what they multiply as layers of their own."""
