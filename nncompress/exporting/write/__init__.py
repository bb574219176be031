"""One writer per format: written under a temporary name, checked, then moved into place."""
