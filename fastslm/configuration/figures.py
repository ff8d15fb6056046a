"""Names of figures, checked before the work that the figures are of, and the style that figures are drawn in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fastslm.errors import ConfigError


def check_figure(path: Path, option: str) -> None:
    """Refuse a name that no figure can have.

    Raises:
        ConfigError: matplotlib knows no such kind of file, or it is a folder.
    """
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    if path.is_dir() or path.suffix[1:].lower() not in kinds:  # matplotlib would add an ending to a name without one
        raise ConfigError(f"{option} {path}: a figure is a file that ends in .png, .pdf or .svg.")


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Within it, figures look as matplotlib draws them by itself: a matplotlibrc may want LaTeX or fonts not here."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
