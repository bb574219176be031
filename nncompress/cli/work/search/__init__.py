"""`optimize` and `sensitivity`: what the search needs around it."""
