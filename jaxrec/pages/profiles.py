"""The shape of a log: how long histories are, and how unequal items."""

from typing import NamedTuple

import numpy as np

from jaxrec.data import Split

_POINTS = 200  # of a curve, enough for a picture


class Histogram(NamedTuple):
    """Counts of integers: counts[i] values v have edges[i] <= v < edges[i + 1]."""

    edges: list[int]
    counts: list[int]


class Profile(NamedTuple):
    """Of a split.

    lengths: of the users' histories, all parts together.
    popularity: of the items, by training interactions, those that have any.
    num_unseen: items without one.
    concentration: (share of the items, most popular first; share of the training
      interactions that is theirs), from (0, 0) to (1, 1).
    top_share: the second for the first = 1%, 10% and so on.
    half: share of the items that has half of the training interactions.
    """

    lengths: Histogram
    popularity: Histogram
    num_unseen: int
    concentration: list[tuple[float, float]]
    top_share: dict[float, float]
    half: float


def profile(split: Split) -> Profile:
    """What a report shows of a log."""
    count_V = split.train_item_counts()[1:]
    share_V = np.append(0, np.cumsum(np.sort(count_V)[::-1])) / max(1, count_V.sum())
    num_items = len(count_V)

    def share_of(top: float) -> float:
        return float(share_V[max(1, round(top * num_items))])

    place_P = np.unique(np.linspace(0, num_items, _POINTS).round().astype(int))
    return Profile(
        lengths=histogram(split.dataset.lengths),
        popularity=histogram(count_V[count_V > 0]),
        num_unseen=int((count_V == 0).sum()),
        concentration=[(p / num_items, float(share_V[p])) for p in place_P.tolist()],
        top_share={top: share_of(top) for top in (0.01, 0.1, 0.2)},
        half=int(np.searchsorted(share_V, 0.5)) / num_items,
    )


def histogram(value_N: np.ndarray) -> Histogram:
    """Counts of positive integers in bins of nearly equal ratio, some 8 a decade.

    >>> histogram(np.array([1, 1, 2, 5]))
    Histogram(edges=[1, 2, 3, 4, 6], counts=[2, 1, 0, 1])

    Args:
      value_N: positive integers; none gives no bins.

    Returns:
      Bins from the least value's to the greatest's.
    """
    value_N = value_N[value_N > 0]
    if not len(value_N):
        return Histogram([], [])
    num_decades = int(np.log10(value_N.max())) + 2
    from_ten_E = np.round(10 ** (np.arange(8, 8 * num_decades) / 8)).astype(int)
    edge_E = np.append([1, 2, 3, 4, 6, 8], from_ten_E)
    first = np.searchsorted(edge_E, value_N.min(), side="right") - 1
    last = np.searchsorted(edge_E, value_N.max(), side="right")
    edge_E = edge_E[first : last + 1]
    counts, _ = np.histogram(value_N, edge_E)
    return Histogram(edge_E.tolist(), counts.tolist())
