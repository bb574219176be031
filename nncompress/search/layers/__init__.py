"""Single layers of a search: what each bears, what each takes, and what that says of all together."""
