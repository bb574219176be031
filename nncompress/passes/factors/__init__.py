"""Low-rank layers in the place of a layer: what the passes share that put them in."""
