"""The steps of `quantize`: which layers, on which grids, with how many bits, and what may stay in float."""
