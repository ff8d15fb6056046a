"""Holds no abstractor."""


class NoAbstractor:
    """Promises nothing."""
