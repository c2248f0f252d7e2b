"""Indices to take rows by, in memory. Pure functions."""

import jax
import jax.numpy as jnp

from jaxrec import backend

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


def take_rows(x_ND: Array, index_M: Array) -> Array:
    """x_ND[index_M], 0 where an index is out of range: [M, D].

    No row is read twice, so the gradient is a gather too, which a CPU does many times
    faster than the scatter-add that autodiff would make.

    Args:
      index_M: int32, distinct but for what is out of range.

    >>> take_rows(jnp.float32([[1], [2], [3]]), jnp.int32([2, 0, 9])).ravel().tolist()
    [3.0, 1.0, 0.0]
    """
    inverse_N = inverse(index_M, len(x_ND))
    if backend.is_cpu():
        # Again, but in memory; a GPU would launch three kernels for it.
        index_M = inverse(inverse_N, len(index_M))
    return _take_rows(x_ND, index_M, inverse_N)


@jax.custom_vjp
def _take_rows(x_ND: Array, index_M: Array, inverse_N: Array) -> Array:
    del inverse_N
    return x_ND.at[index_M].get(mode="fill", fill_value=0)


def _take_rows_forward(x_ND, index_M, inverse_N):
    return _take_rows(x_ND, index_M, inverse_N), inverse_N


def _take_rows_backward(inverse_N, grad_MD):
    return grad_MD.at[inverse_N].get(mode="fill", fill_value=0), None, None


_take_rows.defvjp(_take_rows_forward, _take_rows_backward)
