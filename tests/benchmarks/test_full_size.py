"""The benchmark of the real sizes runs on the demo models, and its figures are of the right kind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_lengths_of_audio_are_measured_beside_their_plan():
    command = [sys.executable, "-m", "benchmarks.full_size", "--small", "--minutes", "0.5", "1", "--steps", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| cpu \| (\S+) \| (\S+) \| (\S+) \| - \| (\S+) \|$", done.stdout, re.MULTILINE)
    assert [minutes for minutes, *_ in rows] == ["0.5", "1"]
    for minutes, seconds, speed, planned in rows:
        assert float(speed) == pytest.approx(60 * float(minutes) / float(seconds), rel=0.1)
        assert float(planned) > 0
