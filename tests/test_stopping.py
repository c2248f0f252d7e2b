"""Early stopping of simulated curves, against a loop that reads as the rule does."""

import itertools

import numpy as np
import pytest

from benchmarks import stopping


def by_the_rule(curve_E, patience):
    """The epoch kept by one curve: one epoch after another."""
    best, kept = -np.inf, 0
    for epoch, value in enumerate(curve_E, start=1):
        if value > best:
            best, kept = value, epoch
        if epoch - kept >= patience:
            break
    return kept


@pytest.mark.parametrize("patience", [1, 3, 10])
def test_kept_epochs_are_those_of_the_rule(patience):
    curve_RE = np.random.default_rng(patience).integers(0, 6, (200, 12)).astype(float)
    kept_R = stopping.kept_epochs(curve_RE, patience)
    assert kept_R.tolist() == [by_the_rule(curve_E, patience) for curve_E in curve_RE]


@pytest.mark.parametrize("num_drawn", [1, 2, 4])
def test_standard_error_is_that_of_all_draws(num_drawn):
    """By its definition: the spread of the means of every subset there is."""
    value_U = np.array([0.0, 0.0, 1.0, 0.5, 0.2])
    means = [np.mean(each) for each in itertools.combinations(value_U, num_drawn)]
    error = stopping.standard_error(value_U, num_drawn)
    assert error == pytest.approx(np.std(means), rel=1e-12)


def test_all_users_have_no_noise():
    """And then a simulated run is ours, whatever the seed."""
    assert stopping.standard_error(np.array([0.3, 0.9, 0.1]), 3) == 0
