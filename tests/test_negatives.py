"""Samplers against their laws: what may be drawn, and how often.

Chi-square thresholds are quantiles of the exact limit law. Keys are fixed, so a test
gives the same answer every time. With other keys, a correct sampler would fail one of
the 35 statistics in one of about 30,000 runs, and a wrong law is far beyond them:
8 rounds of swap-or-not fail, and so does a modulo of 8 random bits.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec import negatives
from jaxrec.errors import InputError

ALPHA = 1e-6


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def pool_of(ids, num_rows):
    is_allowed = np.zeros(num_rows, bool)
    is_allowed[list(ids)] = True
    return negatives.make_pool(is_allowed)


def seen_array(ids):
    return jnp.asarray(ids, jnp.int32)


@functools.cache
def jitted(sampler, **options):
    """One compilation for all tests of equal shapes: compiling is most of the time."""
    return jax.jit(
        jax.vmap(functools.partial(sampler, **options), in_axes=(0, None, None))
    )


def draws(sampler, num_draws, seed, seen, pool, **options):
    """Independent draws of one sequence, [num_draws, ...]."""
    keys = jax.random.split(jax.random.key(seed), num_draws)
    return np.asarray(jitted(sampler, **options)(keys, seen, pool))


def kept(pool, excluded_NE):
    """Pool minus excluded for each draw, int [N, S]."""
    items = np.asarray(pool.item_A)
    is_kept_NA = ~(excluded_NE[:, :, None] == items).any(axis=1)
    return items[np.nonzero(is_kept_NA)[1]].reshape(len(excluded_NE), -1)


def assert_equally_likely(outcome_N, outcomes):
    """Pearson's test that independent outcomes are uniform over the given ones."""
    place = {outcome: place for place, outcome in enumerate(outcomes)}
    count = np.bincount([place[outcome] for outcome in outcome_N], minlength=len(place))
    expected = len(outcome_N) / len(place)
    assert expected >= 5, "too few draws for the limit law"
    statistic = ((count - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.isf(ALPHA, len(place) - 1)


def assert_inclusions_uniform(subset_NS, candidates, order):
    """Test of how often each item (order 1) or pair (order 2) is in a subset.

    A set of size q is in a uniform S-subset of m items with probability
    S (S-1) .. (S-q+1) / (m (m-1) .. (m-q+1)). That gives the mean and the covariance
    of the indicators, and the quadratic form of the sum of N of them with the
    pseudo-inverse is chi-square with C(m, order) - 1 degrees of freedom.
    """
    num_draws, size = subset_NS.shape
    m = len(candidates)
    groups = np.array(list(itertools.combinations(range(m), order)))
    probability = [math.perm(size, q) / math.perm(m, q) for q in range(2 * order + 1)]

    is_in_NM = (subset_NS[:, :, None] == np.asarray(candidates)).any(axis=1)
    observed = np.array([is_in_NM[:, group].all(axis=1).sum() for group in groups])
    mean = num_draws * probability[order]
    is_member_GM = (groups[:, :, None] == np.arange(m)).any(axis=1).astype(int)
    union_GG = 2 * order - is_member_GM @ is_member_GM.T
    covariance = num_draws * (np.array(probability)[union_GG] - probability[order] ** 2)
    deviation = observed - mean
    inverse = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    statistic = deviation @ inverse @ deviation
    assert statistic < stats.chi2.isf(ALPHA, len(groups) - 1)


# Rank to item.

POOL_IDS = [2, 3, 5, 8, 9, 12]
LAYOUTS = {
    "all pads": [0, 0, 0, 0, 0, 0, 0],
    "seen outside the pool": [1, 4, 13, 8, 0, 4, 0],
    "pads and repeats": [5, 0, 5, 8, 0, 5, 3],
    "first and last": [12, 0, 2, 2, 12, 0, 0],
    "one left": [2, 3, 5, 8, 9, 0, 2],
    "none left": [12, 2, 3, 5, 8, 9, 9],
}


@pytest.fixture(params=LAYOUTS, name="layout")
def layout_fixture(request):
    """(pool, seen, unseen items by set arithmetic) of a catalogue of 13 items."""
    seen = LAYOUTS[request.param]
    unseen = sorted(set(POOL_IDS) - set(seen))
    return pool_of(POOL_IDS, 14), seen_array(seen), unseen


def test_pool_lists_the_allowed_items_and_their_places():
    pool = pool_of([2, 5, 6], 8)
    assert pool.item_A.dtype == pool.index_V.dtype == jnp.int32
    np.testing.assert_array_equal(pool.item_A, [2, 5, 6])
    np.testing.assert_array_equal(pool.index_V, [3, 3, 0, 3, 3, 1, 2, 3])


def test_unseen_count_is_set_arithmetic(layout):
    pool, seen, unseen = layout
    count = negatives.unseen_count(seen, pool)
    assert count.dtype == jnp.int32 and count.shape == ()
    assert count == len(unseen)


def test_unseen_counts_of_a_batch():
    pool = pool_of(range(1, 6), 6)
    counts = negatives.unseen_counts(
        np.array([[0, 0, 0], [1, 1, 0], [5, 2, 1]], np.int32), pool
    )
    np.testing.assert_array_equal(counts, [5, 4, 2])


@pytest.mark.parametrize("num_negatives", [1, 6])
def test_draws_are_distinct_candidates_then_padding(layout, num_negatives):
    pool, seen, unseen = layout
    drawn = draws(
        negatives.uniform_without_replacement,
        20,
        0,
        seen,
        pool,
        num_negatives=num_negatives,
    )
    size = min(num_negatives, len(unseen))
    for row in drawn.tolist():
        assert len(row) == num_negatives
        assert len(set(row[:size])) == size and set(row[:size]) <= set(unseen)
        assert row[size:] == [0] * (num_negatives - size)


def test_with_replacement_draws_every_candidate_and_nothing_else(layout):
    pool, seen, unseen = layout
    drawn = draws(negatives.uniform_with_replacement, 20, 1, seen, pool, shape=(50, 2))
    assert drawn.shape == (20, 50, 2) and drawn.dtype == np.int32
    assert set(np.unique(drawn)) == set(unseen or [0])


@pytest.mark.parametrize("num_negatives", [1, 3, 6])
def test_complement_leaves_that_many_unseen_items(layout, num_negatives):
    pool, seen, unseen = layout
    if len(unseen) < num_negatives:
        return  # check_enough refuses it
    drawn = draws(
        negatives.uniform_complement, 20, 0, seen, pool, num_negatives=num_negatives
    )
    for row in drawn.tolist():
        left = set(POOL_IDS) - set(row)
        assert len(row) == len(set(row)) == len(POOL_IDS) - num_negatives
        assert set(row) <= set(POOL_IDS)
        assert len(left) == num_negatives and left <= set(unseen)


def test_complement_fills_a_larger_size_with_padding():
    pool, seen = pool_of(POOL_IDS, 14), seen_array([5, 0, 5, 8, 0, 0, 0])
    options = {"num_negatives": 3}
    exact = draws(negatives.uniform_complement, 20, 0, seen, pool, **options)
    padded = draws(negatives.uniform_complement, 20, 0, seen, pool, **options, size=8)
    np.testing.assert_array_equal(padded[:, :3], exact)
    np.testing.assert_array_equal(padded[:, 3:], 0)


def test_long_history_at_the_size_of_a_real_catalogue():
    rng = np.random.default_rng(0)
    pool_ids = np.sort(rng.permutation(np.arange(1, 3417))[:3400])
    pool = pool_of(pool_ids, 3417)
    seen = np.zeros(2300, int)
    seen[rng.permutation(2300)[:2200]] = rng.integers(1, 3417, 2200)
    unseen = set(pool_ids.tolist()) - set(seen.tolist())
    num_negatives = 1000
    options = {"num_negatives": num_negatives}
    seen = seen_array(seen)
    [drawn] = draws(negatives.uniform_without_replacement, 1, 0, seen, pool, **options)
    drawn = set(drawn.tolist())
    assert len(drawn) == num_negatives and drawn <= unseen
    [excluded] = draws(negatives.uniform_complement, 1, 0, seen, pool, **options)
    left = set(pool_ids.tolist()) - set(excluded.tolist())
    assert len(left) == num_negatives and left <= unseen
    assert negatives.unseen_count(seen, pool) == len(unseen)


# The permutation.


def test_swap_or_not_is_a_permutation_of_every_size():
    sizes = [*range(1, 65), 1000, 3216, 54341, 2**16, 2**16 + 1]
    x = jnp.arange(max(sizes), dtype=jnp.int32)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    permute = jax.jit(jax.vmap(negatives.swap_or_not, in_axes=(0, None, 0)))
    images = np.asarray(permute(keys, x, seen_array(sizes)))
    for m, image in zip(sizes, images, strict=True):
        np.testing.assert_array_equal(np.sort(image[:m]), np.arange(m))


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_swap_or_not_gives_every_order_equally_often(m):
    keys = jax.random.split(jax.random.key(m), 100_000)
    x = jnp.arange(5, dtype=jnp.int32)
    image = jitted(negatives.swap_or_not)(keys, x, m)[:, :m]
    assert_equally_likely(map_to_tuples(image), list(itertools.permutations(range(m))))


def map_to_tuples(rows):
    return list(map(tuple, np.asarray(rows).tolist()))


# The laws.

SMALL_POOL, SMALL_SEEN = [1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14], [7, 0, 4, 7]
SMALL_UNSEEN = [1, 2, 3, 5, 6, 8, 10, 11, 12, 13, 14]  # m = 11


@functools.cache
def small_subsets(sampler, num_negatives):
    pool, seen = pool_of(SMALL_POOL, 16), seen_array(SMALL_SEEN)
    drawn = draws(sampler, 40_000, 12, seen, pool, num_negatives=num_negatives)
    return kept(pool, drawn) if sampler is negatives.uniform_complement else drawn


@pytest.mark.parametrize("num_negatives", [4, 8])
@pytest.mark.parametrize(
    "sampler", [negatives.uniform_without_replacement, negatives.uniform_complement]
)
def test_every_subset_is_equally_likely(sampler, num_negatives):
    drawn = small_subsets(sampler, num_negatives)
    subsets = list(itertools.combinations(SMALL_UNSEEN, num_negatives))
    assert_equally_likely(map_to_tuples(np.sort(drawn, axis=1)), subsets)


def test_every_ordered_prefix_is_equally_likely():
    drawn = small_subsets(negatives.uniform_without_replacement, 8)
    for size in (1, 2, 3):
        outcomes = list(itertools.permutations(SMALL_UNSEEN, size))
        assert_equally_likely(map_to_tuples(drawn[:, :size]), outcomes)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_negatives", [4, 8])
@pytest.mark.parametrize(
    "sampler", [negatives.uniform_without_replacement, negatives.uniform_complement]
)
def test_items_and_pairs_are_included_equally_often(sampler, num_negatives, order):
    drawn = small_subsets(sampler, num_negatives)
    assert_inclusions_uniform(drawn, SMALL_UNSEEN, order)


def test_items_and_pairs_of_a_larger_pool_are_included_equally_often():
    pool, seen = pool_of(range(1, 44), 44), seen_array([9, 0, 21, 40, 9])
    unseen = sorted(set(range(1, 44)) - {9, 21, 40})
    drawn = draws(
        negatives.uniform_without_replacement, 20_000, 4, seen, pool, num_negatives=15
    )
    for order in (1, 2):
        assert_inclusions_uniform(drawn, unseen, order)


@pytest.mark.parametrize("num_negatives", [300, 3000])
def test_number_drawn_from_a_fixed_set_is_hypergeometric(num_negatives):
    rng = np.random.default_rng(0)
    seen = np.sort(rng.permutation(np.arange(1, 3417))[:201])
    unseen = np.setdiff1d(np.arange(1, 3417), seen)
    fixed_sets = [
        unseen[[700, 1000]],
        unseen[: len(unseen) // 10],
        unseen[unseen % 2 == 1],
        rng.permutation(unseen)[: len(unseen) // 2],
    ]
    is_fixed_4V = jnp.asarray([np.isin(np.arange(3417), each) for each in fixed_sets])
    pool = pool_of(range(1, 3417), 3417)

    def number_drawn(key, seen_L, pool):
        options = {"num_negatives": num_negatives}
        if num_negatives < len(unseen) / 2:
            drawn = negatives.uniform_without_replacement(key, seen_L, pool, **options)
            return is_fixed_4V[:, drawn].sum(axis=1)
        excluded = negatives.uniform_complement(key, seen_L, pool, **options)
        return is_fixed_4V.sum(axis=1) - is_fixed_4V[:, excluded].sum(axis=1)

    numbers = draws(number_drawn, 4000, 5, seen_array(seen), pool)
    for observed, fixed in zip(numbers.T, fixed_sets, strict=True):
        law = stats.hypergeom(len(unseen), len(fixed), num_negatives)
        edges = np.unique(law.ppf([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1]).astype(int))
        probability = np.diff(law.cdf(edges), prepend=0)
        count = np.bincount(np.searchsorted(edges, observed), minlength=len(edges))
        expected = len(observed) * probability
        assert expected.min() >= 5, "too few draws for the limit law"
        statistic = ((count - expected) ** 2 / expected).sum()
        assert statistic < stats.chi2.isf(ALPHA, len(edges) - 1)


def test_with_replacement_positions_are_uniform_and_independent():
    pool, seen = pool_of(SMALL_POOL, 16), seen_array(SMALL_SEEN)
    drawn = draws(
        negatives.uniform_with_replacement, 10_000, 6, seen, pool, shape=(25, 2)
    )
    assert_equally_likely(drawn.ravel().tolist(), SMALL_UNSEEN)
    pairs = list(itertools.product(SMALL_UNSEEN, repeat=2))
    for pair in (drawn[:, 0], drawn[:, 24], drawn[:, [0, 1], 0]):
        assert_equally_likely(map_to_tuples(pair), pairs)


@pytest.mark.parametrize(
    "sampler", [negatives.uniform_without_replacement, negatives.uniform_complement]
)
def test_sequences_of_a_batch_are_independent(sampler):
    smallest = small_subsets(sampler, 4).min(axis=1)
    place = np.searchsorted(SMALL_UNSEEN, smallest)
    # The smallest of 4 is at place x when the other 3 are among the 10 - x after it.
    law = np.array([math.comb(10 - x, 3) for x in range(8)]) / math.comb(11, 4)
    law = np.append(law[:5], law[5:].sum())  # the rare last three as one
    place = np.minimum(place, 5)
    table_66 = np.zeros((6, 6))
    np.add.at(table_66, (place[0::2], place[1::2]), 1)
    expected = table_66.sum() * np.outer(law, law)
    assert expected.min() >= 5, "too few draws for the limit law"
    statistic = ((table_66 - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.isf(ALPHA, 35)


# Purity, and the boundary.

SAMPLERS = {  # of equal shapes, so that the eager operations compile once
    "with": functools.partial(negatives.uniform_with_replacement, shape=(10,)),
    "without": functools.partial(
        negatives.uniform_without_replacement, num_negatives=10
    ),
    "complement": functools.partial(negatives.uniform_complement, num_negatives=10),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_same_key_same_draw_and_jit_of_vmap_equals_eager_loop(sampler):
    pool = pool_of(range(1, 21), 32)
    seen_BL = np.random.default_rng(0).integers(0, 32, (5, 10)).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), 5)
    batched = jax.jit(jax.vmap(sampler, (0, 0, None)))
    loop = [
        np.asarray(sampler(key, jnp.asarray(seen), pool))
        for key, seen in zip(keys, seen_BL, strict=True)
    ]
    np.testing.assert_array_equal(batched(keys, seen_BL, pool), loop)
    drawn = np.asarray(batched(keys, np.zeros_like(seen_BL), pool))
    assert len(set(map_to_tuples(drawn))) == 5, "different keys, same draw"


@pytest.mark.parametrize(
    ("is_allowed", "message"),
    [
        ([1, 0, 2], "one bool for each row"),
        ([[False, True]], "one bool for each row"),
        ([True, True], "never row 0"),
        ([False, False], "got 0 allowed rows"),
    ],
)
def test_make_pool_refuses_what_is_no_pool(is_allowed, message):
    with pytest.raises(InputError, match=message):
        negatives.make_pool(np.array(is_allowed))


@pytest.mark.parametrize("num_negatives", [0, 6])
@pytest.mark.parametrize(
    "sampler", [negatives.uniform_without_replacement, negatives.uniform_complement]
)
def test_samplers_refuse_a_number_outside_the_pool(sampler, num_negatives):
    pool = pool_of(range(1, 6), 6)
    with pytest.raises(InputError, match=rf"in 1\.\.5.*got {num_negatives}"):
        sampler(jax.random.key(0), seen_array([1]), pool, num_negatives=num_negatives)


def test_complement_refuses_a_size_that_cannot_hold_it():
    pool = pool_of(range(1, 6), 6)
    with pytest.raises(InputError, match="size must be at least 3"):
        negatives.uniform_complement(
            jax.random.key(0), seen_array([1]), pool, num_negatives=2, size=2
        )


def test_check_enough_names_the_user_with_the_fewest_candidates():
    negatives.check_enough([3, 5], ["ann", "bob"], 3)
    with pytest.raises(InputError) as error:
        negatives.check_enough(np.array([9, 2, 3]), ["ann", "bob", "cy"], 4)
    message = str(error.value)
    assert "num_negatives=4, but user bob has 2 candidates" in message
    assert "2 of 3 users" in message
    assert "Lower num_negatives" in message
