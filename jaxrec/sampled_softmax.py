"""Softmax cross-entropy against sets of negatives, a few sets at a time.

The rows of the table that a set holds are gathered, used for the loss and for all its
gradients, and forgotten: S x D floats for a set, never B x S x D, and scores of a block
of positions, never L x S. The gradient of the table is one array, added to in place,
where autodiff of a scan would add a whole table for every turn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import backend
from jaxrec.score_tiles import rounded

Array = jax.Array

# Sets at a time, and positions of each: enough for the matmuls, few enough for the
# cache. Sets with nearly equally many positions go together.
_SETS, _POSITIONS = 4, 32
# A GPU begins every operation anew, which takes microseconds. By arithmetic, not
# measured yet: 32 sets of 3000 negatives of width 64 are 25 MB.
_GPU_SETS, _GPU_POSITIONS = 32, 64


class Sets(NamedTuple):
    """G sets of negatives, each with the positions that compete with it.

    count_G: int32, positions of a set; the first of M in the arrays below.
    target_GM: int32, row of the table; weight_GM: float32, 0 where there is no target.
    negative_GS: int32, rows of the table.
    sequence_GM: int32, which of a set's sequences a position is of.
    dropped_GCX: int32, places in the set that do not compete with the positions of its
      C-th sequence; out of range for padding. None if all do.
    """

    count_G: Array
    target_GM: Array
    weight_GM: Array
    negative_GS: Array
    sequence_GM: Array
    dropped_GCX: Array | None


def loss_sum(
    hidden_GMD: Array, table_VD: Array, sets: Sets, *, dtype: str = "float32"
) -> Array:
    """sum w (logsumexp(s_target, s_j for the negatives j) - s_target), in nats.

    Args:
      hidden_GMD: float32; table_VD: float32; sets: see `Sets`.
      dtype: "float32" or "bfloat16", of what the matmuls of the gradients multiply; the
        loss itself is float32.

    Returns:
      A float32 scalar, with gradients to hidden_GMD and table_VD.
    """
    assert dtype in ("float32", "bfloat16"), dtype
    return _loss_sum(hidden_GMD, table_VD, sets, dtype)


def _value(hidden_GMD, table_VD, sets, dtype: str) -> Array:
    return _over_sets(hidden_GMD, table_VD, sets, dtype)[0]


def _forward(hidden_GMD, table_VD, sets, dtype: str):
    total, *gradients = _over_sets(hidden_GMD, table_VD, sets, dtype)
    return total, gradients


def _backward(dtype: str, gradients, cotangent):
    del dtype
    hidden_grad_GMD, table_grad_VD = gradients
    return cotangent * hidden_grad_GMD, cotangent * table_grad_VD, None


_loss_sum = jax.custom_vjp(_value, nondiff_argnums=(3,))
_loss_sum.defvjp(_forward, _backward)


def _over_sets(hidden_GMD: Array, table_VD: Array, sets: Sets, dtype: str):
    """(sum, dhidden, dtable): a few sets at a time, the largest first."""
    num_sets, most, _ = hidden_GMD.shape
    size, block = _SETS, _POSITIONS
    if not backend.is_cpu():
        size, block = _GPU_SETS, _GPU_POSITIONS
    size, block = min(size, num_sets), min(block, most)
    # Fillers read past the end: sets without a position, whose gradients are dropped.
    order_G = jnp.pad(
        jnp.argsort(-sets.count_G), (0, -num_sets % size), constant_values=num_sets
    )

    def body(i, carry):
        total, hidden_grad_GMD, table_grad_VD = carry
        order_g = jax.lax.dynamic_slice_in_dim(order_G, i * size, size)

        def take(x_G):
            return x_G.at[order_g].get(mode="fill", fill_value=0)

        def take_padded(x_GM):
            axes = [(0, 0), (0, -most % block)] + [(0, 0)] * (x_GM.ndim - 2)
            return jnp.pad(take(x_GM), axes)

        chosen = Sets(
            take(sets.count_G),
            take_padded(sets.target_GM),
            take_padded(sets.weight_GM),
            take(sets.negative_GS),
            take_padded(sets.sequence_GM),
            None if sets.dropped_GCX is None else take(sets.dropped_GCX),
        )
        some, hidden_grad_gMD, own_grad_gMD, negative_grad_gSD = _few_sets(
            take_padded(hidden_GMD), table_VD, chosen, block, dtype
        )
        table_grad_VD = table_grad_VD.at[chosen.target_GM].add(own_grad_gMD)
        table_grad_VD = table_grad_VD.at[chosen.negative_GS].add(negative_grad_gSD)
        hidden_grad_GMD = hidden_grad_GMD.at[order_g].set(
            hidden_grad_gMD[:, :most], mode="drop"
        )
        return total + some, hidden_grad_GMD, table_grad_VD

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros_like(hidden_GMD),
        jnp.zeros_like(table_VD),
    )
    return jax.lax.fori_loop(0, len(order_G) // size, body, start)


def _few_sets(hidden_GMD, table_VD, sets: Sets, block: int, dtype: str):
    """(sum, dhidden, d of the targets' rows, d of the negatives' rows)."""
    negative_GSD = table_VD[sets.negative_GS]
    rows_GSD = negative_GSD.astype(dtype)
    own_GMD = table_VD[sets.target_GM]
    competes_GCS = _competes(sets)
    num_blocks = (sets.count_G.max() + block - 1) // block

    def body(i, carry):
        total, hidden_grad_GMD, own_grad_GMD, negative_grad_GSD = carry

        def cut(x_GM):
            return jax.lax.dynamic_slice_in_dim(x_GM, i * block, block, axis=1)

        def put(x_GMD, x_GPD):
            return jax.lax.dynamic_update_slice_in_dim(x_GMD, x_GPD, i * block, axis=1)

        hidden_GPD, own_GPD = cut(hidden_GMD), cut(own_GMD)
        weight_GP = cut(sets.weight_GM)
        own_score_GP1 = (hidden_GPD * own_GPD).sum(axis=-1, keepdims=True)
        # log(e^t + sum e^s) - t = softplus(logsumexp(s - t)), which is exact whatever
        # the scores have in common.
        margin_GPS = jnp.einsum("gpd,gsd->gps", hidden_GPD, negative_GSD)
        margin_GPS -= own_score_GP1
        if competes_GCS is not None:
            set_G1 = jnp.arange(len(competes_GCS))[:, None]
            competes_GPS = competes_GCS[set_G1, cut(sets.sequence_GM)]
            margin_GPS = jnp.where(competes_GPS, margin_GPS, -jnp.inf)
        highest_GP1 = margin_GPS.max(axis=-1, keepdims=True)
        # All may be dropped, and the difference of two infinities is NaN.
        highest_GP1 = jnp.maximum(highest_GP1, jnp.finfo(jnp.float32).min)
        unnormalised_GPS = jnp.exp(margin_GPS - highest_GP1)
        sum_GP1 = unnormalised_GPS.sum(axis=-1, keepdims=True)
        others_GP = (highest_GP1 + jnp.log(sum_GP1))[..., 0]
        loss_GP = jax.nn.softplus(others_GP)
        total += jnp.where(weight_GP > 0, weight_GP * loss_GP, 0).sum()
        lost_GP1 = (weight_GP * jax.nn.sigmoid(others_GP))[..., None]
        grad_GPS = unnormalised_GPS * (lost_GP1 / jnp.where(sum_GP1 > 0, sum_GP1, 1))
        if dtype != "float32":
            grad_GPS = jax.lax.optimization_barrier(rounded(grad_GPS, dtype))
        hidden_grad_GPD = _dot("gps,gsd->gpd", grad_GPS, rows_GSD)
        hidden_grad_GPD -= lost_GP1 * own_GPD
        negative_grad_GSD += _dot("gps,gpd->gsd", grad_GPS, hidden_GPD.astype(dtype))
        return (
            total,
            put(hidden_grad_GMD, hidden_grad_GPD),
            put(own_grad_GMD, -lost_GP1 * hidden_GPD),
            negative_grad_GSD,
        )

    zero, zero_GMD = jnp.zeros((), jnp.float32), jnp.zeros_like(hidden_GMD)
    start = (zero, zero_GMD, zero_GMD, jnp.zeros_like(negative_GSD))
    return jax.lax.fori_loop(0, num_blocks, body, start)


def _dot(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _competes(sets: Sets) -> Array | None:
    """bool [G, C, S]: which of a set's items compete with each of its sequences."""
    if sets.dropped_GCX is None:
        return None
    num_sets, num_sequences, _ = sets.dropped_GCX.shape
    shape = (num_sets, num_sequences, sets.negative_GS.shape[1])
    set_G11 = jnp.arange(num_sets)[:, None, None]
    sequence_1C1 = jnp.arange(num_sequences)[None, :, None]
    competes_GCS = jnp.ones(shape, bool)
    return competes_GCS.at[set_G11, sequence_1C1, sets.dropped_GCX].set(
        False, mode="drop"
    )
