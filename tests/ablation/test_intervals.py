"""Intervals against printed tables, hand examples, and how often they cover the truth."""

import math

import numpy as np
import pytest

from fastslm.ablation.intervals import mean_interval, paired_difference, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_t_quantiles_are_those_of_the_printed_table(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_interval_of_three_seeds_by_hand():
    mean, half = mean_interval([20.0, 22.0, 27.0])
    assert mean == 23.0
    assert half == pytest.approx(4.303 * math.sqrt(13.0) / math.sqrt(3), rel=1e-3)  # variance (9 + 1 + 16) / 2


def test_one_seed_has_no_interval():
    assert mean_interval([20.0]) == (20.0, None)


@pytest.mark.slow
def test_the_t_interval_covers_the_mean_in_95_of_100_experiments():
    generator = np.random.default_rng(1)
    means = [mean_interval(list(generator.normal(7.0, 2.0, 3))) for _ in range(2000)]
    covered = sum(abs(mean - 7.0) <= half for mean, half in means)
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_equal_recordings_differ_by_nothing():
    errors = {f"r{i}": (float(i), 20.0) for i in range(12)}
    assert paired_difference(errors, errors) == (0.0, 0.0, 0.0)


def test_a_constant_difference_has_no_width_however_much_recordings_differ():
    first = {f"r{i}": (float(i), 20.0) for i in range(12)}
    second = {key: (errors + 1, words) for key, (errors, words) in first.items()}
    assert paired_difference(first, second) == pytest.approx((0.05, 0.05, 0.05))


def test_only_common_recordings_are_compared():
    first = {"a": (1.0, 10.0), "b": (9.0, 10.0)}
    second = {"a": (2.0, 10.0), "c": (0.0, 10.0)}
    assert paired_difference(first, second) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="no recording in common"):
        paired_difference({"a": (1.0, 2.0)}, {"b": (1.0, 2.0)})


def test_the_bootstrap_interval_has_the_width_of_theory():
    generator = np.random.default_rng(2)
    differences = generator.normal(1.0, 3.0, 400)  # errors per 100 words
    first = {f"r{i}": (50.0, 100.0) for i in range(400)}
    second = {f"r{i}": (50.0 + d, 100.0) for i, d in enumerate(differences)}
    found, low, high = paired_difference(first, second)
    assert found == pytest.approx(differences.mean() / 100)
    half = 1.96 * differences.std() / math.sqrt(400) / 100
    assert (found - low, high - found) == pytest.approx((half, half), rel=0.08)
