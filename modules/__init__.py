"""Swappable neural parts: encoders, abstractors (compressors), LLMs. Imported as ``fastslm.modules``."""

if __name__ == "modules":
    raise ModuleNotFoundError("modules/ is part of the package fastslm: install it, then import fastslm.modules")
