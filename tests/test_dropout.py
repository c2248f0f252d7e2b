"""The law of dropout, and the hash behind it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import dropout
from jaxrec.errors import InputError


def mixed(x: int) -> int:
    """lowbias32 on Python's integers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_entries_are_hashed_indices():
    """An entry stays where the hash of its index reaches rate * 2^32."""
    key = jax.random.key(5)
    first, second = map(int, jax.random.bits(key, (2,), jnp.uint32))
    drawn_30 = [mixed(mixed((i + first) % 2**32) ^ second) for i in range(30)]
    expected = (np.array(drawn_30) >= 0.25 * 2**32).reshape(5, 6)
    np.testing.assert_array_equal(dropout.keep_mask(key, (5, 6), 0.25), expected)


def test_the_hash_is_one_to_one_and_every_bit_counts():
    rng = np.random.default_rng(0)
    size = 20_000
    x_N = jnp.asarray(rng.choice(2**32, size, replace=False).astype(np.uint32))
    mixed_N = dropout.mixed(x_N)
    assert len(np.unique(mixed_N)) == size
    for i in range(32):
        changed_N = np.asarray(mixed_N ^ dropout.mixed(x_N ^ jnp.uint32(1 << i)))
        for j in range(32):
            share = ((changed_N >> j) & 1).mean()
            assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(size), (i, j)


NUM_KEYS, SIZE, VARIANCE = 200, 2**15, 0.1 * 0.9


@jax.jit
@jax.vmap
def kept_of_words(first, second):
    """Which entries stay at the rate .1, less their chance, by the words of a key."""
    drawn_N = dropout.words(first, second, jnp.arange(SIZE, dtype=jnp.uint32))
    return (drawn_N >= round(0.1 * 2**32)).astype(jnp.float32) - 0.9


@pytest.fixture(scope="module")
def words_2K():
    return np.random.default_rng(3).integers(0, 2**32, (2, NUM_KEYS), dtype=np.uint32)


@pytest.fixture(scope="module")
def kept_KN(words_2K):
    return np.asarray(kept_of_words(*words_2K), float)


def assert_normal(score_K):
    """Mean 0 and variance 1 of standard scores, by five of their standard errors."""
    assert abs(score_K.mean()) < 5 / math.sqrt(len(score_K))
    assert abs((score_K**2).mean() - 1) < 5 * math.sqrt(2 / len(score_K))


@pytest.mark.parametrize("lag", [1, 2, 16, 64, 136, 200, 4096, 12_800])
def test_entries_far_and_near_are_independent(kept_KN, lag):
    product_K = (kept_KN[:, :-lag] * kept_KN[:, lag:]).sum(axis=1)
    assert_normal(product_K / math.sqrt(SIZE - lag) / VARIANCE)


@pytest.mark.parametrize("width", [2, 8, 64, 200, 1024])
def test_sums_of_neighbours_vary_as_much_as_they_should(kept_KN, width):
    """The dispersion of sums of `width` entries is that of a binomial."""
    cut_KN = kept_KN[:, : SIZE // width * width]
    sum_KW = cut_KN.reshape(NUM_KEYS, -1, width).sum(axis=2)
    num_sums, variance = sum_KW.shape[1], width * VARIANCE
    fourth = 3 * variance**2 + variance * (1 - 6 * VARIANCE)
    excess_K = (sum_KW**2).sum(axis=1) - num_sums * variance
    assert_normal(excess_K / math.sqrt(num_sums * (fourth - variance**2)))


@pytest.mark.parametrize(
    "change",
    [(1 << 5, 0), (1 << 20, 0), (0, 1), (0, 1 << 16), (0, 1 << 31), (7, 9)],
    ids=str,
)
def test_masks_of_related_keys_are_independent(words_2K, kept_KN, change):
    """A bit of a word makes another mask, as another key does."""
    other_2K = words_2K ^ np.array(change, np.uint32)[:, None]
    product_K = (kept_KN * np.asarray(kept_of_words(*other_2K))).sum(axis=1)
    assert_normal(product_K / math.sqrt(SIZE) / VARIANCE)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_rate_mean_and_values(rate):
    size = 2**16 + 1
    x = jnp.linspace(1.0, 2.0, size, dtype=jnp.float32)
    y = np.asarray(dropout.dropout(jax.random.key(1), x, rate))
    is_kept = y != 0
    chance = 1 - round(rate * 2**32) / 2**32
    np.testing.assert_allclose(y[is_kept], np.asarray(x)[is_kept] / chance, rtol=3e-7)
    # Five standard errors of a binomial count, and of the mean of its scaled terms.
    stderr = math.sqrt(chance * (1 - chance) / size)
    assert abs(is_kept.mean() - chance) < 5 * stderr
    assert abs((y / x).mean() - 1) < 5 * stderr / chance
    # Neighbours are independent. The variance of a mean over pairs (i, i + lag), each
    # of which overlaps with two others:
    variance = (chance**2 * (1 - chance**2) + 2 * chance**3 * (1 - chance)) / size
    for lag in (1, 2, 3):
        both = (is_kept[:-lag] & is_kept[lag:]).mean()
        assert abs(both - chance**2) < 5 * math.sqrt(variance)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 3), (2, 2), ()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_shape_and_dtype(shape, dtype):
    x = jnp.ones(shape, dtype)
    y = dropout.dropout(jax.random.key(0), x, 0.5)
    assert y.shape == shape and y.dtype == x.dtype
    assert set(np.unique(y.astype(jnp.float32))) <= {0.0, 2.0}
    np.testing.assert_array_equal(dropout.dropout(jax.random.key(0), x, 0.0), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_rate_must_be_below_one(rate):
    with pytest.raises(InputError, match=f"got {rate}"):
        dropout.dropout(jax.random.key(0), jnp.ones(3), rate)
