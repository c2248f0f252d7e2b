"""Metrics of lists: closed forms, and a loop over lists and pairs."""

import itertools
import math

import numpy as np
import pytest

from jaxrec import beyond
from jaxrec.errors import InputError

RNG = np.random.default_rng(0)
NUM_ITEMS = 9
# Lists without repeats; the last ones are short, and one is empty.
ITEM_NK = np.stack([RNG.permutation(NUM_ITEMS)[:4] + 1 for _ in range(12)])
ITEM_NK[-1], ITEM_NK[-2, 1:], ITEM_NK[-3, 2:] = 0, 0, 0
COUNT_V = np.array([0, 0, 1, 1, 2, 3, 5, 8, 13, 21])


def test_coverage_counts_what_is_shown_at_all():
    assert beyond.coverage(np.array([[3, 1], [1, 0]]), 8) == 2 / 8
    assert beyond.coverage(np.zeros((3, 2), int), 8) == 0
    assert beyond.coverage(np.arange(1, 9).reshape(4, 2), 8) == 1


@pytest.mark.parametrize("shown", [[1, 1, 1, 1], [0, 0, 0, 5], [1, 2, 3, 4], [7, 0, 2]])
def test_gini_is_half_the_relative_mean_difference(shown):
    """Gini's own definition: the mean of |x_i - x_j| over all pairs / (2 mean)."""
    item_NK = np.repeat(np.arange(len(shown)) + 1, shown)[:, None]
    mean_difference = np.mean([abs(x - y) for x in shown for y in shown])
    expected = mean_difference / (2 * np.mean(shown))
    assert beyond.gini(item_NK, len(shown)) == pytest.approx(expected, abs=1e-12)


def test_gini_from_none_to_the_most():
    assert beyond.gini(np.array([[1, 2], [3, 4]]), 4) == 0
    assert beyond.gini(np.array([[2], [2], [2]]), 5) == pytest.approx(1 - 1 / 5)
    assert math.isnan(beyond.gini(np.zeros((2, 2), int), 4))


def test_novelty_is_the_mean_self_information():
    total = COUNT_V.sum()
    for list_K, value in zip(ITEM_NK, beyond.novelty(ITEM_NK, COUNT_V), strict=True):
        # An item nobody trained on counts once.
        bits = [-math.log2(max(COUNT_V[i], 1) / total) for i in list_K if i > 0]
        expected = sum(bits) / len(bits) if bits else math.nan
        assert value == pytest.approx(expected, nan_ok=True)
    # A catalogue of 8 items alike: each tells 3 bits.
    alike = beyond.novelty(np.array([[1, 5, 8]]), np.array([0, *[6] * 8]))
    assert alike.tolist() == [3.0]
    with pytest.raises(InputError, match="training interactions"):
        beyond.novelty(ITEM_NK, np.zeros(NUM_ITEMS + 1))


def test_mean_popularity_is_the_mean_count():
    values = beyond.mean_popularity(ITEM_NK, COUNT_V)
    for list_K, value in zip(ITEM_NK, values, strict=True):
        counts = [COUNT_V[i] for i in list_K if i > 0]
        expected = sum(counts) / len(counts) if counts else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("block", [2**23, 30])
def test_diversity_is_the_mean_over_pairs(monkeypatch, block):
    monkeypatch.setattr(beyond, "_BLOCK", block)
    vector_VD = RNG.normal(size=(NUM_ITEMS + 1, 5))
    vector_VD[4] = 0  # alike to nothing, itself included
    values = beyond.diversity(ITEM_NK, vector_VD)

    def cosine(i, j):
        norms = np.linalg.norm(vector_VD[i]) * np.linalg.norm(vector_VD[j])
        return vector_VD[i] @ vector_VD[j] / norms if norms else 0.0

    assert 4 in ITEM_NK
    for list_K, value in zip(ITEM_NK, values, strict=True):
        pairs = list(itertools.combinations([i for i in list_K if i > 0], 2))
        cosines = [cosine(i, j) for i, j in pairs]
        expected = 1 - sum(cosines) / len(cosines) if cosines else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_diversity_in_closed_form():
    vector_VD = np.array([[9.0, 9], [1, 0], [0, 3], [-2, 0], [4, 0]])
    lists = np.array([[1, 4], [1, 2], [1, 3], [1, 0]])
    values = beyond.diversity(lists, vector_VD)
    np.testing.assert_allclose(values, [0, 1, 2, np.nan], atol=1e-12)
