"""Binary cross-entropy against negatives of a position's own, a block at a time.

Blocks end with the last position that has a target: padding costs nothing. The rows of
the table that a block needs are gathered, used for the loss and for all its gradients,
and forgotten. The gradient of the table is one array, added to in place, where autodiff
of a scan would add a whole table for every block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import backend

Array = jax.Array

# Floats of the negatives' rows that a block gathers; and positions of it, at the least
# and, on a CPU, at the most: one block for all of a batch would compute its padding.
_BLOCK_FLOATS, _FEWEST_POSITIONS, _CPU_MOST_POSITIONS = 2**21, 64, 1024


class Positions(NamedTuple):
    """N positions, of which the first `count` have a target.

    target_N: int32, row of the table.
    weight_N: float32, 0 after the first `count`.
    negative_NS: int32, rows of the table.
    """

    target_N: Array
    weight_N: Array
    negative_NS: Array
    count: Array


@jax.custom_vjp
def loss_sum(
    hidden_ND: Array, table_VD: Array, positions: Positions, beta: Array
) -> Array:
    """sum_n w_n (beta softplus(-s_n,target) + sum_j softplus(s_nj)), in nats.

    Args:
      hidden_ND: float32; table_VD: float32; positions: see `Positions`.
      beta: float32 scalar, a constant.

    Returns:
      A float32 scalar, with gradients to hidden_ND and table_VD.
    """
    return _over_blocks(hidden_ND, table_VD, positions, beta)[0]


def _forward(hidden_ND, table_VD, positions, beta):
    total, *gradients = _over_blocks(hidden_ND, table_VD, positions, beta)
    return total, gradients


def _backward(gradients, cotangent):
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None, None


loss_sum.defvjp(_forward, _backward)


def _over_blocks(hidden_ND, table_VD, positions: Positions, beta):
    """(sum, dhidden, dtable), over the blocks that the positions fill."""
    num_positions, width = hidden_ND.shape
    num_negatives = positions.negative_NS.shape[1]
    size = max(_FEWEST_POSITIONS, _BLOCK_FLOATS // (num_negatives * width))
    if backend.is_cpu():
        size = min(size, _CPU_MOST_POSITIONS)
    size = min(size, num_positions)
    padding = -num_positions % size
    arrays = (hidden_ND, *positions[:3])
    padded = [
        jnp.pad(x_N, ((0, padding),) + ((0, 0),) * (x_N.ndim - 1)) for x_N in arrays
    ]
    one_block = functools.partial(_block, table_VD, beta)

    def body(i, carry):
        total, hidden_grad_ND, table_grad_VD = carry
        block = [jax.lax.dynamic_slice_in_dim(x_N, i * size, size) for x_N in padded]
        some, hidden_grad_nD, own_grad_nD, negative_grad_nSD = one_block(*block)
        _, target_n, _, negative_nS = block
        hidden_grad_ND = jax.lax.dynamic_update_slice_in_dim(
            hidden_grad_ND, hidden_grad_nD, i * size, 0
        )
        table_grad_VD = table_grad_VD.at[target_n].add(own_grad_nD)
        table_grad_VD = table_grad_VD.at[negative_nS].add(negative_grad_nSD)
        return total + some, hidden_grad_ND, table_grad_VD

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros_like(padded[0]),
        jnp.zeros_like(table_VD),
    )
    # An only block is no loop, before which a GPU's host would wait for the count.
    is_only = num_positions <= size
    num_blocks = 1 if is_only else (positions.count + size - 1) // size
    total, hidden_grad_ND, table_grad_VD = jax.lax.fori_loop(0, num_blocks, body, start)
    return total, hidden_grad_ND[:num_positions], table_grad_VD


def _block(table_VD, beta, hidden_nD, target_n, weight_n, negative_nS):
    """(sum, dhidden, d of the targets' rows, d of the negatives' rows)."""
    own_nD, negative_nSD = table_VD[target_n], table_VD[negative_nS]
    own_n = (hidden_nD * own_nD).sum(axis=-1)
    score_nS = jnp.einsum("nd,nsd->ns", hidden_nD, negative_nSD)
    loss_n = beta * jax.nn.softplus(-own_n) + jax.nn.softplus(score_nS).sum(axis=-1)
    total = jnp.where(weight_n > 0, weight_n * loss_n, 0).sum()
    own_grad_n1 = (-beta * weight_n * jax.nn.sigmoid(-own_n))[:, None]
    grad_nS = weight_n[:, None] * jax.nn.sigmoid(score_nS)
    hidden_grad_nD = own_grad_n1 * own_nD
    hidden_grad_nD += jnp.einsum("ns,nsd->nd", grad_nS, negative_nSD)
    negative_grad_nSD = grad_nS[..., None] * hidden_nD[:, None]
    return total, hidden_grad_nD, own_grad_n1 * hidden_nD, negative_grad_nSD
