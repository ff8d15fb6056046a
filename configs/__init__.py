"""YAML only; this file makes the configs findable after installation. Imported as ``fastslm.configs``."""

if __name__ == "configs":
    raise ModuleNotFoundError("configs/ is part of the package fastslm: install it, then import fastslm.configs")
