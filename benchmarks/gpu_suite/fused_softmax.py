"""`jaxrec.softmax.loss_sum` by the kernel of `score_kernel`: for Hopper, and a trial.

Two calls: the positions against the table give the normalisers and, all but divided by
them, the gradients of the hidden states; the table against the positions gives its own
gradients. Four matmuls, as `softmax` has for a table of many tiles, and no score or
exponential in memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu_suite import score_kernel
from benchmarks.gpu_suite.score_kernel import Side
from jaxrec import normaliser
from jaxrec.score_tiles import Positions

Array = jax.Array
# Scores that are looked through at once, where the highest have to be found; of so many
# positions at the least (but what remains in the end), since with one alone XLA would
# make the table float32.
SCORES, FEWEST = 2**20, 16


class _How(NamedTuple):
    """products: of bfloat16 that a score is the sum of. interpret: of `loss_sum`."""

    products: int
    interpret: Any


def loss_sum(
    hidden_ND: Array,
    table_VD: Array,
    positions: Positions,
    allowed_V: Array,
    excluded_BX: None,
    *,
    dtype: str = "bfloat16",
    score_dtype: str = "float32",
    is_dense: bool = True,
    interpret: Any = None,
) -> Array:
    """As `softmax.loss_sum`, but that nothing is excluded.

    Args:
      dtype: what the matmuls of the gradients multiply; they have bfloat16 alone.
      score_dtype: with "float32" a score is the sum of three products of bfloat16, off
        by 2^-14 of the sum of its terms' sizes at the most; with "bfloat16" one product
        of hidden states and a table rounded to it, off by 2^-7.
      is_dense: is not asked: all positions are gone through.
      interpret: `mosaic_gpu.InterpretGPUParams`, to run without a GPU.
    """
    del is_dense
    assert excluded_BX is None, "excluded items are not among what this can do"
    assert dtype == "bfloat16", dtype
    how = _How({"float32": 3, "bfloat16": 1}[score_dtype], interpret)
    return _loss_sum(hidden_ND, table_VD, positions, allowed_V, how)


def _forward(hidden_ND, table_VD, positions: Positions, allowed_V, how: _How):
    width = hidden_ND.shape[1]
    left_NK, right_VK = (_factors(x, how.products) for x in (hidden_ND, table_VD))
    padded = left_NK.shape[1] // (1 if how.products == 1 else 2)
    options = {"width": padded, "interpret": how.interpret}
    target_N, weight_N = positions.target_N, positions.weight_N
    offset_V = jnp.where(allowed_V, 0.0, -jnp.inf)
    own_N = _score(left_NK, right_VK[target_N], padded)

    # Rounded, a score may be above the bound of the others by so much of it.
    bound_N = (1 + 2.0**-6) * normaliser.bound(hidden_ND, table_VD)
    highest = partial(_highest, left_NK, right_VK, allowed_V, padded)
    shift_N = normaliser.shift(own_N, bound_N, highest)

    # All but the target, which competes even where its row may not: what is left of a
    # probability of nearly one is then a sum and no difference.
    rows = Side(right_VK, offset_V, jnp.arange(len(right_VK), dtype=jnp.int32))
    others_N, weighted_ND = score_kernel.sums(
        Side(left_NK, -shift_N, target_N), rows, **options
    )
    total_N = others_N + jnp.exp(own_N - shift_N)
    loss_N = jnp.log(total_N) + (shift_N - own_N)
    loss = jnp.where(weight_N > 0, weight_N * loss_N, 0).sum()

    scale_N = weight_N / total_N
    owed_N = scale_N * others_N
    row_ND = right_VK[target_N, :width].astype(jnp.float32)
    hidden_grad_ND = scale_N[:, None] * weighted_ND[:, :width]
    hidden_grad_ND -= owed_N[:, None] * row_ND
    log_scale_N = jnp.log(jnp.maximum(scale_N, 0)) - shift_N
    table_grad_VD = score_kernel.weighted_sums(
        rows, Side(left_NK, log_scale_N, target_N), **options
    )
    own_grad_ND = owed_N[:, None] * left_NK[:, :width].astype(jnp.float32)
    table_grad_VD = table_grad_VD[:, :width].at[target_N].add(-own_grad_ND)
    return loss, (hidden_grad_ND, table_grad_VD)


def _backward(how, gradients, cotangent):
    del how
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None, None


def _value(*arguments) -> Array:
    return _forward(*arguments)[0]


_loss_sum = jax.custom_vjp(_value, nondiff_argnums=(4,))
_loss_sum.defvjp(_forward, _backward)


def _factors(x: Array, products: int) -> Array:
    """x rounded to bfloat16, its width filled up to pieces; and for three products what
    was rounded away."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % score_kernel.PIECE)))
    # Not converted there and back, which XLA may leave out.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    halves = [high] if products == 1 else [high, x - high]
    return jnp.concatenate(halves, axis=-1).astype(jnp.bfloat16)


def _score(left_NK: Array, right_NK: Array, width: int) -> Array:
    """Of each row of left with its own of right, as the kernel has them but for the
    order of their sums."""
    left_NK, right_NK = (x.astype(jnp.float32) for x in (left_NK, right_NK))
    high_ND, low_ND = left_NK[:, :width], left_NK[:, width:]
    score_N = (high_ND * right_NK[:, :width]).sum(-1)
    if left_NK.shape[1] > width:
        score_N += (high_ND * right_NK[:, width:]).sum(-1)
        score_N += (low_ND * right_NK[:, :width]).sum(-1)
    return score_N


def _highest(left_NK: Array, right_VK: Array, allowed_V: Array, width: int) -> Array:
    """The highest score of each position, only where a target may be far below it."""
    wide = {"preferred_element_type": jnp.float32}
    high_VD, low_VD = right_VK[:, :width], right_VK[:, width:]

    def of_one(left_K: Array) -> Array:
        score_V = jnp.dot(high_VD, left_K[:width], **wide)
        if len(left_K) > width:
            score_V += jnp.dot(low_VD, left_K[:width], **wide)
            score_V += jnp.dot(high_VD, left_K[width:], **wide)
        return jnp.where(allowed_V, score_V, -jnp.inf).max()

    at_once = min(len(left_NK), max(FEWEST, SCORES // len(right_VK)))
    return jax.lax.map(of_one, left_NK, batch_size=at_once)
