"""Scores of some positions against some rows of a table: the tiles of `softmax`.

With the dtype bfloat16 the matmuls of the gradients take operands rounded to it (each
off by 2^-8 of itself at the most) and sum in float32. Scores stay nearly as exact as
float32 makes them: on a CPU they are sums of three products of bfloat16 halves, off by
2^-15 of the sum of their terms' sizes, since a CPU that multiplies bfloat16 does so
faster than float32, some many times. (One that cannot is several times slower.)
Elsewhere they are one product of float32. With the score dtype bfloat16 they are one
product of bfloat16 on every device, of hidden states and rows rounded to it: the exact
scores of those, but for the float32 sum.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import backend

Array = jax.Array


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


class Hidden(NamedTuple):
    """The hidden states of N positions, in the forms that the matmuls take.

    hidden_ND: float32; hidden_DN: float32, the same; left_NK: for scores, see `_left`.
    """

    hidden_ND: Array
    hidden_DN: Array
    left_NK: Array


class Table(NamedTuple):
    """The table and what may compete of it; it is cut into tiles of `tile` rows.

    dtype: of the gradients' matmuls.
    score_dtype: of the scores' matmul; if bfloat16, rows are rounded to it, a tile of
      them at a time.
    """

    table_VD: Array
    allowed_V: Array
    excluded_BX: Array | None
    tile: int
    dtype: str
    score_dtype: str

    @property
    def num_tiles(self) -> int:
        """The last may share rows with the one before it."""
        return -(-len(self.table_VD) // self.tile)

    def rows(self, index_N: Array) -> Array:
        """As the scores have them: float32 [N, D]."""
        return rounded_as_factor(self.table_VD[index_N], self.score_dtype)


class Chunk(NamedTuple):
    """The n positions from `first` on, and the distinct sequences they are of.

    left_nK, hidden_Dn: of `Hidden`.
    local_n: int32, the place of a position's sequence in excluded_GX.
    """

    first: Array
    left_nK: Array
    hidden_Dn: Array
    target_n: Array
    weight_n: Array
    local_n: Array | None
    excluded_GX: Array | None


class Tile(NamedTuple):
    """The rows of the table from `first` on that one tile is about.

    right_KC: for scores, see `_left`.
    rows_CD: for gradients, of the dtype of the matmuls.
    is_new_C: bool. The last tile ends where the table does and may begin before the one
      ahead of it ends; a row that they share has had its turn.
    """

    first: Array
    right_KC: Array
    rows_CD: Array
    allowed_C: Array
    is_new_C: Array


class Scores(NamedTuple):
    """Of a chunk's positions and a tile's rows.

    score_nC: float32, of all rows.
    competes_nC: bool, where a row does with the position; [1, C] where all are alike.
    column_n1: int32, the target's column; any column where it is in another tile.
    is_here_n: bool, where it is in this one.
    """

    score_nC: Array
    competes_nC: Array
    column_n1: Array
    is_here_n: Array

    def highest_n(self) -> Array:
        """Of the rows that compete; -inf if there is none."""
        return jnp.where(self.competes_nC, self.score_nC, -jnp.inf).max(axis=-1)

    def terms(self, shift_n: Array, dtype: str) -> tuple[Array, Array]:
        """exp(score - shift), 0 where a row does not compete, and its sum: [n, C], [n].

        The terms are rounded to the dtype, and the float32 sum is of the rounded ones,
        as the gradients have them: a position's probabilities sum to one.
        """
        exp_nC = jnp.exp(self.score_nC - shift_n[:, None])
        exp_nC = rounded(jnp.where(self.competes_nC, exp_nC, 0), dtype)
        # A barrier, or they are computed again for each matmul. On a GPU the sum is
        # made where they are, so that no kernel more reads them.
        if backend.is_cpu():
            exp_nC = jax.lax.optimization_barrier(exp_nC)
            return exp_nC, exp_nC.sum(axis=-1, dtype=jnp.float32)
        sum_n = exp_nC.sum(axis=-1, dtype=jnp.float32)
        return jax.lax.optimization_barrier((exp_nC, sum_n))

    def less_exp_sum(self, exp_nC: Array, exp_sum_n: Array) -> Array:
        """exp_nC less the sum of all that compete, in the target's column.

        So the difference is made before a matmul rounds its factors, in float32 to TF32
        on a GPU: what is left for a target that has all of the probability is nothing,
        not a rounding. One number a position is written, in place. On a CPU that is a
        loop of the program, 3 to 20% of a step, so nothing is taken off here, and
        `own_gradients_of` says what is to be taken off in the end.
        """
        if backend.is_cpu():
            return exp_nC
        own_n = jnp.take_along_axis(exp_nC, self.column_n1, axis=-1)[:, 0]
        rest_n = rounded(own_n.astype(jnp.float32) - exp_sum_n, exp_nC.dtype.name)
        column_n = jnp.where(self.is_here_n, self.column_n1[:, 0], exp_nC.shape[1])
        return exp_nC.at[jnp.arange(len(exp_nC)), column_n].set(rest_n, mode="drop")

    def own_n(self) -> Array:
        """Of the target, where it is here."""
        return jnp.take_along_axis(self.score_nC, self.column_n1, axis=-1)[:, 0]

    def is_missing_n(self) -> Array:
        """bool, where the target is here and does not compete."""
        mask_nC = jnp.broadcast_to(self.competes_nC, self.score_nC.shape)
        competes_n1 = jnp.take_along_axis(mask_nC, self.column_n1, axis=-1)
        return self.is_here_n & ~competes_n1[:, 0]


def hidden_forms(hidden_ND: Array, dtype: str, score_dtype: str) -> Hidden:
    """The forms that the matmuls take of the hidden states.

    Args:
      hidden_ND: of bfloat16 numbers, if the score dtype is that.
      dtype, score_dtype: as in `Table`.
    """
    return Hidden(hidden_ND, hidden_ND.T, _left(hidden_ND, dtype, score_dtype))


def chunk_of(hidden: Hidden, table: Table, positions: Positions, i, size: int) -> Chunk:
    """The i-th chunk of positions."""
    first = i * size

    def cut(x_N, axis: int = 0):
        return jax.lax.dynamic_slice_in_dim(x_N, first, size, axis)

    excluded = _excluded(cut(positions.sequence_N), table.excluded_BX)
    return Chunk(
        first,
        cut(hidden.left_NK),
        cut(hidden.hidden_DN, axis=1),
        cut(positions.target_N),
        cut(positions.weight_N),
        *excluded,
    )


def _excluded(sequence_n: Array, excluded_BX: Array | None):
    """(local_n, excluded_GX) of `Chunk`."""
    if excluded_BX is None:
        return None, None
    # Positions of a sequence are neighbours: the n of a chunk are of at most n of them,
    # which are counted off, since those without a position may leave wide gaps.
    num_local = min(len(sequence_n), len(excluded_BX))
    local_n = jnp.cumsum(jnp.diff(sequence_n, prepend=sequence_n[:1]) != 0)
    sequence_G = jnp.zeros((num_local,), jnp.int32).at[local_n].set(sequence_n)
    return local_n, excluded_BX[sequence_G]


def tile_of(table: Table, j) -> Tile:
    """The j-th tile of the table."""
    first = jnp.minimum(j * table.tile, len(table.table_VD) - table.tile)
    table_CD, allowed_C = (
        jax.lax.dynamic_slice_in_dim(x, first, table.tile)
        for x in (table.table_VD, table.allowed_V)
    )
    # A barrier, or XLA fuses the slice with a transposition that takes far longer.
    table_CD = jax.lax.optimization_barrier(table_CD)
    table_CD = rounded_as_factor(table_CD, table.score_dtype)
    is_new_C = first + jnp.arange(table.tile, dtype=jnp.int32) >= j * table.tile
    rows_CD = table_CD.astype(table.dtype)
    right_KC = _right(table_CD, table.dtype, table.score_dtype)
    return Tile(first, right_KC, rows_CD, allowed_C, is_new_C)


def scores_of(chunk: Chunk, tile: Tile) -> Scores:
    """Of a chunk against a tile."""
    num_columns = len(tile.allowed_C)
    score_nC = _dot(chunk.left_nK, tile.right_KC)
    column_n = chunk.target_n - tile.first
    is_here_n = (column_n >= 0) & (column_n < num_columns)
    column_n = jnp.where(is_here_n, column_n, 0)
    return Scores(
        score_nC,
        _competes(chunk, tile),
        column_n[:, None],
        is_here_n & tile.is_new_C[column_n],
    )


def _competes(chunk: Chunk, tile: Tile) -> Array:
    """`Scores.competes_nC`."""
    competes_1C = (tile.allowed_C & tile.is_new_C)[None]
    if chunk.excluded_GX is None:
        return competes_1C
    num_columns = len(tile.allowed_C)
    column_GX = chunk.excluded_GX - tile.first
    # Id 0 pads the list; whether PAD competes is for allowed_V to say.
    is_here_GX = (chunk.excluded_GX > 0) & (column_GX >= 0)
    column_GX = jnp.where(is_here_GX, column_GX, num_columns)
    local_G1 = jnp.arange(len(column_GX))[:, None]
    mask_GC = jnp.broadcast_to(competes_1C, (len(column_GX), num_columns))
    mask_GC = mask_GC.at[local_G1, column_GX].set(False, mode="drop")
    return mask_GC[chunk.local_n]


def gradients_of(
    chunk: Chunk, tile: Tile, rest_nC: Array, scale_n: Array
) -> tuple[Array, Array]:
    """sum_v g_nv table_v and sum_n h_n g_nv with g = scale rest.

    Only hidden states are ever transposed: on a CPU transposing the exponentials would
    cost a third of the matmul, and bfloat16 is multiplied as such only where the rows
    of both operands are contiguous.

    Args:
      rest_nC: of `Scores.less_exp_sum`; its dtype is what is multiplied.
      scale_n: float32.

    Returns:
      [n, D] and [D, C], float32.
    """
    hidden_Dn = (scale_n[None] * chunk.hidden_Dn).astype(rest_nC.dtype)
    # Barriers, or where there is but one chunk XLA makes a transposition of what goes
    # in or comes out part of the matmul, and cannot run that with bfloat16.
    hidden_Dn = jax.lax.optimization_barrier(hidden_Dn)
    table_grad_DC = jax.lax.optimization_barrier(_dot(hidden_Dn, rest_nC))
    return scale_n[:, None] * _dot(rest_nC, tile.rows_CD), table_grad_DC


def own_gradients_of(
    hidden: Hidden, table: Table, target_N: Array, exp_sum_N: Array, scale_N: Array
) -> tuple[Array, Array] | None:
    """What `gradients_of` sums for a column of exp_sum scale, the target's: [N, D].

    To the rounding of its factors: what is taken off for a target that has all of the
    probability leaves nothing, not the difference of two roundings. None where
    `Scores.less_exp_sum` has taken it off.

    Args:
      target_N: int32, rows of the table.
      exp_sum_N, scale_N: float32.

    Returns:
      Terms of the hidden states' gradients and of those of the rows `target_N`.
    """
    if not backend.is_cpu():
        return None
    row_ND = rounded_as_factor(table.rows(target_N), table.dtype)
    factor_ND = rounded_as_factor(scale_N[:, None] * hidden.hidden_ND, table.dtype)
    return (exp_sum_N * scale_N)[:, None] * row_ND, exp_sum_N[:, None] * factor_ND


def rounded_as_factor(x: Array, dtype: str) -> Array:
    """x as `x.astype(dtype)` has it, in float32."""
    if dtype == "float32":
        return x
    # Not converted there and back, which XLA may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _left(hidden_ND: Array, dtype: str, score_dtype: str) -> Array:
    """[N, K], whose product with `_right` is the scores."""
    if score_dtype == "bfloat16":
        return hidden_ND.astype(score_dtype)
    if not (dtype == "bfloat16" and backend.is_cpu()):
        return hidden_ND
    high_ND, low_ND = _halves(hidden_ND)
    return jnp.concatenate([high_ND, high_ND, low_ND], axis=-1)


def _right(table_CD: Array, dtype: str, score_dtype: str) -> Array:
    """[K, C]; see `_left`. The product of the low halves is left out."""
    if score_dtype == "bfloat16":
        return table_CD.astype(score_dtype).T
    if not (dtype == "bfloat16" and backend.is_cpu()):
        return table_CD.T
    high_CD, low_CD = _halves(table_CD)
    # A barrier: a concatenation that is fused with what it is of is computed entry by
    # entry.
    return jax.lax.optimization_barrier(
        jnp.concatenate([high_CD, low_CD, high_CD], axis=-1)
    ).T


def _halves(x: Array) -> tuple[Array, Array]:
    """bfloat16 arrays whose sum is x, but for 2^-16 of it."""
    high = rounded_as_factor(x, "bfloat16")
    halves = high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
    return jax.lax.optimization_barrier(halves)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(x: Array, dtype: str) -> Array:
    """x, float32, in the dtype: the nearest; on a CPU halves away from zero.

    Its derivative is 1, for who differentiates a gradient: the bits below have none.
    """
    if dtype != "bfloat16" or not backend.is_cpu():
        # Rounded ahead: a conversion there and back may be left out.
        return rounded_as_factor(x, dtype).astype(dtype)
    # Half of a last place up and cut off: XLA's own conversion takes twice as long. The
    # NaNs of arithmetic stay NaN.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(1 << 15)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


@rounded.defjvp
def _rounded_jvp(dtype: str, primals, tangents):
    (x,), (change,) = primals, tangents
    return rounded(x, dtype), change.astype(dtype)
