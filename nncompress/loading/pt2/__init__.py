"""Reading a `.pt2` from an untrusted hand."""
