"""Metrics by slices: edges, means, and intervals over users."""

import numpy as np
import pytest

from jaxrec import significance, slices, splits
from jaxrec.data import Dataset, Holdout
from jaxrec.errors import InputError


def test_what_rows_are_sliced_by():
    """Two users, the second without training: 1 2 3 | 2 3 and nothing | 1 3."""
    dataset = Dataset(
        items=np.array([1, 2, 3, 2, 3, 1, 3], np.int32),
        offsets=np.array([0, 5, 7]),
        user_ids=np.array(["a", "b"]),
        item_ids=np.array(["x", "y", "z"]),
        timestamps=np.array([1, 2, 3, 8, 9, 7, 9]),
    )
    split = splits.time_point(dataset, valid_from=7, test_from=9)
    test = split.test
    assert test.user.tolist() == [0, 1] and test.target.tolist() == [3, 3]
    assert slices.history_length(split, test).tolist() == [4, 1]
    assert slices.target_popularity(split, test).tolist() == [1, 1]
    first = Holdout(np.array([1]), np.array([5]), np.array([1]))
    assert slices.history_length(split, first).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "num_slices", "expected"),
    [
        (range(1, 9), 4, [3, 5, 7]),
        (range(1, 9), 1, []),
        ([5, 5, 5], 4, []),
        ([1, 1, 1, 1, 9], 4, [9]),  # equal values are never parted
        ([0, 0, 0, 1, 2, 2, 2, 2], 2, [2]),
        ([2.5, 1.5], 2, [2.5]),
    ],
)
def test_quantile_edges(values, num_slices, expected):
    assert slices.quantile_edges(np.array(values), num_slices).tolist() == expected


def test_means_within_slices_have_their_intervals():
    rng = np.random.default_rng(0)
    of_N = rng.integers(0, 30, 400)
    value_N = rng.random(400)
    rows = slices.means(
        "length", of_N, [5, 20], {"x": value_N}, np.arange(400), num_samples=500
    )
    assert [(row["from"], row["below"]) for row in rows] == [
        (None, 5),
        (5, 20),
        (20, None),
    ]
    for row, (low, high) in zip(rows, [(0, 5), (5, 20), (20, 30)], strict=True):
        here = value_N[(of_N >= low) & (of_N < high)]
        assert row["by"] == "length"
        assert row["rows"] == row["users"] == len(here)
        assert row["metrics"]["x"]["mean"] == pytest.approx(here.mean())
        expected = significance.bootstrap_interval(here, num_samples=500)
        assert row["metrics"]["x"] == pytest.approx(expected._asdict())
        # A normal approximation of the same: 1.96 standard errors.
        width = row["metrics"]["x"]["high"] - row["metrics"]["x"]["low"]
        se = significance.standard_error(here)
        assert width == pytest.approx(2 * 1.96 * se, rel=0.25)


def test_a_slice_without_rows_says_so():
    rows = slices.means("x", np.array([1, 2]), [10], {"m": np.ones(2)}, np.arange(2))
    assert rows[1]["rows"] == rows[1]["users"] == 0 and rows[1]["metrics"] == {}


def test_rows_of_a_user_stay_together():
    """A user with many rows alike is one draw, not many: the interval shows it."""
    user_N = np.repeat(np.arange(20), 50)
    value_N = (user_N % 2).astype(float)
    of_users = slices.interval(value_N, user_N)
    assert of_users.mean == pytest.approx(0.5)
    # 20 fair coins: sd sqrt(.25 / 20) = .112, against .016 of 1000.
    assert of_users.high - of_users.low == pytest.approx(2 * 1.96 * 0.112, rel=0.2)
    # Users of unequal numbers of rows: the mean is that of the rows.
    uneven = slices.interval(np.array([1.0, 1, 1, 0]), np.array([3, 3, 3, 5]))
    assert uneven.mean == pytest.approx(0.75)


def test_users_of_many_rows_do_not_widen_a_mean_of_rows():
    """A mean over rows is a ratio: its interval against resampled sum / sum."""
    rng = np.random.default_rng(0)
    rows_U = rng.integers(1, 30, 300)
    user_N = np.repeat(np.arange(300), rows_U)
    value_N = (rng.random(len(user_N)) < 0.9).astype(float)
    sum_U = np.bincount(user_N, value_N)
    drawn_SU = rng.integers(300, size=(4000, 300))
    ratio_S = sum_U[drawn_SU].sum(axis=1) / rows_U[drawn_SU].sum(axis=1)
    low, high = np.quantile(ratio_S, [0.025, 0.975])
    found = slices.interval(value_N, user_N)
    assert found.mean == pytest.approx(value_N.mean(), abs=1e-12)
    # Quantiles of 4,000 draws are good to some hundredths of the width.
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_rows_without_a_value_are_left_out():
    value_N = np.array([np.nan, 0.25, 0.25])
    assert slices.interval(value_N, np.array([1, 2, 3])).mean == 0.25
    rows = slices.means("x", np.zeros(3), [], {"m": value_N * np.nan}, np.arange(3))
    assert rows[0]["rows"] == 3 and rows[0]["metrics"] == {}


def test_wrong_edges_are_input_errors():
    with pytest.raises(InputError, match="must increase.*length"):
        slices.means("length", np.zeros(2), [5, 5], {}, np.arange(2))
    with pytest.raises(InputError, match="at least 1"):
        slices.quantile_edges(np.zeros(2), 0)
    with pytest.raises(InputError, match="0 rows"):
        slices.quantile_edges(np.zeros(0), 2)
