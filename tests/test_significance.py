"""Intervals and p-values against closed forms, enumerations and their own promises."""

import itertools
import math

import numpy as np
import pytest

from jaxrec import significance
from jaxrec.errors import InputError
from jaxrec.significance import (
    bootstrap_interval,
    effect,
    holm,
    of_ratio,
    paired_bootstrap,
    permutation_test,
    standard_error,
)


def binomial_quantile(n, p, probability):
    """The least count whose distribution function reaches the probability."""
    total = 0.0
    for count in range(n + 1):
        total += math.comb(n, count) * p**count * (1 - p) ** (n - count)
        if total >= probability:
            return count
    return n


def ndcg_values(num_users, seed):
    """ndcg@10 of uniform ranks in 1..30, as a few values that many users share."""
    rank_N = np.random.default_rng(seed).integers(1, 31, num_users)
    return np.where(rank_N <= 10, 1 / np.log2(rank_N + 1), 0.0)


# Resampled one by one (12 users, 2 values) and as a multinomial (400 users).
@pytest.mark.parametrize("num_users, num_hits", [(12, 5), (400, 120)])
def test_bounds_of_a_hit_rate_are_binomial_quantiles(num_users, num_hits):
    value_N = np.repeat([1.0, 0.0], [num_hits, num_users - num_hits])
    interval = bootstrap_interval(value_N, level=0.9, num_samples=20_000)
    assert interval.mean == pytest.approx(num_hits / num_users, abs=1e-15)
    share = num_hits / num_users
    for bound, probability in ((interval.low, 0.05), (interval.high, 0.95)):
        # Quantiles of 20,000 draws are those of a probability within 4 x .0015.
        least, most = (
            binomial_quantile(num_users, share, probability + delta) / num_users
            for delta in (-0.006, 0.006)
        )
        assert least - 1e-12 <= bound <= most + 1e-12


def test_sharing_a_draw_changes_no_law(monkeypatch):
    value_N = ndcg_values(300, seed=3)
    shared = bootstrap_interval(value_N)
    p_shared = permutation_test(value_N, value_N[::-1] * 0.9)
    monkeypatch.setattr(significance, "_USERS_A_DRAW", 10**9)
    single = bootstrap_interval(value_N)
    # Both quantiles have a standard error of .027 standard errors of the mean.
    scale = value_N.std() / math.sqrt(300)
    np.testing.assert_allclose(single, shared, rtol=0, atol=4 * 0.04 * scale)
    p_single = permutation_test(value_N, value_N[::-1] * 0.9)
    assert p_single == pytest.approx(p_shared, abs=4 * 0.5 * math.sqrt(2 / 10_000))


def test_width_is_the_normal_one_where_users_are_many():
    value_N = np.random.default_rng(0).normal(2.0, 3.0, 2_000)
    interval = bootstrap_interval(value_N)
    half = 1.959964 * value_N.std() / math.sqrt(2_000)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.05)
    assert (interval.high + interval.low) / 2 == pytest.approx(
        value_N.mean(), abs=0.1 * half
    )


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(11), 0
    for seed in range(500):
        value_N = rng.choice([0.0, 0.5, 1.0], p=[0.5, 0.2, 0.3], size=200)
        low, high = bootstrap_interval(value_N, num_samples=400, seed=seed)[1:]
        covered += low <= 0.4 <= high
    # .95 less what 200 users and 400 samples cost; one standard error is .010.
    assert 0.92 <= covered / 500 <= 0.98


def test_paired_interval_is_of_the_difference_and_turns_with_it():
    a_N, b_N = ndcg_values(500, 1), ndcg_values(500, 2)
    interval = paired_bootstrap(a_N, b_N, seed=5)
    assert interval == bootstrap_interval(a_N - b_N, seed=5)
    assert interval.mean == pytest.approx(a_N.mean() - b_N.mean(), abs=1e-12)
    # A shift by .1 of all users is certain, however much the users differ.
    shifted = paired_bootstrap(a_N + 0.125, a_N)
    np.testing.assert_allclose(shifted, 0.125, rtol=0, atol=1e-12)


def test_seed_decides():
    value_N = np.random.default_rng(0).normal(size=100)
    assert bootstrap_interval(value_N, seed=1) == bootstrap_interval(value_N, seed=1)
    assert bootstrap_interval(value_N, seed=1) != bootstrap_interval(value_N, seed=2)
    zero_N = np.zeros(100)
    ps = [permutation_test(value_N, zero_N, seed=seed) for seed in (1, 1, 2)]
    assert ps[0] == ps[1] != ps[2]


def enumerated_p(difference_N):
    """Share of all sign vectors whose sum is at least as far from 0."""
    observed = abs(sum(difference_N))
    sums = [
        abs(sum(sign * x for sign, x in zip(signs, difference_N, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(difference_N))
    ]
    return np.mean([total >= observed - 1e-9 for total in sums])


@pytest.mark.parametrize(
    "difference_N",
    [
        [0.5, 0.25, -1.0, 0.75, 1.0, 1.0, 0.5, 0.0, 0.0, 0.125],
        [1.0] * 9 + [-1.0] * 4,  # one binomial draw
        [0.1, 0.2, 0.3, 0.4, -0.1, 0.7, 0.7],
        [1.0, 2.0, 4.0, 8.0, 16.0],  # only all signs alike are as far: 2 in 32
    ],
)
def test_p_is_the_enumerated_one(difference_N):
    difference_N = np.array(difference_N)
    exact = enumerated_p(difference_N)
    p = permutation_test(difference_N, np.zeros(len(difference_N)), num_samples=40_000)
    # Four standard errors of a share of 40,000 draws, and the 1 that is added.
    tolerance = 4 * math.sqrt(exact * (1 - exact) / 40_000) + 1 / 40_001
    assert p == pytest.approx(exact, abs=tolerance)


def test_equal_users_count_for_nothing_and_rounding_is_no_difference():
    a_N = ndcg_values(50, 1)
    assert permutation_test(a_N, a_N) == 1
    few = permutation_test([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], seed=4)
    many = permutation_test(
        [1.0, 1.0, 0.0, *[0.5] * 99], [0.0, 0.0, 1.0, *[0.5] * 99], seed=4
    )
    assert few == many
    # .1 + .2 - .3 is 0, though not in floating point: every sample is as far.
    assert permutation_test([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]) == 1


def test_p_is_never_zero_and_does_not_depend_on_the_direction():
    one_N, zero_N = np.ones(200), np.zeros(200)
    assert permutation_test(one_N, zero_N, num_samples=999) == 1 / 1000
    a_N, b_N = ndcg_values(200, 1), ndcg_values(200, 2)
    assert permutation_test(a_N, b_N) == permutation_test(b_N, a_N)


def test_p_is_uniform_where_there_is_no_difference():
    rng, num_tests = np.random.default_rng(7), 1_000
    p_K = np.sort(
        [
            permutation_test(
                rng.normal(size=40), rng.normal(size=40), num_samples=199, seed=seed
            )
            for seed in range(num_tests)
        ]
    )
    # Kolmogorov-Smirnov at 1%, on the grid of 1/200 that p-values lie on.
    above = np.arange(1, num_tests + 1) / num_tests - p_K
    assert np.abs(above).max() <= 1.63 / math.sqrt(num_tests) + 1 / 200
    # Four standard errors of a share of 1,000 tests around .05.
    assert (p_K <= 0.05).mean() == pytest.approx(0.05, abs=4 * 0.0069)


def test_a_million_users_share_a_few_draws():
    a_N, b_N = ndcg_values(10**6, 1), ndcg_values(10**6, 2)
    interval = paired_bootstrap(a_N, b_N, num_samples=2_000)
    half = 1.959964 * (a_N - b_N).std() / 1_000
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.08)
    # The sum of flipped differences is normal: p = 2 (1 - Phi(z)).
    z = abs((a_N - b_N).sum()) / math.sqrt(((a_N - b_N) ** 2).sum())
    p = permutation_test(a_N, b_N, num_samples=2_000)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=4 * 0.5 / 2_000**0.5)


def test_blocks_draw_all_samples(monkeypatch):
    value_N = np.random.default_rng(0).normal(size=30)
    monkeypatch.setattr(significance, "_BLOCK", 100)  # three samples a block
    interval = bootstrap_interval(value_N, num_samples=4_000)
    half = 1.959964 * value_N.std() / math.sqrt(30)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    # Certain to be as far: every one of the samples is counted.
    assert permutation_test([0.5, 0.5], [0.0, 1.0], num_samples=151) == 1
    assert permutation_test(np.ones(40), np.zeros(40), num_samples=151) == 1 / 152


def test_standard_error_and_effect_by_hand():
    # Deviations -1, 0, 1: variance 2 / 2 = 1.
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    # Differences 0, 1, 2: mean 1, sd 1.
    assert effect([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert effect([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(-1.0)
    assert effect([1.0, 2.0], [1.0, 2.0]) == 0
    assert effect([1.0, 2.0], [0.5, 1.5]) == math.inf
    assert effect([0.5, 1.5], [1.0, 2.0]) == -math.inf


def test_of_ratio_keeps_the_mean_over_rows_and_the_values_of_equal_users():
    sum_U, rows_U = np.array([3.0, 0.0, 2.5]), np.array([4, 1, 3])
    assert of_ratio(sum_U, rows_U).mean() == pytest.approx(5.5 / 8, abs=1e-12)
    # Its spread is that of the ratio to first order: the derivative of sum / sum by the
    # weight of a user, (s - m n) / mean(n), by a difference quotient.
    weights, step = np.ones(3), 1e-6
    ratios = []
    for sign in (1, -1):
        weights[2] = 1 + sign * step
        ratios.append((weights @ sum_U) / (weights @ rows_U))
    slope = (ratios[0] - ratios[1]) / (2 * step) * 3  # of a weight with mean 1
    assert of_ratio(sum_U, rows_U)[2] == pytest.approx(5.5 / 8 + slope, abs=1e-6)
    value_U = np.array([0.1, 0.7, 0.3])
    assert of_ratio(value_U, np.ones(3, int)).tolist() == value_U.tolist()
    np.testing.assert_array_equal(of_ratio(2 * value_U, np.full(3, 2)), value_U)


def test_holm_is_its_definition():
    # .01 x 4; .02 x 3; .03 x 2 = .06 again; .9 x 1.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.9, 0.02]), [0.06, 0.04, 0.9, 0.06])
    p_K = np.random.default_rng(0).random(12) ** 3
    order = sorted(range(12), key=lambda k: p_K[k])
    for i, k in enumerate(order):
        expected = max(min(1, (12 - j) * p_K[order[j]]) for j in range(i + 1))
        assert holm(p_K)[k] == pytest.approx(expected, rel=1e-12)
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).tolist() == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_interval([]), "one number a user"),
        (lambda: bootstrap_interval([[1.0]]), r"got shape \(1, 1\)"),
        (lambda: bootstrap_interval([1.0, math.nan]), "1 of 2 are not"),
        (lambda: bootstrap_interval([1.0], level=1.0), "level must be > 0 and < 1"),
        (lambda: bootstrap_interval([1.0], level=95), "got 95"),
        (lambda: bootstrap_interval([1.0], num_samples=0), "num_samples must be >= 1"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), r"\(2,\) and \(1,\)"),
        (lambda: permutation_test([1.0, 2.0], [1.0]), "same users"),
        (lambda: permutation_test([], []), "one number a user"),
        (lambda: permutation_test([1.0], [2.0], num_samples=0), "num_samples"),
        (lambda: effect([1.0], [2.0]), "at least 2 users"),
        (lambda: standard_error([1.0]), "at least 2 users"),
        (lambda: holm([0.5, 1.5]), r"in \[0, 1\]"),
        (lambda: holm([math.nan]), r"in \[0, 1\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
