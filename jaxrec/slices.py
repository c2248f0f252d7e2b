"""Metrics by groups of held-out rows: short and long histories, rare and popular items.

A slice is the rows whose value (the length of a history, the training interactions of a
target) lies between two edges. Means over few rows are uncertain, so each comes with
its number of rows and a confidence interval over users.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec import significance
from jaxrec.data import Holdout, Split
from jaxrec.errors import InputError
from jaxrec.significance import Interval


def history_length(split: Split, holdout: Holdout) -> np.ndarray:
    """Items that each row's user had before the hidden one: int64 [N]."""
    return holdout.end - split.dataset.offsets[holdout.user]


def target_popularity(split: Split, holdout: Holdout) -> np.ndarray:
    """Training interactions of the item that each row hides: int64 [N]."""
    return split.train_item_counts()[holdout.target]


# What rows can be sliced by.
VALUES = {"history_length": history_length, "target_popularity": target_popularity}


def quantile_edges(value_N: np.ndarray, num_slices: int) -> np.ndarray:
    """Edges of slices of nearly equal size; equal values stay in one slice.

    >>> quantile_edges(np.array([1, 2, 3, 4, 5, 6, 7, 8]), 4).tolist()
    [3, 5, 7]
    >>> quantile_edges(np.array([1, 1, 1, 1, 9]), 4).tolist()
    [9]

    Args:
      value_N: one a row.
      num_slices: at least 1; there are fewer where many values are equal.

    Returns:
      The lowest value of every slice but the first, increasing.

    Raises:
      InputError: num_slices < 1, or no values.
    """
    if num_slices < 1 or not len(value_N):
        raise InputError(
            f"slices must be at least 1, of at least one row: got {num_slices} of "
            f"{len(value_N)} rows."
        )
    value_D, count_D = np.unique(value_N, return_counts=True)
    below_E = np.cumsum(count_D)[:-1]  # rows below each value that could be an edge
    wanted = np.arange(1, num_slices) * (len(value_N) / num_slices)
    if not len(below_E):
        return value_D[:0]
    nearest = [int(np.abs(below_E - rows).argmin()) for rows in wanted]
    return value_D[1:][np.unique(nearest).astype(int)]


def means(
    by: str,
    of_N: np.ndarray,
    edges: Sequence[float] | np.ndarray,
    values: Mapping[str, np.ndarray],
    user_N: np.ndarray,
    *,
    level: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Means of metrics within each slice, with their intervals.

    Args:
      by: what the rows are sliced by, for the result.
      of_N: its value of each row.
      edges: increasing; slice s has edges[s - 1] <= value < edges[s].
      values: metrics by name, float [N] each; nan where a row has none.
      user_N: the user of each row.
      level, num_samples, seed: as in `significance.bootstrap_interval`.

    Returns:
      A dict for each slice: "by"; "from" and "below", its edges (None at the ends);
      "rows"; "users"; and "metrics": by name "mean", "low" and "high", or {} where
      there is no row.

    Raises:
      InputError: the edges do not increase.
    """
    edge_E = np.asarray(edges)
    if (np.diff(edge_E) <= 0).any():
        raise InputError(f"edges must increase: got {list(edges)} for {by}.")
    slice_N = np.searchsorted(edge_E, of_N, side="right")
    bounds = [None, *edge_E.tolist(), None]
    rows = []
    for s in range(len(edge_E) + 1):
        is_here_N = slice_N == s
        here = {name: value_N[is_here_N] for name, value_N in values.items()}
        chance = {"level": level, "num_samples": num_samples, "seed": seed}
        rows.append(
            {
                "by": by,
                "from": bounds[s],
                "below": bounds[s + 1],
                "rows": int(is_here_N.sum()),
                "users": len(np.unique(user_N[is_here_N])),
                "metrics": {
                    name: interval(value_M, user_N[is_here_N], **chance)._asdict()
                    for name, value_M in here.items()
                    if np.isfinite(value_M).any()
                },
            }
        )
    return rows


def interval(
    value_N: np.ndarray,
    user_N: np.ndarray,
    *,
    level: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of a value over rows, with its bootstrap interval over users.

    A user's rows are drawn together: see `significance.of_ratio`.

    >>> interval(np.array([1.0, 1.0, 1.0, np.nan]), np.array([7, 7, 8, 9]))
    Interval(mean=1.0, low=1.0, high=1.0)

    Args:
      value_N: float; rows of nan are left out.
      user_N: the user of each row.
      level, num_samples, seed: as in `significance.bootstrap_interval`.

    Raises:
      InputError: no row has a value.
    """
    has_value_N = ~np.isnan(value_N)
    value_N, user_N = value_N[has_value_N], user_N[has_value_N]
    _, place_N = np.unique(user_N, return_inverse=True)
    return significance.bootstrap_interval(
        significance.of_ratio(np.bincount(place_N, value_N), np.bincount(place_N)),
        level=level,
        num_samples=num_samples,
        seed=seed,
    )
