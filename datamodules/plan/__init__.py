"""Which samples make which batch, on which rank, in which step."""
