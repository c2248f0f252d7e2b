"""Attention within the segments of packed rows, with a backward pass of its own.

    attend(q, k, v) = drop(softmax(q k^T / sqrt(K), over one's own segment)) v

Autodiff would keep the scores, the probabilities and the mask of the dropout, and pass
over each of them again and again; on a CPU those passes cost more than the matmuls.
Here the exponentials are kept, before and after the dropout, and nothing else of that
size: a query's normaliser divides its row of the output, and of the output's gradient.
The softmax is undone with sum_m p dp = <out, dout>, as FlashAttention does it. Causal
attention is cut into blocks of queries that never look at the keys after them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import backend, dropout

Array = jax.Array

# Queries of a block, about, where attention is causal: three blocks save a third of the
# scores, many make the matmuls thin. benchmarks/cpu_choices.py. A GPU, which begins
# every operation of a block anew, has fewer: benchmarks/gpu_programs.py counts them.
_QUERIES, _GPU_QUERIES = 64, 512
# Blocks begin at multiples of this: matmuls whose sizes are none are slower.
_MULTIPLE = 8


def attend(
    query_RTHK: Array,
    key_RTHK: Array,
    value_RTHK: Array,
    segment_RT: Array,
    *,
    is_causal: bool,
    rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """What each position gathers from its own segment, and from no later position.

    Args:
      query_RTHK, key_RTHK, value_RTHK: float, of one dtype. The softmax is float32.
      segment_RT: int32; positions attend to those of an equal number. Padding is 0 and
        sees only padding.
      is_causal: positions attend to themselves and those before.
      rate: of dropout on the probabilities; 0 without a key.
      dropout_key: consumed.

    Returns:
      [R, T, H, K], of the dtype of the values.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.1; Dao et al., FlashAttention,
      NeurIPS 2022, for the backward pass.
    """
    length, width = query_RTHK.shape[1], query_RTHK.shape[3]
    query_RHTK, key_RHTK, value_RHTK = (
        x.swapaxes(1, 2) for x in (query_RTHK, key_RTHK, value_RTHK)
    )
    query_RHTK = query_RHTK * jnp.asarray(width**-0.5, query_RHTK.dtype)
    blocks = []
    for i, (first, last) in enumerate(query_blocks(length, is_causal=is_causal)):
        num_keys = last if is_causal else length
        mask_R1TM = (
            segment_RT[:, None, first:last, None]
            == (segment_RT[:, None, None, :num_keys])
        )
        if is_causal:
            mask_R1TM &= jnp.tri(last - first, num_keys, first, dtype=bool)[None, None]
        block = _attend(
            query_RHTK[:, :, first:last],
            key_RHTK[:, :, :num_keys],
            value_RHTK[:, :, :num_keys],
            mask_R1TM,
            None if dropout_key is None else jax.random.fold_in(dropout_key, i),
            0.0 if dropout_key is None else rate,
        )
        blocks.append(block)
    return jnp.concatenate(blocks, axis=2).swapaxes(1, 2)


def query_blocks(length: int, *, is_causal: bool) -> list[tuple[int, int]]:
    """Ranges of positions, each a block of queries; nearly equal, one if not causal.

    On a CPU:
    >>> query_blocks(200, is_causal=True), query_blocks(200, is_causal=False)
    ([(0, 64), (64, 136), (136, 200)], [(0, 200)])
    """
    queries = _QUERIES if backend.is_cpu() else _GPU_QUERIES
    num_blocks = max(1, round(length / queries)) if is_causal else 1
    units = length / num_blocks / _MULTIPLE
    begins = [round(i * units) * _MULTIPLE for i in range(num_blocks)]
    return list(zip(begins, [*begins[1:], length], strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query_RHTK, key_RHMK, value_RHMK, mask_R1TM, dropout_key, rate: float):
    return _forward(query_RHTK, key_RHMK, value_RHMK, mask_R1TM, dropout_key, rate)[0]


def _forward(query_RHTK, key_RHMK, value_RHMK, mask_R1TM, dropout_key, rate: float):
    dtype = value_RHMK.dtype
    score_RHTM = _dot("rhtk,rhmk->rhtm", query_RHTK, key_RHMK)
    score_RHTM = jnp.where(mask_R1TM, score_RHTM, jnp.finfo(jnp.float32).min)
    exp_RHTM = jnp.exp(score_RHTM - score_RHTM.max(axis=-1, keepdims=True))
    # A barrier, here and below: XLA would compute an operand of two matmuls twice.
    exp_RHTM = jax.lax.optimization_barrier(exp_RHTM.astype(dtype))
    kept_RHTM = exp_RHTM
    if rate > 0:
        keep_RHTM = dropout.keep_mask(dropout_key, exp_RHTM.shape, rate)
        kept_RHTM = jnp.where(keep_RHTM, exp_RHTM, jnp.zeros((), dtype))
        kept_RHTM = jax.lax.optimization_barrier(kept_RHTM)
    # The sum is of the rounded exponentials, so that the probabilities sum to one.
    inverse_RHT1 = 1 / exp_RHTM.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    inverse_RHT1 = jax.lax.optimization_barrier(inverse_RHT1)
    out_RHTK = _dot("rhtm,rhmk->rhtk", kept_RHTM, value_RHMK)
    out_RHTK = (out_RHTK * (dropout.keep_scale(rate) * inverse_RHT1)).astype(dtype)
    saved = (
        query_RHTK,
        key_RHMK,
        value_RHMK,
        exp_RHTM,
        kept_RHTM,
        inverse_RHT1,
        out_RHTK,
    )
    return out_RHTK, saved


def _backward(rate: float, saved, grad_RHTK):
    query_RHTK, key_RHMK, value_RHMK, exp_RHTM, kept_RHTM, inverse_RHT1, out_RHTK = (
        saved
    )
    dtype = value_RHMK.dtype
    # What a query's exponentials are divided by divides the gradient of its output.
    grad_RHTK = grad_RHTK.astype(jnp.float32) * inverse_RHT1
    mean_RHT1 = (grad_RHTK * out_RHTK).sum(axis=-1, keepdims=True)
    grad_RHTK = jax.lax.optimization_barrier(
        (dropout.keep_scale(rate) * grad_RHTK).astype(dtype)
    )
    value_grad_RHMK = _dot("rhtm,rhtk->rhmk", kept_RHTM, grad_RHTK)
    kept_grad_RHTM = _dot("rhtk,rhmk->rhtm", grad_RHTK, value_RHMK)
    score_grad_RHTM = kept_RHTM * kept_grad_RHTM - exp_RHTM * mean_RHT1
    score_grad_RHTM = jax.lax.optimization_barrier(score_grad_RHTM.astype(dtype))
    query_grad_RHTK = _dot("rhtm,rhmk->rhtk", score_grad_RHTM, key_RHMK)
    key_grad_RHMK = _dot("rhtm,rhtk->rhmk", score_grad_RHTM, query_RHTK)
    return (
        query_grad_RHTK.astype(dtype),
        key_grad_RHMK.astype(dtype),
        value_grad_RHMK.astype(dtype),
        None,
        None,
    )


_attend.defvjp(_forward, _backward)


def _dot(spec: str, a: Array, b: Array) -> Any:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
