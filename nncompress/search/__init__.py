"""Which layer bears what (`sensitivity`), and the pipeline found from it under a promise (`optimize`)."""
