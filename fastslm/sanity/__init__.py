"""Checks of a configuration on a few of its own recordings, before hours of training: ``fastslm doctor --config``."""
