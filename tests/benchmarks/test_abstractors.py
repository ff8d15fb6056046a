"""The benchmark of the compressors runs, small, and its figures are of the right kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_small_benchmark_measures_beside_a_plain_reading_of_the_same_tokens(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.abstractors", "--small", "--only", "HTA", "AvgPool", "--repeats", "1"]
    done = subprocess.run([*command, "--json", figures], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_text())
    assert list(results) == ["plain HTA", "HTA", "AvgPool"]
    for by_number in results.values():
        assert list(by_number) == ["1", "2", "4"]
        for measured in by_number.values():
            assert min(measured["forward"], measured["both"], measured["peak_mib"]) > 0
    # Gradients of every weight and the activations of at least the input's size are held.
    weights = 128 * 96 + 96
    assert results["AvgPool"]["4"]["peak_mib"] * 2**20 > 4 * weights
    assert results["HTA"]["4"]["peak_mib"] > results["HTA"]["1"]["peak_mib"]
    for shown in ("| plain HTA |", "(x ", "time ~ windows^b"):
        assert shown in done.stdout
