"""Figures: their names, checked before the work that they are of, and their style."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fastslm.errors import ConfigError


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Within it, or in a function decorated by it, no matplotlibrc decides how figures are made.

    One with ``text.usetex`` would ask for a LaTeX that a compute node does not have.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def check_figure(path: Path, option: str) -> None:
    """Refuse a name that no figure can have.

    Raises:
        ConfigError: matplotlib knows no such kind of file, or it is a folder.
    """
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    if path.is_dir() or path.suffix[1:].lower() not in kinds:  # matplotlib would add an ending to a name without one
        raise ConfigError(f"{option} {path}: a figure is a file that ends in .png, .pdf or .svg.")
