"""Softmax cross-entropy against each sequence's own negatives, a few sequences at once.

The rows of the table that a sequence competes with are gathered, used for the loss and
for all its gradients, and forgotten: S x D floats for a sequence, never B x S x D, and
scores of a block of positions, never L x S. The gradient of the table is one array,
added to in place, where autodiff of a scan would add a whole table for every turn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Sequences at a time, and positions of each: enough for the matmuls, few enough for the
# cache. Windows are mostly far shorter than the longest one, so sequences of nearly
# equal length go together and stop after their last block.
_SEQUENCES = 4
_POSITIONS = 32


class Sequences(NamedTuple):
    """B sequences, each with the negatives that its positions share.

    target_BL: int32, row of the table; weight_BL: float32, 0 where there is no target.
    negative_BS: int32, rows of the table.
    """

    target_BL: Array
    weight_BL: Array
    negative_BS: Array


@jax.custom_vjp
def loss_sum(hidden_BLD: Array, table_VD: Array, sequences: Sequences) -> Array:
    """sum w (logsumexp(s_target, s_j for the negatives j) - s_target), in nats.

    Args:
      hidden_BLD: float32; table_VD: float32; sequences: see `Sequences`.

    Returns:
      A float32 scalar, with gradients to hidden_BLD and table_VD.
    """
    return _over_sequences(hidden_BLD, table_VD, sequences)[0]


def _forward(hidden_BLD, table_VD, sequences):
    total, *gradients = _over_sequences(hidden_BLD, table_VD, sequences)
    return total, gradients


def _backward(gradients, cotangent):
    hidden_grad_BLD, table_grad_VD = gradients
    return cotangent * hidden_grad_BLD, cotangent * table_grad_VD, None


loss_sum.defvjp(_forward, _backward)


def _over_sequences(hidden_BLD: Array, table_VD: Array, sequences: Sequences):
    """(sum, dhidden, dtable): groups of sequences, longest first."""
    num_sequences, length, _ = hidden_BLD.shape
    group = min(_SEQUENCES, num_sequences)
    block = min(_POSITIONS, length)
    padding = -length % block
    position_1L = jnp.arange(1, length + 1, dtype=jnp.int32)[None]
    length_B = jnp.where(sequences.weight_BL > 0, position_1L, 0).max(axis=1)
    # Fillers read past the end: sequences of weight 0, whose gradients are dropped.
    order_B = jnp.pad(
        jnp.argsort(-length_B),
        (0, -num_sequences % group),
        constant_values=num_sequences,
    )

    def body(i, carry):
        total, hidden_grad_BLD, table_grad_VD = carry
        order_G = jax.lax.dynamic_slice_in_dim(order_B, i * group, group)

        def take(x_BL):
            x_GL = x_BL.at[order_G].get(mode="fill", fill_value=0)
            axes = [(0, 0), (0, padding)] + [(0, 0)] * (x_GL.ndim - 2)
            return jnp.pad(x_GL, axes)

        negative_GS = sequences.negative_BS.at[order_G].get(mode="fill", fill_value=0)
        group_total, hidden_grad_GLD, own_grad_GLD, negative_grad_GSD = _group(
            take(hidden_BLD),
            table_VD,
            Sequences(
                take(sequences.target_BL), take(sequences.weight_BL), negative_GS
            ),
            (length_B.at[order_G].get(mode="fill", fill_value=0).max() - 1) // block
            + 1,
            block,
        )
        target_GL = take(sequences.target_BL)
        table_grad_VD = table_grad_VD.at[target_GL].add(own_grad_GLD)
        table_grad_VD = table_grad_VD.at[negative_GS].add(negative_grad_GSD)
        hidden_grad_BLD = hidden_grad_BLD.at[order_G].set(
            hidden_grad_GLD[:, :length], mode="drop"
        )
        return total + group_total, hidden_grad_BLD, table_grad_VD

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros_like(hidden_BLD),
        jnp.zeros_like(table_VD),
    )
    return jax.lax.fori_loop(0, len(order_B) // group, body, start)


def _group(hidden_GLD, table_VD, sequences: Sequences, num_blocks, block: int):
    """(sum, dhidden, dtarget's row, dnegatives' rows) of G sequences."""
    negative_GSD = table_VD[sequences.negative_BS]
    own_GLD = table_VD[sequences.target_BL]

    def body(i, carry):
        total, hidden_grad_GLD, own_grad_GLD, negative_grad_GSD = carry

        def cut(x_GL):
            return jax.lax.dynamic_slice_in_dim(x_GL, i * block, block, axis=1)

        hidden_GPD, own_GPD = cut(hidden_GLD), cut(own_GLD)
        weight_GP = cut(sequences.weight_BL)
        own_score_GP = (hidden_GPD * own_GPD).sum(axis=-1)
        score_GPS = jnp.einsum("gpd,gsd->gps", hidden_GPD, negative_GSD)
        # log(e^t + sum e^s) - t = softplus(logsumexp(s - t)), which is exact whatever
        # the scores have in common.
        margin_GPS = score_GPS - own_score_GP[..., None]
        others_GP = jax.nn.logsumexp(margin_GPS, axis=-1)
        total += jnp.where(
            weight_GP > 0, weight_GP * jax.nn.softplus(others_GP), 0
        ).sum()
        lost_GP = weight_GP * jax.nn.sigmoid(others_GP)
        grad_GPS = lost_GP[..., None] * jnp.exp(margin_GPS - others_GP[..., None])
        hidden_grad_GPD = jnp.einsum("gps,gsd->gpd", grad_GPS, negative_GSD)
        hidden_grad_GPD -= lost_GP[..., None] * own_GPD
        negative_grad_GSD += jnp.einsum("gps,gpd->gsd", grad_GPS, hidden_GPD)

        def put(x_GLD, x_GPD):
            return jax.lax.dynamic_update_slice_in_dim(x_GLD, x_GPD, i * block, axis=1)

        return (
            total,
            put(hidden_grad_GLD, hidden_grad_GPD),
            put(own_grad_GLD, -lost_GP[..., None] * hidden_GPD),
            negative_grad_GSD,
        )

    zero_GLD = jnp.zeros_like(hidden_GLD)
    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero_GLD, zero_GLD, jnp.zeros_like(negative_GSD))
    return jax.lax.fori_loop(0, num_blocks, body, start)
