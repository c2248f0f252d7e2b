"""How sure a metric is, and a difference of two: the user is the unit.

A metric of one target a user is a function of its rank, so a million users share a few
values. Users who share one are drawn together: resampling N users is one multinomial
draw over the values, and flipping the signs of c equal differences is one binomial
draw. Both are the law itself, not an approximation. Where too few users share a value,
each is drawn by itself. Memory does not grow with the number of samples.

What is random here is the choice of users. How much another seed of the training would
have changed a metric is not in an interval of one run.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxrec.errors import InputError

# Numbers drawn at a time (32 MiB of int64), and how many users drawn one by one cost as
# much as a multinomial or binomial draw: measured, about 8 ns against 80.
_BLOCK = 2**22
_USERS_A_DRAW = 10

# Sums of the same differences in another order differ in the last bits: this share of
# the sum of their sizes still counts as equal.
_ROUNDING = 1e-11


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    value_N, *, level: float = 0.95, num_samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of a value over users, with its percentile bootstrap interval.

    The bounds are the (1 - level) / 2 and (1 + level) / 2 quantiles of the means of
    `num_samples` samples of N users, drawn with replacement.

    >>> bootstrap_interval([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5)

    Args:
      value_N: float [N], one value a user.
      level: the probability that the interval is to have, in (0, 1).
      num_samples: S; the bounds are exact to about 1 / sqrt(S) of their distance.
      seed: of the draws; equal seeds give equal bounds.

    Returns:
      (mean, low, high), in the unit of the values.

    Raises:
      InputError: no values, or values that are not finite; a wrong level or number.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    value_N = _checked(value_N, num_samples)
    if not 0 < level < 1:
        raise InputError(f"level must be > 0 and < 1: got {level}. Use .95 for 95%.")
    rng, num_users = np.random.default_rng(seed), len(value_N)
    value_D, count_D = np.unique(value_N, return_counts=True)

    def grouped_means(size: int) -> np.ndarray:
        count_SD = rng.multinomial(num_users, count_D / num_users, size)
        return count_SD @ value_D / num_users

    def single_means(size: int) -> np.ndarray:
        return rng.choice(value_N, (size, num_users)).mean(axis=1)

    is_shared = num_users >= _USERS_A_DRAW * len(value_D)
    mean_S = _sample(
        grouped_means if is_shared else single_means,
        num_samples,
        width=len(value_D) if is_shared else num_users,
    )
    low, high = np.quantile(mean_S, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value_N.mean()), float(low), float(high))


def paired_bootstrap(
    a_N, b_N, *, level: float = 0.95, num_samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean difference of two values of the same users, with its bootstrap interval.

    `bootstrap_interval` of a - b: a user is drawn with both values, so what makes a
    user easy for both cancels.

    >>> paired_bootstrap([1.0, 0.5], [0.5, 0.0])
    Interval(mean=0.5, low=0.5, high=0.5)

    Args:
      a_N, b_N: float [N], entry n of both is the same user's.
      level, num_samples, seed: as in `bootstrap_interval`.

    Returns:
      (mean of a - b, low, high).

    Raises:
      InputError: as `bootstrap_interval`, or the lengths differ.

    Source: Efron & Tibshirani, 1993, chapter 13.
    """
    difference_N = _differences(a_N, b_N)
    return bootstrap_interval(
        difference_N, level=level, num_samples=num_samples, seed=seed
    )


def permutation_test(a_N, b_N, *, num_samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference of two values of the same users.

    If the two systems are alike, a user's values could as well be the other way round:
    the sign of each difference is a fair coin. With T = |sum of a - b|,

        p = (1 + #(samples whose T* >= T)) / (1 + num_samples).

    Users with equal values add nothing to any T*; if all are equal, p is 1. No p-value
    is below 1 / (1 + num_samples).

    >>> permutation_test([1.0, 0.5], [1.0, 0.5])
    1.0

    Args:
      a_N, b_N: float [N], entry n of both is the same user's.
      num_samples: S, draws of all signs.
      seed: of the draws.

    Returns:
      p in (0, 1].

    Raises:
      InputError: no values, values that are not finite, or lengths that differ.

    Source: Phipson & Smyth, Permutation P-values Should Never Be Zero, Stat. Appl.
    Genet. Mol. Biol. 9(1), 2010: the observed signs are possible too, so they count.
    """
    difference_N = _checked(_differences(a_N, b_N), num_samples)
    rng = np.random.default_rng(seed)
    size_N = np.abs(difference_N[difference_N != 0])
    size_D, count_D = np.unique(size_N, return_counts=True)

    def grouped_sums(size: int) -> np.ndarray:
        heads_SD = rng.binomial(count_D, 0.5, (size, len(size_D)))
        return (2 * heads_SD - count_D) @ size_D

    def single_sums(size: int) -> np.ndarray:
        head_SN = rng.integers(2, size=(size, len(size_N)), dtype=np.int8)
        return (2 * head_SN - 1) @ size_N

    is_shared = len(size_N) >= _USERS_A_DRAW * len(size_D)
    sum_S = _sample(
        grouped_sums if is_shared else single_sums,
        num_samples,
        width=len(size_D) if is_shared else len(size_N),
    )
    least = abs(difference_N.sum()) - _ROUNDING * size_N.sum()
    return (1 + int((np.abs(sum_S) >= least).sum())) / (1 + num_samples)


def of_ratio(sum_U, rows_U) -> np.ndarray:
    """A value a user with the mean, and to first order the spread, of a mean over rows.

    Users may have any number of rows, which are drawn together. The mean over rows is a
    ratio, m = sum s_u / sum n_u: a sample with more rows has a larger sum and no larger
    mean. So the bootstrap is of the ratio's linear part,

        v_u = m + (s_u - m n_u) U / sum n_u,

    which is s_u itself where every user has one row.

    >>> of_ratio([3.0, 1.0], [3, 1]).tolist()  # every row has a 1
    [1.0, 1.0]

    Args:
      sum_U: float, the sum of a value over the rows of each user.
      rows_U: int >= 1, how many those are.

    Returns:
      float64 [U].

    Source: Cochran, Sampling Techniques, 1977, section 6.4.
    """
    sum_U, rows_U = np.asarray(sum_U, float), np.asarray(rows_U)
    if (rows_U == rows_U[:1]).all():  # to the bit, where there is nothing to weigh
        return sum_U / rows_U
    mean_rows = rows_U.mean()
    mean = sum_U.mean() / mean_rows
    return mean + (sum_U - mean * rows_U) / mean_rows


def standard_error(value_N) -> float:
    """Standard error of a mean over users: sd / sqrt(N), sd with N - 1.

    >>> standard_error([0.0, 0.0, 1.0, 1.0]) == (1 / 3) ** 0.5 / 2
    True

    Args:
      value_N: float [N], N >= 2.

    Returns:
      A float >= 0, in the unit of the values.

    Raises:
      InputError: fewer than two values, or values that are not finite.
    """
    value_N = _spreadable(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(len(value_N))


def effect(a_N, b_N) -> float:
    """Size of a paired difference: mean(a - b) / sd(a - b), sd with N - 1.

    Unlike a p-value it does not grow with the number of users. About .2 is usually
    called small, .5 medium, .8 large.

    >>> round(effect([3.0, 2.0], [0.0, 1.0]), 4)  # 2 / sqrt(2)
    1.4142

    Args:
      a_N, b_N: float [N], N >= 2, entry n of both is the same user's.

    Returns:
      A float; 0 if all values are equal, infinite if all users differ by the same.

    Raises:
      InputError: fewer than two users, values that are not finite, or lengths that
        differ.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988,
    chapter 2 (d_z, for paired observations).
    """
    difference_N = _spreadable(_differences(a_N, b_N))
    mean, spread = float(difference_N.mean()), float(difference_N.std(ddof=1))
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / spread


def holm(p_K) -> np.ndarray:
    """P-values of K tests, adjusted so that they can be read as if there were one.

    In increasing order, the i-th of K is max over j <= i of min(1, (K - j + 1) p_j).
    The chance of any false claim among the K stays below the level, whatever their
    dependence.

    >>> holm([0.5, 0.125, 0.25]).tolist()
    [0.5, 0.375, 0.5]

    Args:
      p_K: float [K], in [0, 1], in any order.

    Returns:
      float [K], in the order given, each >= its p.

    Raises:
      InputError: a p-value is outside [0, 1].

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian
    Journal of Statistics 6, 1979.
    """
    p_K = np.asarray(p_K, float)
    is_p_K = (p_K >= 0) & (p_K <= 1)
    if p_K.ndim != 1 or not is_p_K.all():
        raise InputError(f"p-values must be a list of numbers in [0, 1]: got {p_K}.")
    order_K = np.argsort(p_K, kind="stable")
    scaled_K = p_K[order_K] * np.arange(len(p_K), 0, -1)
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.minimum(np.maximum.accumulate(scaled_K), 1)
    return adjusted_K


def _sample(
    draw_fn: Callable[[int], np.ndarray], num_samples: int, *, width: int
) -> np.ndarray:
    """`num_samples` draws of `width` numbers each, in blocks that fit in memory."""
    return np.concatenate([draw_fn(size) for size in _blocks(num_samples, width)])


def _blocks(num_samples: int, width: int) -> Iterator[int]:
    largest = max(1, _BLOCK // max(1, width))
    for first in range(0, num_samples, largest):
        yield min(largest, num_samples - first)


def _differences(a_N, b_N) -> np.ndarray:
    a_N, b_N = np.asarray(a_N, float), np.asarray(b_N, float)
    if a_N.shape != b_N.shape:
        raise InputError(
            "paired values must be of the same users, one each: got "
            f"{a_N.shape} and {b_N.shape}. Compare runs on the same held-out rows."
        )
    return a_N - b_N


def _checked(value_N, num_samples: int = 1) -> np.ndarray:
    value_N = np.asarray(value_N, float)
    if value_N.ndim != 1 or len(value_N) == 0:
        raise InputError(
            f"values must be a list of one number a user: got shape {value_N.shape}."
        )
    if not np.isfinite(value_N).all():
        raise InputError(
            f"values must be finite: {(~np.isfinite(value_N)).sum()} of {len(value_N)} "
            "are not. Leave out the users that have none, in both of a pair."
        )
    if num_samples < 1:
        raise InputError(f"num_samples must be >= 1: got {num_samples}.")
    return value_N


def _spreadable(value_N) -> np.ndarray:
    value_N = _checked(value_N)
    if len(value_N) < 2:
        raise InputError("a spread needs at least 2 users: got 1.")
    return value_N
