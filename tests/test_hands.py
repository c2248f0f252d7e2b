"""Dealt negatives: their law and their balance, and a loss over them, from the sets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec import hands, losses, negatives
from jaxrec.errors import InputError

ALPHA = 1e-6  # as in test_negatives: keys are fixed
POOL = [1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14]  # A = 12
NUM_ROWS = 16
SEEN_BX = np.array(
    [
        [7, 0, 4, 7, 0],  # a repeat, padding, an item that is not in the pool
        [0, 0, 0, 0, 0],
        [1, 2, 3, 5, 6],
        [14, 15, 14, 1, 0],
    ],
    np.int32,
)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def pool_of(ids=POOL, num_rows=NUM_ROWS):
    return negatives.make_pool(np.isin(np.arange(num_rows), ids))


@functools.partial(jax.jit, static_argnames=("num_negatives",))
def many(keys, seen_BX, pool, num_negatives):
    def deal(key):
        return hands.deal(key, seen_BX, pool, num_negatives=num_negatives)

    return jax.vmap(deal)(keys)


def deals(num_deals, seen_BX, pool, num_negatives, seed=0):
    """Hands of independent deals, with a leading axis."""
    keys = jax.random.split(jax.random.key(seed), num_deals)
    return jax.device_get(many(keys, jnp.asarray(seen_BX), pool, num_negatives))


def sets_of(dealt) -> list[list[int]]:
    """The items of each sequence of one deal, in the order of their places."""
    num_pool, found = len(dealt.item_A), {}
    for i, sequence in enumerate(dealt.sequence_B.tolist()):
        seen = {*dealt.dropped_BX[i].tolist()}
        places = range(dealt.start_B[i], dealt.end_B[i])
        assert len(places) <= dealt.longest <= num_pool
        left = [dealt.item_A[p % num_pool].item() for p in places if p not in seen]
        found[sequence] = left
    assert sorted(found) == list(range(len(found)))
    return [found[sequence] for sequence in range(len(found))]


def one(dealt, k=0):
    return jax.tree.map(lambda x: x[k], dealt)


@pytest.mark.parametrize("num_negatives", [1, 4, 7])
def test_each_has_that_many_unseen_items(num_negatives):
    """7 is all that the third sequence has not seen."""
    dealt = deals(50, SEEN_BX, pool_of(), num_negatives)
    for k in range(50):
        for seen, drawn in zip(SEEN_BX.tolist(), sets_of(one(dealt, k)), strict=True):
            assert len(drawn) == len({*drawn}) == num_negatives
            assert {*drawn} <= {*POOL} - {*seen}


def test_with_too_few_unseen_items_it_is_those():
    dealt = deals(5, SEEN_BX, pool_of(), 12)
    for k in range(5):
        for seen, drawn in zip(SEEN_BX.tolist(), sets_of(one(dealt, k)), strict=True):
            assert sorted(drawn) == sorted({*POOL} - {*seen})


@pytest.mark.parametrize("sequence", [0, 2, 3])
def test_every_subset_of_unseen_items_is_equally_likely(sequence):
    """Pearson's test; the threshold is a quantile of the limit law."""
    dealt = deals(12_000, SEEN_BX, pool_of(), 4, seed=3)
    unseen = sorted({*POOL} - {*SEEN_BX[sequence].tolist()})
    outcomes = list(itertools.combinations(unseen, 4))
    count = dict.fromkeys(outcomes, 0)
    is_of_KB = dealt.sequence_B == sequence
    start_K, end_K = dealt.start_B[is_of_KB], dealt.end_B[is_of_KB]
    for item_A, start, end, seen_X in zip(
        dealt.item_A, start_K, end_K, dealt.dropped_BX[is_of_KB], strict=True
    ):
        places = [p % len(POOL) for p in range(start, end) if p not in seen_X]
        count[tuple(sorted(item_A[places].tolist()))] += 1
    expected = 12_000 / len(outcomes)
    assert expected >= 5
    statistic = sum((n - expected) ** 2 / expected for n in count.values())
    assert statistic < stats.chi2.isf(ALPHA, len(outcomes) - 1)


@pytest.mark.parametrize(("num_hands", "num_negatives"), [(5, 7), (12, 5), (40, 3)])
def test_every_item_is_in_equally_many_sets(num_hands, num_negatives):
    """B S / A of them where nothing is seen, rounded down or up."""
    dealt = deals(20, np.zeros((num_hands, 1), np.int32), pool_of(), num_negatives)
    mean = num_hands * num_negatives / len(POOL)
    for k in range(20):
        item, count = np.unique(sets_of(one(dealt, k)), return_counts=True)
        full = dict.fromkeys(POOL, 0) | dict(zip(item.tolist(), count, strict=True))
        assert {*full.values()} <= {int(np.floor(mean)), int(np.ceil(mean))}


def test_two_sets_have_a_little_less_in_common_than_independent_ones():
    """S (n - 1) / (B - 1) with n sets an item: 4 (6 - 1) / 17, and 4 / 3 apart."""
    num_hands, size, num_deals = 18, 4, 4000
    dealt = deals(num_deals, np.zeros((num_hands, 1), np.int32), pool_of(), size)
    common = []
    for sequence_B, start_B in zip(dealt.sequence_B, dealt.start_B, strict=True):
        # Of the first two sequences; 12 places in a circle.
        first, second = (start_B[sequence_B == b].item() for b in (0, 1))
        places = [
            {(first + i) % 12 for i in range(4)},
            {(second + i) % 12 for i in range(4)},
        ]
        common.append(len(places[0] & places[1]))
    expected = size * (num_hands * size / 12 - 1) / (num_hands - 1)
    assert expected < size**2 / 12
    error = np.std(common) / np.sqrt(num_deals)
    assert abs(np.mean(common) - expected) < 5 * error


@pytest.mark.parametrize(
    ("shared", "ratio"), [(0, 1.2), (0.5, 0.8), (9, 0)], ids="none some all".split()
)
def test_what_is_added_up_over_a_batch_varies_as_it_should(shared, ratio):
    """By the formula of `deal`; a variance of 8000 is good to some 2%.

    ratio: to that of independent sets, about: B / (B - 1) for terms that sum to nothing
      over the sequences, and 0 for terms that all of them share.
    """
    num_hands, size, num_deals = 6, 4, 8000
    dealt = deals(num_deals, np.zeros((num_hands, 1), np.int32), pool_of(), size)
    rng = np.random.default_rng(0)
    f_BA = shared * rng.normal(size=12) + rng.normal(size=(num_hands, 12)) * (
        shared < 9
    )
    f_BA -= f_BA.mean(axis=0) * (shared == 0)
    place_KBS = (dealt.start_B[..., None] + np.arange(size)) % 12
    item_KBS = np.take_along_axis(dealt.item_A[:, None], place_KBS, axis=2)
    index_KBS = np.searchsorted(POOL, item_KBS)
    total_K = f_BA[dealt.sequence_B[..., None], index_KBS].sum(axis=(1, 2))
    f_BA = f_BA - f_BA.mean(axis=1, keepdims=True)
    squares = num_hands * (f_BA**2).sum() - (f_BA.sum(axis=0) ** 2).sum()
    independent = size * (12 - size) / (12 * 11) * (f_BA**2).sum()
    expected = size * (12 - size) / (12 * 11) * squares / (num_hands - 1)
    assert expected / independent == pytest.approx(ratio, abs=0.1)
    assert np.var(total_K) == pytest.approx(expected, rel=0.08, abs=1e-6)


def test_starts_are_spread_evenly_over_a_large_pool():
    """No product of 32 bits overflows: 65,535 times 100,001 does."""
    num_hands, num_pool = 2**16, 100_001
    pool = pool_of(range(1, num_pool + 1), num_pool + 1)
    start_B = one(deals(1, np.zeros((num_hands, 1), np.int32), pool, 1)).start_B
    assert start_B.tolist() == [b * num_pool // num_hands for b in range(num_hands)]


def test_more_places_for_what_is_seen_than_there_are_items():
    """Padding and repeats are passed by nobody, however many they are."""
    seen_BX = np.zeros((4, 51), np.int32)
    seen_BX[:, :5], seen_BX[1, 10:50] = SEEN_BX, 7
    dealt = deals(50, seen_BX, pool_of(), 5)
    for k in range(50):
        for seen, drawn in zip(seen_BX.tolist(), sets_of(one(dealt, k)), strict=True):
            assert len(drawn) == 5 and {*drawn} <= {*POOL} - {*seen}


def test_the_longest_hand_passes_all_that_was_seen():
    """Nine of the pool's places, where the five that were seen come first."""
    dealt = deals(200, SEEN_BX, pool_of(), 4)
    assert dealt.longest == 9
    assert (dealt.end_B - dealt.start_B).max() == 9


@pytest.mark.parametrize("num_negatives", [0, 13])
def test_as_many_as_there_are(num_negatives):
    with pytest.raises(InputError, match=rf"in 1\.\.12.*got {num_negatives}"):
        deals(1, SEEN_BX, pool_of(), num_negatives)


# ---- The loss


def expected_of(hidden_BLD, table_VD, target_BL, weight_BL, sets):
    """Sum and gradients in float64, position by position."""
    total = 0.0
    hidden_grad_BLD, table_grad_VD = np.zeros_like(hidden_BLD), np.zeros_like(table_VD)
    for (b, place), weight in np.ndenumerate(weight_BL):
        if weight == 0:
            continue
        item = np.array([target_BL[b, place], *sets[b]])
        score = table_VD[item] @ hidden_BLD[b, place]
        total += weight * (np.logaddexp.reduce(score) - score[0])
        grad = np.exp(score - np.logaddexp.reduce(score))
        grad[0] -= 1
        hidden_grad_BLD[b, place] = weight * grad @ table_VD[item]
        np.add.at(table_grad_VD, item, weight * np.outer(grad, hidden_BLD[b, place]))
    return total, hidden_grad_BLD, table_grad_VD


@pytest.mark.parametrize("num_seen", [1, 5])
@pytest.mark.parametrize("at_a_time", [1, 2, 6, 18])
def test_a_loss_is_that_of_the_sets(at_a_time, num_seen, monkeypatch):
    """Of 18 sequences, some without a position; 18 hands are more than all places.

    With one item seen, many a hand is as long as can be and needs its last place.
    """
    monkeypatch.setattr(hands, "together", lambda *sizes: at_a_time)
    rng = np.random.default_rng(at_a_time)
    seen_BX = np.resize(SEEN_BX, (18, 5))[:, :num_seen]
    dealt = one(deals(1, seen_BX, pool_of(), 5))
    hidden_BLD = rng.normal(size=(18, 9, 3))
    table_VD = rng.normal(size=(NUM_ROWS, 3))
    target_BL = rng.integers(1, NUM_ROWS, (18, 9)).astype(np.int32)
    weight_BL = rng.uniform(0.1, 3, (18, 9)) * (rng.random((18, 9)) < 0.7)
    weight_BL[[3, 8]] = 0

    def loss(hidden_BLD, table_VD):
        arrays = hidden_BLD, table_VD, target_BL, weight_BL.astype(np.float32), dealt
        loss_sum, weight = losses.sampled_ce(*arrays)
        return loss_sum, weight

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (loss_sum, weight), (hidden_grad_BLD, table_grad_VD) = run(
        hidden_BLD.astype(np.float32), table_VD.astype(np.float32)
    )
    expected = expected_of(hidden_BLD, table_VD, target_BL, weight_BL, sets_of(dealt))
    assert float(weight) == pytest.approx(weight_BL.sum(), rel=1e-6)
    found = loss_sum, hidden_grad_BLD, table_grad_VD
    for mine, other in zip(found, expected, strict=True):
        # Float32 sums of a hundred terms of order one.
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # Scores are all that counts, or rows are.
        ((128, 54_542, 3050, 100_000), 1),
        ((128, 54_542, 3050, 0), 128),
        # Hands that do not touch have nothing in common.
        ((16, 1_000_000, 3000, 1000), 1),
        # Of a prime number one or all: all would be longer than the catalogue.
        ((127, 54_542, 3050, 800), 1),
    ],
)
def test_as_many_hands_together_as_cost_the_least(sizes, expected):
    assert hands.together(*sizes) == expected
