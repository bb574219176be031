"""`substitute`: cheaper operations for K×K convolutions."""
