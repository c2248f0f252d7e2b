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
from jaxrec.score_tiles import rounded, rounded_as_factor

Array = jax.Array

# Sets at a time, positions of each at the least and at the most, and rows of all sets:
# enough for the matmuls, few enough for the cache. Sets of nearly equally many
# positions go together.
_SETS, _FEWEST, _MOST, _ROWS = 4, 8, 32, 14_000
# A GPU begins every operation anew, which takes microseconds. By arithmetic, not
# measured yet: 32 sets of 3000 negatives of width 64 are 25 MB, of 10,000 82.
_GPU_SETS, _GPU_FEWEST, _GPU_MOST, _GPU_ROWS = 32, 16, 64, 320_000


def tile_shape(num_positions: int, num_sets: int, num_places: int) -> tuple[int, int]:
    """Sets at a time, and positions of each: as many as a set has in the mean.

    More would be computed for nothing by most sets, and fewer are thin matmuls. In a
    cloze task, where few of the positions that are counted here have a target, it is
    more.

    Args:
      num_positions: that may have a target.
      num_places: S, items of a set.

    On a CPU, of Beauty and ML-1M with a set for each of 128 sequences, and of Beauty
    with one for every 8:
    >>> tile_shape(800, 128, 3000), tile_shape(14_000, 128, 3000)
    ((4, 8), (4, 32))
    >>> tile_shape(800, 16, 6000)
    (2, 32)
    """
    size, fewest, most, rows = _SETS, _FEWEST, _MOST, _ROWS
    if not backend.is_cpu():
        size, fewest, most, rows = _GPU_SETS, _GPU_FEWEST, _GPU_MOST, _GPU_ROWS
    mean = num_positions // num_sets // fewest * fewest
    block = min(max(mean, fewest), most, num_positions)
    return min(size, num_sets, max(1, rows // num_places)), block


class Sets(NamedTuple):
    """G sets of negatives, and the N positions that compete with them, set by set.

    first_G, count_G: int32, where in N a set's positions begin, and how many they are.
    negative_GS: int32, rows of the table.
    target_N: int32, row of the table; weight_N: float32, 0 where there is no target.
    sequence_N: int32, which of its set's C sequences a position is of.
    dropped_GCX: int32, places in the set that do not compete with the positions of its
      C-th sequence; out of range for padding. None if all do.
    reach_GC2: int32, the first place that does, and the one after the last; or None.
    """

    first_G: Array
    count_G: Array
    negative_GS: Array
    target_N: Array
    weight_N: Array
    sequence_N: Array
    dropped_GCX: Array | None = None
    reach_GC2: Array | None = None


def loss_sum(
    hidden_ND: Array,
    table_VD: Array,
    sets: Sets,
    *,
    dtype: str = "float32",
    score_dtype: str = "float32",
) -> Array:
    """sum w (logsumexp(s_target, s_j for the negatives j) - s_target), in nats.

    Args:
      hidden_ND: float32; table_VD: float32; sets: see `Sets`.
      dtype: "float32" or "bfloat16", of what the matmuls of the gradients multiply.
      score_dtype: as in `softmax.loss_sum`. With bfloat16 half as many bytes are
        gathered, of a table in bfloat16 that is made for it. The loss is float32.

    Returns:
      A float32 scalar, with gradients to hidden_ND and table_VD.
    """
    assert {dtype, score_dtype} <= {"float32", "bfloat16"}, (dtype, score_dtype)
    return _loss_sum(hidden_ND, table_VD, sets, dtype, score_dtype)


def _value(hidden_ND, table_VD, sets, dtype: str, score_dtype: str) -> Array:
    return _over_sets(hidden_ND, table_VD, sets, dtype, score_dtype)[0]


def _forward(hidden_ND, table_VD, sets, dtype: str, score_dtype: str):
    total, *gradients = _over_sets(hidden_ND, table_VD, sets, dtype, score_dtype)
    return total, gradients


def _backward(dtype: str, score_dtype: str, gradients, cotangent):
    del dtype, score_dtype
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None


_loss_sum = jax.custom_vjp(_value, nondiff_argnums=(3, 4))
_loss_sum.defvjp(_forward, _backward)


class _Problem(NamedTuple):
    """What does not change from one set to the next.

    own_score_N: of the targets.
    block: positions of a set at a time.
    dtype: of the gradients' matmuls.
    """

    hidden_ND: Array
    own_score_N: Array
    sets: Sets
    block: int
    dtype: str


class _Few(NamedTuple):
    """The g sets that are worked on."""

    first_g: Array
    count_g: Array
    negative_gSD: Array
    competes_gCS: Array | None


class _Sums(NamedTuple):
    """What is added up, or put in its place, set by set.

    lost_N: w (1 - the target's probability), minus the derivative by its score.
    hidden_grad_ND: by the scores of the negatives alone.
    """

    total: Array
    lost_N: Array
    hidden_grad_ND: Array


def _over_sets(hidden_ND, table_VD, sets: Sets, dtype: str, score_dtype: str):
    """(sum, dhidden, dtable): a few sets at a time, the largest first."""
    num_sets = len(sets.count_G)
    size, block = tile_shape(len(hidden_ND), *sets.negative_GS.shape)
    hidden_ND = rounded_as_factor(hidden_ND, score_dtype)
    row_VD = table_VD.astype(score_dtype)
    own_ND = rounded_as_factor(table_VD[sets.target_N], score_dtype)
    own_score_N = (hidden_ND * own_ND).sum(axis=-1)
    problem = _Problem(hidden_ND, own_score_N, sets, block, dtype)
    # Fillers read past the end: sets without a position, whose gradients are 0.
    order_G = jnp.pad(
        jnp.argsort(-sets.count_G), (0, -num_sets % size), constant_values=num_sets
    )

    def body(i, carry):
        sums, table_grad_VD = carry
        order_g = jax.lax.dynamic_slice_in_dim(order_G, i * size, size)

        def take(x_G):
            return x_G.at[order_g].get(mode="fill", fill_value=0)

        negative_gS = take(sets.negative_GS)
        few = _Few(
            take(sets.first_G),
            take(sets.count_G),
            row_VD[negative_gS],
            _competes(
                negative_gS.shape[1],
                *jax.tree.map(take, (sets.dropped_GCX, sets.reach_GC2)),
            ),
        )
        sums, negative_grad_gSD = _few_sets(problem, few, sums)
        return sums, table_grad_VD.at[negative_gS].add(negative_grad_gSD)

    start = _Sums(
        jnp.zeros((), jnp.float32), jnp.zeros_like(own_score_N), jnp.zeros_like(own_ND)
    )
    sums, table_grad_VD = jax.lax.fori_loop(
        0, len(order_G) // size, body, (start, jnp.zeros_like(table_VD))
    )
    lost_N1 = sums.lost_N[:, None]
    hidden_grad_ND = sums.hidden_grad_ND - lost_N1 * own_ND
    table_grad_VD = table_grad_VD.at[sets.target_N].add(-lost_N1 * hidden_ND)
    return sums.total, hidden_grad_ND, table_grad_VD


def _few_sets(problem: _Problem, few: _Few, sums: _Sums) -> tuple[_Sums, Array]:
    """The sums with the sets' positions, and d of the negatives' rows."""
    block, dtype = problem.block, problem.dtype
    rows_gSD = few.negative_gSD.astype(dtype)
    set_g1 = jnp.arange(len(few.first_g))[:, None]

    def body(i, carry):
        (total, lost_N, hidden_grad_ND), negative_grad_gSD = carry
        place_1P = i * block + jnp.arange(block, dtype=jnp.int32)[None]
        is_position_gP = place_1P < few.count_g[:, None]
        index_gP = few.first_g[:, None] + place_1P
        index_gP = jnp.where(is_position_gP, index_gP, len(lost_N))

        def take(x_N):
            return x_N.at[index_gP].get(mode="fill", fill_value=0)

        def put(x_N, x_gP):
            return x_N.at[index_gP].set(x_gP, mode="drop")

        hidden_gPD, weight_gP = take(problem.hidden_ND), take(problem.sets.weight_N)
        # log(e^t + sum e^s) - t = softplus(logsumexp(s - t)), which is exact whatever
        # the scores have in common.
        factor_gPD = hidden_gPD.astype(few.negative_gSD.dtype)
        margin_gPS = _dot("gpd,gsd->gps", factor_gPD, few.negative_gSD)
        margin_gPS -= take(problem.own_score_N)[..., None]
        if few.competes_gCS is not None:
            competes_gPS = few.competes_gCS[set_g1, take(problem.sets.sequence_N)]
            margin_gPS = jnp.where(competes_gPS, margin_gPS, -jnp.inf)
        highest_gP1 = margin_gPS.max(axis=-1, keepdims=True)
        # All may be dropped, and the difference of two infinities is NaN.
        highest_gP1 = jnp.maximum(highest_gP1, jnp.finfo(jnp.float32).min)
        unnormalised_gPS = jnp.exp(margin_gPS - highest_gP1)
        sum_gP1 = unnormalised_gPS.sum(axis=-1, keepdims=True)
        others_gP = (highest_gP1 + jnp.log(sum_gP1))[..., 0]
        loss_gP = jax.nn.softplus(others_gP)
        total += jnp.where(weight_gP > 0, weight_gP * loss_gP, 0).sum()
        lost_gP = weight_gP * jax.nn.sigmoid(others_gP)
        scale_gP1 = lost_gP[..., None] / jnp.where(sum_gP1 > 0, sum_gP1, 1)
        grad_gPS = unnormalised_gPS * scale_gP1
        if dtype != "float32":
            grad_gPS = jax.lax.optimization_barrier(rounded(grad_gPS, dtype))
        hidden_grad_gPD = _dot("gps,gsd->gpd", grad_gPS, rows_gSD)
        negative_grad_gSD += _dot("gps,gpd->gsd", grad_gPS, hidden_gPD.astype(dtype))
        return (
            _Sums(total, put(lost_N, lost_gP), put(hidden_grad_ND, hidden_grad_gPD)),
            negative_grad_gSD,
        )

    num_blocks = (few.count_g.max() + block - 1) // block
    start = (sums, jnp.zeros(few.negative_gSD.shape, jnp.float32))
    return jax.lax.fori_loop(0, num_blocks, body, start)


def _dot(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _competes(
    num_places: int, dropped_gCX: Array | None, reach_gC2: Array | None
) -> Array | None:
    """bool [g, C, S]: which of a set's items compete with each of its sequences."""
    if reach_gC2 is not None:
        first_gC1, end_gC1 = reach_gC2[..., :1], reach_gC2[..., 1:]
        place_11S = jnp.arange(num_places, dtype=jnp.int32)[None, None]
        competes_gCS = (first_gC1 <= place_11S) & (place_11S < end_gC1)
    elif dropped_gCX is not None:
        competes_gCS = jnp.ones((*dropped_gCX.shape[:2], num_places), bool)
    else:
        return None
    if dropped_gCX is None:
        return competes_gCS
    num_sets, num_sequences, _ = dropped_gCX.shape
    set_g11 = jnp.arange(num_sets)[:, None, None]
    sequence_1C1 = jnp.arange(num_sequences)[None, :, None]
    return competes_gCS.at[set_g11, sequence_1C1, dropped_gCX].set(False, mode="drop")
