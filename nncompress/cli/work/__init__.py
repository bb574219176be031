"""What commands do once their line is read. It is imported then: it needs torch, and --help does not."""
