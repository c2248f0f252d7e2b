"""Softmax cross-entropy against a whole table of items, without the scores in memory.

Scores exist one tile at a time, of some positions and some rows of the table. The
gradients are formed while the loss is: in the backward pass they are only scaled.

A catalogue small enough is one tile wide, and three matmuls do: the scores, and both
gradients from them. A larger one takes several tiles, which are computed twice, once
for the normaliser and once for the gradients; the fourth matmul costs less than adding
the table's gradient up once for every few positions, as tiles one table wide would.
Source of that trade: benchmarks/cpu_choices.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Scores held at a time: 2^21 float32 (8 MiB). On a CPU fewer make the matmuls too thin
# and more fall out of the cache.
TILE_SCORES = 2**21
# Positions of a tile at the least where the table is cut, and those below which it is.
_CUT_POSITIONS = 256


class Positions(NamedTuple):
    """N positions, of which the first `count` have a target.

    target_N: int32, row of the table.
    weight_N: float32, 0 after the first `count`.
    sequence_N: int32, the row of `excluded_BX` that holds for the position. Positions
      of one sequence are neighbours.
    """

    target_N: Array
    weight_N: Array
    sequence_N: Array
    count: Array


def tile_shape(num_rows: int, num_positions: int) -> tuple[int, int]:
    """Positions and table rows of a tile, from the shapes alone.

    >>> tile_shape(3_417, 25_600), tile_shape(54_543, 6_400)
    ((608, 3417), (256, 8192))
    """
    most = -(-num_positions // 8) * 8
    size = TILE_SCORES // num_rows // 8 * 8
    if size >= _CUT_POSITIONS:
        return min(size, most), num_rows
    size = min(_CUT_POSITIONS, most)
    return size, min(num_rows, max(8, TILE_SCORES // size))


@jax.custom_vjp
def loss_sum(
    hidden_ND: Array,
    table_VD: Array,
    positions: Positions,
    allowed_V: Array,
    excluded_BX: Array | None,
) -> Array:
    """sum_n w_n (logsumexp_{v in C_n} s_nv - s_n,target), s = hidden table^T, in nats.

    C_n is the allowed rows less the excluded ones of n's sequence, and the target.

    Args:
      hidden_ND: float32; table_VD: float32; positions: see `Positions`.
      allowed_V: bool.
      excluded_BX: int32 rows of the table, 0-padded, or None.

    Returns:
      A float32 scalar, with gradients to hidden_ND and table_VD.
    """
    arguments = (hidden_ND, table_VD, positions, allowed_V, excluded_BX)
    return _over_positions(*arguments, with_gradients=False)[0]


def _forward(*arguments):
    total, *gradients = _over_positions(*arguments, with_gradients=True)
    return total, gradients


def _backward(gradients, cotangent):
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None, None, None


loss_sum.defvjp(_forward, _backward)


class _Chunk(NamedTuple):
    """n positions with their hidden states, and the distinct sequences they are of.

    local_n: int32, the place of a position's sequence in excluded_GX.
    """

    hidden_nD: Array
    target_n: Array
    weight_n: Array
    local_n: Array | None
    excluded_GX: Array | None


def _over_positions(
    hidden_ND, table_VD, positions, allowed_V, excluded_BX, *, with_gradients: bool
):
    """Loop over as many chunks as the positions fill: (sum, dhidden, dtable)."""
    num_positions, width = hidden_ND.shape
    size, tile = tile_shape(len(table_VD), num_positions)
    padding = -num_positions % size
    hidden_ND = jnp.pad(hidden_ND, ((0, padding), (0, 0)))
    target_N = jnp.pad(positions.target_N, (0, padding))
    weight_N = jnp.pad(positions.weight_N, (0, padding))
    sequence_N = jnp.pad(positions.sequence_N, (0, padding), mode="edge")
    chunk_loss = _whole if tile == len(table_VD) else _tiled

    def body(i, carry):
        total, hidden_grad_ND, table_grad_VD = carry
        hidden_nD, target_n, weight_n, sequence_n = (
            jax.lax.dynamic_slice_in_dim(x, i * size, size)
            for x in (hidden_ND, target_N, weight_N, sequence_N)
        )
        excluded = _of_chunk(sequence_n, excluded_BX)
        chunk = _Chunk(hidden_nD, target_n, weight_n, *excluded)
        loss_n, hidden_grad_nD, table_grad_VD = chunk_loss(
            chunk, table_VD, allowed_V, table_grad_VD, tile, with_gradients
        )
        total += jnp.where(weight_n > 0, weight_n * loss_n, 0).sum()
        if with_gradients:
            hidden_grad_ND = jax.lax.dynamic_update_slice_in_dim(
                hidden_grad_ND, hidden_grad_nD, i * size, 0
            )
        return total, hidden_grad_ND, table_grad_VD

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros((len(hidden_ND) if with_gradients else 0, width), jnp.float32),
        jnp.zeros_like(table_VD),
    )
    num_chunks = (positions.count + size - 1) // size
    total, hidden_grad_ND, table_grad_VD = jax.lax.fori_loop(0, num_chunks, body, start)
    return total, hidden_grad_ND[:num_positions], table_grad_VD


def _of_chunk(sequence_n: Array, excluded_BX: Array | None):
    """(local_n, excluded_GX) of `_Chunk`."""
    if excluded_BX is None:
        return None, None
    # Positions of a sequence are neighbours: the n of a chunk are of at most n of them,
    # which are counted off, since those without a position may leave wide gaps.
    num_local = min(len(sequence_n), len(excluded_BX))
    local_n = jnp.cumsum(jnp.diff(sequence_n, prepend=sequence_n[:1]) != 0)
    sequence_G = jnp.zeros((num_local,), jnp.int32).at[local_n].set(sequence_n)
    return local_n, excluded_BX[sequence_G]


class _Tile(NamedTuple):
    score_nC: Array
    is_target_nC: Array
    table_CD: Array
    first: Array | int


def _scores(chunk: _Chunk, table_VD, allowed_V, i, size: int) -> _Tile:
    """The i-th tile's scores, -inf where there is no candidate.

    The last tile ends where the table does and may overlap the one before it; a row is
    the business of the first tile that has it.
    """
    num_rows = len(table_VD)
    first = jnp.minimum(i * size, num_rows - size)
    row_C = first + jnp.arange(size, dtype=jnp.int32)
    table_CD = jax.lax.dynamic_slice_in_dim(table_VD, first, size)
    allowed_C = jax.lax.dynamic_slice_in_dim(allowed_V, first, size)
    is_candidate_nC = allowed_C[None]
    if chunk.excluded_GX is not None:
        column_GX = chunk.excluded_GX - first
        # Id 0 pads the list; whether PAD competes is for allowed_V to say.
        is_here_GX = (chunk.excluded_GX > 0) & (column_GX >= 0)
        column_GX = jnp.where(is_here_GX, column_GX, size)
        local_G1 = jnp.arange(len(column_GX))[:, None]
        mask_GC = jnp.broadcast_to(allowed_C[None], (len(column_GX), size))
        mask_GC = mask_GC.at[local_G1, column_GX].set(False, mode="drop")
        is_candidate_nC = mask_GC[chunk.local_n]
    is_target_nC = chunk.target_n[:, None] == row_C[None]
    is_new_1C = (row_C >= i * size)[None]
    score_nC = jnp.dot(chunk.hidden_nD, table_CD.T, preferred_element_type=jnp.float32)
    is_candidate_nC = (is_candidate_nC | is_target_nC) & is_new_1C
    score_nC = jnp.where(is_candidate_nC, score_nC, -jnp.inf)
    return _Tile(score_nC, is_target_nC & is_new_1C, table_CD, first)


def _whole(
    chunk: _Chunk, table_VD, allowed_V, table_grad_VD, size: int, with_gradients: bool
) -> tuple[Array, Any, Array]:
    """(loss_n, dhidden_nD, dtable_VD with the chunk's added) from a single tile."""
    tile = _scores(chunk, table_VD, allowed_V, 0, size)
    highest_n1 = tile.score_nC.max(axis=-1, keepdims=True)
    unnormalised_nC = jnp.exp(tile.score_nC - highest_n1)
    total_n1 = unnormalised_nC.sum(axis=-1, keepdims=True)
    own_n1 = jnp.take_along_axis(tile.score_nC, chunk.target_n[:, None], axis=-1)
    # In this order: a large highest score would swallow the logarithm.
    loss_n1 = jnp.log(total_n1) + (highest_n1 - own_n1)
    if not with_gradients:
        return loss_n1[:, 0], None, table_grad_VD
    weight_n1 = chunk.weight_n[:, None]
    grad_nC = unnormalised_nC * (weight_n1 / total_n1)
    grad_nC -= jnp.where(tile.is_target_nC, weight_n1, 0)
    table_grad_VD += jnp.dot(grad_nC.T, chunk.hidden_nD)
    return loss_n1[:, 0], jnp.dot(grad_nC, table_VD), table_grad_VD


def _tiled(
    chunk: _Chunk, table_VD, allowed_V, table_grad_VD, size: int, with_gradients: bool
) -> tuple[Array, Any, Array]:
    """What `_whole` returns, from tiles that are computed twice."""
    num_tiles = -(-len(table_VD) // size)

    def normalise(i, carry):
        highest_n, total_n, own_n = carry
        score_nC, is_target_nC, *_ = _scores(chunk, table_VD, allowed_V, i, size)
        higher_n = jnp.maximum(highest_n, score_nC.max(axis=-1))
        total_n *= jnp.exp(highest_n - higher_n)
        total_n += jnp.exp(score_nC - higher_n[:, None]).sum(axis=-1)
        own_n += jnp.where(is_target_nC, score_nC, 0).sum(axis=-1)
        return higher_n, total_n, own_n

    # Not -inf, of which the difference of two is NaN: a tile may have no candidate.
    lowest_n = jnp.full_like(chunk.weight_n, jnp.finfo(jnp.float32).min)
    zero_n = jnp.zeros_like(chunk.weight_n)
    start: Any = (lowest_n, zero_n, zero_n)
    highest_n, total_n, own_n = jax.lax.fori_loop(0, num_tiles, normalise, start)
    loss_n = jnp.log(total_n) + (highest_n - own_n)
    if not with_gradients:
        return loss_n, None, table_grad_VD

    scale_n1 = (chunk.weight_n / total_n)[:, None]

    def differentiate(i, carry):
        hidden_grad_nD, table_grad_VD = carry
        score_nC, is_target_nC, table_CD, first = _scores(
            chunk, table_VD, allowed_V, i, size
        )
        grad_nC = jnp.exp(score_nC - highest_n[:, None]) * scale_n1
        grad_nC -= jnp.where(is_target_nC, chunk.weight_n[:, None], 0)
        hidden_grad_nD += jnp.dot(grad_nC, table_CD)
        table_grad_CD = jax.lax.dynamic_slice_in_dim(table_grad_VD, first, size)
        table_grad_CD += jnp.dot(grad_nC.T, chunk.hidden_nD)
        table_grad_VD = jax.lax.dynamic_update_slice_in_dim(
            table_grad_VD, table_grad_CD, first, 0
        )
        return hidden_grad_nD, table_grad_VD

    start = (jnp.zeros_like(chunk.hidden_nD), table_grad_VD)
    return loss_n, *jax.lax.fori_loop(0, num_tiles, differentiate, start)
