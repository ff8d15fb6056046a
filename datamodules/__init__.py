"""Swappable sources of batches. Imported as ``fastslm.datamodules``."""

if __name__ == "datamodules":
    raise ModuleNotFoundError(
        "datamodules/ is part of the package fastslm: install it, then import fastslm.datamodules"
    )
