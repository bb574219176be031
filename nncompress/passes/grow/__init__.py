"""`grow`: add nodes."""
