"""What a run logged, read back from its CSV files, those of interrupted earlier starts included."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path


def read_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every logged metric as (step, value) pairs, those of interrupted earlier starts first.

    A resumed run repeats the steps since its checkpoint; the later value of a step wins.
    """
    begin = "metrics.csv.before-"
    numbers = (path.name.removeprefix(begin) for path in folder.glob(f"{begin}*"))
    older = [f"{begin}{number}" for number in sorted((n for n in numbers if n.isdecimal()), key=int)]
    merged: dict[str, dict[int, float]] = {}
    for path in (folder / name for name in (*older, "metrics.csv")):
        for name, step, value in _cells(path):
            merged.setdefault(name, {})[step] = value
    return {name: sorted(values.items()) for name, values in merged.items()}


def _cells(path: Path) -> Iterator[tuple[str, int, float]]:
    if path.exists():
        with path.open(newline="", errors="replace") as file:
            for row in csv.DictReader(line.replace("\0", "") for line in file):
                if None in row or None in row.values():  # not of this header: two runs wrote the file, or it was cut
                    continue
                for name, value in row.items():
                    if value and row.get("step") and name not in ("step", "epoch"):
                        with contextlib.suppress(ValueError):  # a damaged cell is no value
                            yield name, int(row["step"]), float(value)
