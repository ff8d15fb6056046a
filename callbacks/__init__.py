"""Swappable observers of a run. Imported as ``fastslm.callbacks``."""

if __name__ == "callbacks":
    raise ModuleNotFoundError("callbacks/ is part of the package fastslm: install it, then import fastslm.callbacks")
