"""Indices to take rows by, in memory. Pure functions."""

import jax
import jax.numpy as jnp

Array = jax.Array


def inverse(place_M: Array, size: int) -> Array:
    """Which entry of `place_M` is each of 0..size-1; M where none is.

    It is also how an index is best made whose rows are long: XLA would compute an
    expression again for every number of a row that is taken by it, where the result of
    a scatter is in memory.

    Args:
      place_M: int32, distinct but for what is out of range.

    Returns:
      int32 [size].

    >>> inverse(jnp.int32([2, 9, 0]), 3).tolist()
    [2, 3, 0]
    """
    source_M = jnp.arange(len(place_M), dtype=jnp.int32)
    inverse_N = jnp.full((size,), len(place_M), jnp.int32)
    return inverse_N.at[place_M].set(source_M, mode="drop")
