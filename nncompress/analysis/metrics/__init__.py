"""How good answers are: one module a kind of answer, `registry` knows them by name."""
