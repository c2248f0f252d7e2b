"""The law of dropout, and its generator against the library's own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from jaxrec import dropout
from jaxrec.errors import InputError


def test_threefry_is_that_of_jax():
    key_2 = np.array([0x13198A2E, 0x03707344], np.uint32)
    words_2N = np.random.default_rng(0).integers(0, 2**32, (2, 50), dtype=np.uint32)
    expected = threefry_2x32(jnp.asarray(key_2), jnp.asarray(words_2N.reshape(-1)))
    drawn = dropout.threefry_2x32(*map(jnp.asarray, (*key_2, *words_2N)))
    np.testing.assert_array_equal(jnp.concatenate(drawn), expected)


def test_entries_are_encrypted_indices():
    """An entry stays where the first word of (index, 0) reaches rate * 2^32."""
    key = jax.random.key(5)
    words_2 = jax.random.bits(key, (2,), jnp.uint32)
    counters = jnp.concatenate([jnp.arange(30, dtype=jnp.uint32), jnp.zeros(30, "u4")])
    first_N = threefry_2x32(words_2, counters)[:30]
    expected = (np.asarray(first_N) >= 0.25 * 2**32).reshape(5, 6)
    np.testing.assert_array_equal(dropout.keep_mask(key, (5, 6), 0.25), expected)


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
