"""Metrics against their closed forms and against textbook definitions on lists."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics
from jaxrec.errors import InputError

NAMES = ("hr@1", "hr@10", "ndcg@1", "ndcg@10", "mrr@10", "mrr@500")
# One float32 operation or two on each value, and a tree of float32 additions.
RTOL = 1e-6


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def textbook(ranking, relevant, metric, k):
    """Hit rate, NDCG = DCG / IDCG and reciprocal rank of one ranked list."""
    is_hit = [item in relevant for item in ranking[:k]]
    if metric == "hr":
        return float(any(is_hit))
    if metric == "mrr":
        return next((1 / place for place, hit in enumerate(is_hit, 1) if hit), 0.0)
    dcg = sum(1 / math.log2(place + 1) for place, hit in enumerate(is_hit, 1) if hit)
    ideal = sum(
        1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1)
    )
    return dcg / ideal


@pytest.mark.parametrize("k", [1, 2, 10, 100])
def test_every_rank_up_to_the_first_miss_has_its_closed_form(k):
    rank = np.arange(1, k + 2)
    hit = np.append(np.ones(k), 0)
    for metric_fn, expected in (
        (metrics.hit_rate, hit),
        (metrics.ndcg, hit / np.log2(rank + 1)),
        (metrics.mrr, hit / rank),
    ):
        for given in (rank, jnp.asarray(rank, jnp.int32)):
            value = metric_fn(given, k)
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, expected, rtol=RTOL)
            assert value[-1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_textbook_on_ranking_lists(name):
    metric_fn, k = metrics.parse(name)
    metric = name.split("@")[0]
    rng = np.random.default_rng(3)
    num_items, num_rows = 30, 200
    ranks, expected = [], []
    for _ in range(num_rows):
        ranking = rng.permutation(num_items).tolist()
        target = int(rng.integers(num_items))
        ranks.append(ranking.index(target) + 1)
        expected.append(textbook(ranking, {target}, metric, k))
    ranks = np.array(ranks, np.int32)
    np.testing.assert_allclose(metric_fn(ranks, k), expected, rtol=RTOL)
    mean = metrics.means([metrics.sums(ranks, None, [name])])[name]
    assert mean == pytest.approx(np.mean(expected), rel=RTOL)


def test_cut_off_beyond_the_catalogue_cuts_nothing():
    rank = np.array([1, 2, 7])
    np.testing.assert_array_equal(metrics.hit_rate(rank, 10**6), 1)
    np.testing.assert_allclose(metrics.mrr(rank, 10**6), 1 / rank, rtol=RTOL)


def test_perfect_ranking_scores_exactly_one():
    assert metrics.means(
        [metrics.sums(np.ones(77, int), None, NAMES)]
    ) == dict.fromkeys(NAMES, 1.0)


def test_rows_of_weight_zero_count_as_removed_whatever_their_rank():
    rank = np.array([1, 0, 3, -1, 12, 2], np.int32)
    weight = np.array([1, 0, 1, 0, 1, 0], np.float32)
    masked = metrics.sums(rank, weight, NAMES)
    removed = metrics.sums(rank[weight > 0], None, NAMES)
    assert set(masked) == {*NAMES, "weight"}
    for name, value in masked.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, removed[name], rtol=RTOL)
    assert masked["weight"] == 3
    assert masked["hr@10"] == 2


def test_weights_weigh():
    part = metrics.sums(np.array([1, 4]), np.array([1.0, 3.0], np.float32), ["mrr@10"])
    assert metrics.means([part]) == {"mrr@10": (1 * 1 + 3 / 4) / 4}


def test_parts_of_unequal_size_give_the_mean_of_all_rows_not_of_the_parts():
    parts = [
        metrics.sums(np.array([1]), None, ["hr@10"]),
        metrics.sums(np.array([11, 12, 13]), None, ["hr@10"]),
    ]
    assert metrics.means(parts) == {"hr@10": 0.25}


def test_ten_million_rows_keep_the_accuracy_of_a_chunk():
    rank = np.random.default_rng(0).integers(1, 151, 10**7).astype(np.int32)
    sums_fn = jax.jit(
        functools.partial(metrics.sums, weight_N=None, names=("ndcg@100", "hr@100"))
    )
    got = metrics.means(sums_fn(chunk) for chunk in np.split(rank, 100))
    hit = rank <= 100
    assert got["hr@100"] == hit.mean()  # whole numbers: exact
    expected = np.where(hit, 1 / np.log2(rank + 1.0), 0).mean()
    assert got["ndcg@100"] == pytest.approx(expected, rel=RTOL)


def test_sums_of_a_split_of_the_rows_add_up_under_psum():
    rank = np.arange(1, 33, dtype=np.int32).reshape(8, 4)
    weight = np.ones((8, 4), np.float32)

    def shard(rank, weight):
        return jax.lax.psum(metrics.sums(rank, weight, NAMES), "data")

    got = jax.vmap(shard, axis_name="data")(rank, weight)
    whole = metrics.sums(rank.ravel(), weight.ravel(), NAMES)
    for name, value in whole.items():
        np.testing.assert_allclose(got[name], np.full(8, value), rtol=RTOL)


def test_jit_equals_eager():
    rank = np.arange(1, 41)
    weight = np.linspace(0, 1, 40, dtype=np.float32)
    jitted = jax.jit(metrics.sums, static_argnames="names")
    for name, value in jitted(rank, weight, names=NAMES).items():
        expected = metrics.sums(rank, weight, NAMES)[name]
        np.testing.assert_allclose(value, expected, rtol=RTOL)


def test_parse_gives_function_and_cut_off():
    assert metrics.parse("ndcg@10") == (metrics.ndcg, 10)
    assert metrics.parse("hr@100") == (metrics.hit_rate, 100)
    assert metrics.parse("mrr@1") == (metrics.mrr, 1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ngcd@10", "Did you mean ndcg@10?"),
        ("NDCG@20", "Did you mean ndcg@20?"),
        ("mmr", "Did you mean mrr@10?"),
        ("ndcg", "Give ndcg a cut-off, as in ndcg@10."),
        ("ndcg@0", "Give ndcg a cut-off"),
        ("mrr@-1", "Give mrr a cut-off"),
        ("hr@1.5", "Give hr a cut-off"),
        ("hr@", "Give hr a cut-off"),
        ("hr@²", "Give hr a cut-off"),
        ("coverage@10", "Choose one of these."),
        ("", "Choose one of these."),
    ],
)
def test_parse_refuses_what_it_does_not_know(name, hint):
    with pytest.raises(InputError) as error:
        metrics.parse(name)
    message = str(error.value)
    assert "hr@k, ndcg@k, mrr@k" in message
    assert f"got {name!r}" in message
    assert hint in message


def test_sums_refuse_weights_of_another_shape():
    with pytest.raises(InputError, match=r"got \(2,\) for ranks \(3,\)"):
        metrics.sums(np.array([1, 2, 3]), np.ones(2, np.float32), ["hr@10"])


def test_means_refuse_nothing_to_average_and_parts_that_differ():
    empty = metrics.sums(np.array([1]), np.zeros(1, np.float32), ["hr@10"])
    for parts in ([], [empty]):
        with pytest.raises(InputError, match="at least one row of positive weight"):
            metrics.means(parts)
    one = metrics.sums(np.array([1]), None, ["hr@10"])
    other = metrics.sums(np.array([1]), None, ["hr@10", "mrr@10"])
    with pytest.raises(InputError, match="metrics of the first"):
        metrics.means([one, other])
