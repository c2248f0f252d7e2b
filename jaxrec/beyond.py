"""Metrics beyond the rank: what lists of recommendations are like, whoever likes them.

An entry of a list is an item 1..num_items, or 0 where the list is shorter than K. Some
metrics have a value for each list, whose mean over lists is the metric; coverage and
Gini are of all lists together, and of a sample of users they would be another quantity,
so they have no interval by resampling users.
"""

from collections.abc import Iterator

import numpy as np

from jaxrec.errors import InputError

# Numbers held at a time where embeddings are gathered (64 MiB of float64).
_BLOCK = 2**23


def coverage(item_NK: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is in at least one list.

    |union of the lists| / num_items

    >>> coverage(np.array([[1, 2], [2, 3]]), 4)
    0.75

    Args:
      item_NK: int, the lists; 0 is none.
      num_items: of the catalogue.

    Returns:
      A fraction in [0, 1]; at most N K / num_items.

    Source: Ge, Delgado-Battenfeld & Jannach, Beyond Accuracy: Evaluating Recommender
    Systems by Coverage and Serendipity, RecSys 2010 (catalogue coverage).
    """
    return int((_shown(item_NK, num_items) > 0).sum()) / num_items


def gini(item_NK: np.ndarray, num_items: int) -> float:
    """How unequally the places of all lists are dealt to the items of the catalogue.

    With x_(1) <= ... <= x_(V) the times that each item is in a list:

      G = sum_i (2 i - V - 1) x_(i) / (V sum_i x_(i))

    >>> gini(np.array([[1, 2], [3, 4]]), 4), gini(np.array([[1], [1]]), 4)
    (0.0, 0.75)

    Args:
      item_NK, num_items: as in `coverage`.

    Returns:
      In [0, 1 - 1 / num_items]: 0 if every item is shown equally often, the most if
      only one is shown; nan if nothing is.

    Source: Fleder & Hosanagar, Blockbuster Culture's Next Rise or Fall, Management
    Science 55(5), 2009.
    """
    count_V = np.sort(_shown(item_NK, num_items)).astype(float)
    total = count_V.sum()
    if total == 0:
        return float("nan")
    place_V = np.arange(1, num_items + 1)
    return float(((2 * place_V - num_items - 1) * count_V).sum() / (num_items * total))


def novelty(item_NK: np.ndarray, count_V: np.ndarray) -> np.ndarray:
    """Mean self-information of a list's items, were items drawn like in training.

    (1 / K) sum_k -log2 p(i_k),    p(i) = count_i / sum_j count_j

    An item that nobody trained on counts once: it is as novel as can be told.

    >>> novelty(np.array([[1, 2], [2, 0]]), np.array([0, 1, 3])).round(3).tolist()
    [1.208, 0.415]

    Args:
      item_NK: int, the lists; 0 is none.
      count_V: training interactions by item id, entry 0 unused.

    Returns:
      float64 [N], bits, >= 0; nan for an empty list.

    Raises:
      InputError: nothing was trained on.

    Source: Zhou et al., Solving the Apparent Diversity-Accuracy Dilemma of Recommender
    Systems, PNAS 107(10), 2010; there p is a share of users, here of interactions.
    """
    count_V = np.asarray(count_V, float)
    total = count_V[1:].sum()
    if not total > 0:
        raise InputError("novelty needs training interactions: there are none.")
    return _list_means(item_NK, -np.log2(np.maximum(count_V, 1) / total))


def mean_popularity(item_NK: np.ndarray, count_V: np.ndarray) -> np.ndarray:
    """Mean number of training interactions of a list's items: the popularity bias.

    (1 / K) sum_k count_{i_k}

    >>> mean_popularity(np.array([[1, 2], [2, 0]]), np.array([0, 1, 3])).tolist()
    [2.0, 3.0]

    Args:
      item_NK, count_V: as in `novelty`.

    Returns:
      float64 [N], interactions; nan for an empty list.

    Source: Yin, Cui, Li, Yao & Chen, Challenging the Long Tail Recommendation, VLDB
    2012 (average recommendation popularity).
    """
    return _list_means(item_NK, np.asarray(count_V, float))


def diversity(item_NK: np.ndarray, vector_VD: np.ndarray) -> np.ndarray:
    """Intra-list diversity: how little alike the items of a list are, pair by pair.

    With unit vectors u_k of a list's n items, the n (n - 1) ordered pairs have

      1 - mean cosine = 1 - (|sum_k u_k|^2 - sum_k |u_k|^2) / (n (n - 1))

    >>> vector_VD = np.array([[0, 0], [1, 0], [0, 2], [3, 0]])
    >>> diversity(np.array([[1, 2], [1, 3]]), vector_VD).tolist()
    [1.0, 0.0]

    Args:
      item_NK: int, the lists; 0 is none.
      vector_VD: float, a vector of each item id, entry 0 unused. The cosine with a
        vector of zeros is 0.

    Returns:
      float64 [N], in [0, 2]: 0 if all point the same way; nan for a list of fewer than
      two items.

    Source: Ziegler, McNee, Konstan & Lausen, Improving Recommendation Lists through
    Topic Diversification, WWW 2005 (intra-list similarity), as 1 - its mean.
    """
    result_N = np.full(len(item_NK), np.nan)
    for here in _blocks(len(item_NK), item_NK.shape[1] * vector_VD.shape[1]):
        is_item_BK = item_NK[here] > 0
        vector_BKD = np.asarray(vector_VD[item_NK[here]], float)
        norm_BK = np.linalg.norm(vector_BKD, axis=2)
        scale_BK = is_item_BK / np.where(norm_BK > 0, norm_BK, 1)
        unit_BKD = vector_BKD * scale_BK[:, :, None]
        length_B = is_item_BK.sum(axis=1)
        all_B = (unit_BKD.sum(axis=1) ** 2).sum(axis=1)
        same_B = (unit_BKD**2).sum(axis=(1, 2))
        num_pairs_B = np.where(length_B > 1, length_B * (length_B - 1), np.nan)
        result_N[here] = 1 - (all_B - same_B) / num_pairs_B
    return result_N


def _shown(item_NK: np.ndarray, num_items: int) -> np.ndarray:
    """How often each of the items is in the lists: int64 [num_items]."""
    return np.bincount(item_NK.reshape(-1), minlength=num_items + 1)[1:]


def _list_means(item_NK: np.ndarray, value_V: np.ndarray) -> np.ndarray:
    """Mean of a value over the items of each list; nan for an empty one."""
    is_item_NK = item_NK > 0
    sum_N = np.where(is_item_NK, value_V[item_NK], 0).sum(axis=1)
    count_N = is_item_NK.sum(axis=1)
    return sum_N / np.where(count_N > 0, count_N, np.nan)


def _blocks(num_rows: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, width))
    for first in range(0, num_rows, size):
        yield slice(first, first + size)
