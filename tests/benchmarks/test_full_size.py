"""The benchmark of the real sizes runs on the demo models, and its figures are of the right kind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.full_size import lengths_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_batches_of_several_lengths_are_measured_with_and_without_a_setting_beside_their_plan():
    command = [
        sys.executable,
        "-m",
        "benchmarks.full_size",
        "--small",
        "--minutes",
        "0.5",
        "2x0.25-0.75",
        "--steps",
        "5",
    ]
    also = ["--trace", "--also", "model.recompute=true"]
    done = subprocess.run([*command, *also], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^\| cpu(.*?) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| - \| - \| (\S+) \|$", done.stdout, re.MULTILINE
    )
    settings = ["", ", model.recompute=true"]
    assert [row[:2] for row in rows] == [(s, minutes) for minutes in ("0.5", "2x0.25-0.75") for s in settings]
    for _, minutes, seconds, speed, operations, planned in rows:
        assert float(speed) == pytest.approx(60 * sum(lengths_of(minutes)) / float(seconds), rel=0.1)
        assert min(float(operations), float(planned)) > 0
    assert len(re.findall(r"^busy \S+ s of a traced step of \S+ s", done.stdout, re.MULTILINE)) == 4
