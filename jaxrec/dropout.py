"""Dropout, and the random bits behind it. Pure functions.

`jax.random.bernoulli` writes its random words to memory, one pass for every few rounds
of the generator; on a CPU that takes longer than the attention it is for. Here each
entry runs the same generator on its own index, in registers: one loop, which XLA fuses
with what uses the mask. benchmarks/cpu_choices.py has the times.
"""

import math

import jax
import jax.numpy as jnp

from jaxrec.errors import InputError

Array = jax.Array

# Threefry-2x32 of 20 rounds: its rotations, and the constant of its key schedule.
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_ROUNDS = 20


def keep_mask(key: Array, shape: tuple[int, ...], rate: float) -> Array:
    """bool `shape`: False with probability round(rate 2^32) / 2^32, independently.

    Args:
      key: consumed.
      shape: of less than 2^32 entries.
      rate: in [0, 1).

    Raises:
      InputError: the rate is out of range.
    """
    threshold = _threshold(rate)
    size = math.prod(shape)
    assert size < 2**32, "the index of an entry must fit the generator's counter"
    # Any kind of key gives two words.
    words_2 = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, size).reshape(shape)
    draws, _ = threefry_2x32(words_2[0], words_2[1], index, jnp.zeros_like(index))
    return draws >= jnp.uint32(threshold)


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


def threefry_2x32(
    key_0: Array, key_1: Array, word_0: Array, word_1: Array
) -> tuple[Array, Array]:
    """Encrypts two uint32 words by a key of two, entry by entry, without a loop.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    schedule = (key_0, key_1, key_0 ^ key_1 ^ jnp.uint32(_PARITY))
    word_0, word_1 = word_0 + key_0, word_1 + key_1
    for i in range(_ROUNDS):
        rotation = jnp.uint32(_ROTATIONS[i % 8])
        word_0 = word_0 + word_1
        word_1 = (word_1 << rotation) | (word_1 >> (jnp.uint32(32) - rotation))
        word_1 = word_1 ^ word_0
        if i % 4 == 3:
            turn = i // 4 + 1
            word_0 = word_0 + schedule[turn % 3]
            word_1 = word_1 + schedule[(turn + 1) % 3] + jnp.uint32(turn)
    return word_0, word_1


def _threshold(rate: float) -> int:
    threshold = round(rate * 2**32)
    if not 0 <= threshold < 2**32:
        raise InputError(f"a dropout rate must be in [0, 1): got {rate}.")
    return threshold
