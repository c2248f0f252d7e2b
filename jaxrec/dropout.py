"""Dropout, and the random bits behind it. Pure functions.

`jax.random.bernoulli` writes its random words to memory, one pass for every few rounds
of Threefry; on a CPU that takes longer than the attention it is for. Here each entry
hashes its own index with two random words of the key, in registers: one loop, which XLA
fuses with what uses the mask; benchmarks/cpu_choices.py measures either. A hash
is enough for what is dropped; what is drawn (negatives, hidden items) jax.random draws.
"""

import math

import jax
import jax.numpy as jnp

from jaxrec.errors import InputError

Array = jax.Array


def keep_mask(key: Array, shape: tuple[int, ...], rate: float) -> Array:
    """bool `shape`: False with probability round(rate 2^32) / 2^32.

    An entry stays where hash(hash(index + k0) ^ k1) reaches rate 2^32, of two random
    words k0 and k1. No dependence shows between entries near or far, in sums of many,
    or between keys (tests/test_dropout.py).

    Args:
      key: consumed.
      shape: of less than 2^32 entries.
      rate: in [0, 1).

    Raises:
      InputError: the rate is out of range.
    """
    threshold = _threshold(rate)
    size = math.prod(shape)
    assert size < 2**32, "the index of an entry must fit a word"
    # Any kind of key gives two words.
    words_2 = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return words(words_2[0], words_2[1], index) >= jnp.uint32(threshold)


def keep_scale(rate: float) -> float:
    """1 / P(an entry stays), at the resolution of `keep_mask`."""
    return 2**32 / (2**32 - _threshold(rate))


def dropout(key: Array, x: Array, rate: float) -> Array:
    """x where `keep_mask`, scaled to the same mean, and 0 elsewhere.

    Args:
      key: consumed.
      x: any shape and float dtype.
      rate: in [0, 1).

    Returns:
      x's shape and dtype.
    """
    scale = jnp.asarray(keep_scale(rate), x.dtype)
    keep = keep_mask(key, x.shape, rate)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def words(first: Array, second: Array, index: Array) -> Array:
    """hash(hash(index + first) ^ second): a random word for each index, uint32 all.

    Args:
      first, second: scalars, of the key.
      index: any shape.
    """
    return mixed(mixed(index + first) ^ second)


def mixed(x: Array) -> Array:
    """A permutation of uint32 in which any bit of x flips every bit half of the time.

    Source: Wellons, "Prospecting for Hash Functions", 2018: lowbias32.
    """
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return x ^ (x >> jnp.uint32(16))


def _threshold(rate: float) -> int:
    threshold = round(rate * 2**32)
    if not 0 <= threshold < 2**32:
        raise InputError(f"a dropout rate must be in [0, 1): got {rate}.")
    return threshold
