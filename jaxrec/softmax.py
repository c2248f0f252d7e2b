"""Softmax cross-entropy against a whole table of items, without the scores in memory.

Scores exist one tile at a time, of some positions and some rows of the table. The
gradients are formed while the loss is: in the backward pass they are only scaled.

A small table is one tile wide, and three matmuls do: the scores, and both gradients
from them. A larger one takes several tiles, which are computed twice, once for the
normaliser and once for the gradients: a fourth matmul, but the gradient of a row of the
table is summed up in one go. (Scores further apart than real ones get are computed once
more, for the highest.) benchmarks/cpu_choices.py has the times.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Scores held at a time where the table is one tile wide: 2^22 float32, 16 MiB. On a CPU
# fewer make the matmuls too thin and more fall out of the cache.
TILE_SCORES = 2**22
# A table is cut where a tile of its width would have fewer positions than this, and
# then into tiles of so many positions and rows.
_FEWEST_POSITIONS = 512
_CUT_POSITIONS, _CUT_ROWS = 192, 8192
# A GPU begins every operation of a tile anew, which takes microseconds: fewer, larger
# tiles. By arithmetic, not measured yet; the part "tiles" of benchmarks.gpu compares.
_GPU_TILE_SCORES = 2**24
_GPU_CUT_POSITIONS, _GPU_CUT_ROWS = 4096, 16384
# A CPU works on a tile of a small table as so many chunks of positions, side by side,
# each operation of one filling the gaps between those of the other.
_CPU_CHAINS = 2
# Bounds, in nats, on what is exponentiated: not even the sum over a table of 10^8 rows
# overflows (e^88), and the target's own term does not vanish (e^-87), nor does any that
# would show beside it.
_HIGHEST, _LOWEST = 70.0, -45.0


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
    """Positions and table rows of a tile, from the shapes and the kind of device.

    On a CPU:
    >>> tile_shape(3_417, 25_600), tile_shape(54_543, 6_400)
    ((1224, 3417), (192, 8192))
    """
    scores, cut = TILE_SCORES, (_CUT_POSITIONS, _CUT_ROWS)
    if jax.default_backend() != "cpu":
        scores, cut = _GPU_TILE_SCORES, (_GPU_CUT_POSITIONS, _GPU_CUT_ROWS)
    most = -(-num_positions // 8) * 8
    size = scores // num_rows // 8 * 8
    if size >= _FEWEST_POSITIONS:
        return min(size, most), num_rows
    return min(cut[0], most), min(cut[1], num_rows)


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


def _over_positions(
    hidden_ND, table_VD, positions, allowed_V, excluded_BX, *, with_gradients: bool
):
    """(sum, dhidden, dtable), over the chunks that the positions fill."""
    num_positions = len(hidden_ND)
    size, tile = tile_shape(len(table_VD), num_positions)
    padding = -num_positions % size
    hidden_ND = jnp.pad(hidden_ND, ((0, padding), (0, 0)))
    positions = Positions(
        jnp.pad(positions.target_N, (0, padding)),
        jnp.pad(positions.weight_N, (0, padding)),
        jnp.pad(positions.sequence_N, (0, padding), mode="edge"),
        positions.count,
    )
    table = _Table(table_VD, allowed_V, excluded_BX, tile)
    over = _whole if tile == len(table_VD) else _tiled
    total, hidden_grad_ND, table_grad_VD = over(
        hidden_ND, table, positions, size, with_gradients
    )
    return total, hidden_grad_ND[:num_positions], table_grad_VD


class _Table(NamedTuple):
    """The table and what may compete of it; it is cut into tiles of `tile` rows."""

    table_VD: Array
    allowed_V: Array
    excluded_BX: Array | None
    tile: int


class _Chunk(NamedTuple):
    """The n positions from `first` on, and the distinct sequences they are of.

    local_n: int32, the place of a position's sequence in excluded_GX.
    """

    first: Array
    hidden_nD: Array
    target_n: Array
    weight_n: Array
    local_n: Array | None
    excluded_GX: Array | None


def _chunk(hidden_ND, table: _Table, positions: Positions, i, size: int) -> _Chunk:
    """The i-th chunk of positions."""
    hidden_nD, target_n, weight_n, sequence_n = (
        jax.lax.dynamic_slice_in_dim(x, i * size, size)
        for x in (hidden_ND, *positions[:3])
    )
    excluded = _of_chunk(sequence_n, table.excluded_BX)
    return _Chunk(i * size, hidden_nD, target_n, weight_n, *excluded)


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
    """The rows of the table from `first` on that one tile is about.

    is_new_C: bool. The last tile ends where the table does and may begin before the one
      ahead of it ends; a row that they share has had its turn.
    """

    first: Array
    table_CD: Array
    allowed_C: Array
    is_new_C: Array


def _tile(table: _Table, j) -> _Tile:
    """The j-th tile of the table."""
    first = jnp.minimum(j * table.tile, len(table.table_VD) - table.tile)
    table_CD, allowed_C = (
        jax.lax.dynamic_slice_in_dim(x, first, table.tile)
        for x in (table.table_VD, table.allowed_V)
    )
    # A barrier, or XLA fuses the slice with a transposition that takes far longer.
    table_CD = jax.lax.optimization_barrier(table_CD)
    is_new_C = first + jnp.arange(table.tile, dtype=jnp.int32) >= j * table.tile
    return _Tile(first, table_CD, allowed_C, is_new_C)


class _Scores(NamedTuple):
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

    def exp_nC(self, shift_n: Array) -> Array:
        """exp(score - shift), 0 where a row does not compete."""
        exp_nC = jnp.exp(self.score_nC - shift_n[:, None])
        # A barrier, or it is computed again for each matmul.
        return jax.lax.optimization_barrier(jnp.where(self.competes_nC, exp_nC, 0))

    def own_n(self) -> Array:
        """Of the target, where it is here."""
        return jnp.take_along_axis(self.score_nC, self.column_n1, axis=-1)[:, 0]

    def is_missing_n(self) -> Array:
        """bool, where the target is here and does not compete."""
        mask_nC = jnp.broadcast_to(self.competes_nC, self.score_nC.shape)
        competes_n1 = jnp.take_along_axis(mask_nC, self.column_n1, axis=-1)
        return self.is_here_n & ~competes_n1[:, 0]


def _scores(chunk: _Chunk, tile: _Tile) -> _Scores:
    num_columns = len(tile.table_CD)
    score_nC = jnp.dot(
        chunk.hidden_nD, tile.table_CD.T, preferred_element_type=jnp.float32
    )
    column_n = chunk.target_n - tile.first
    is_here_n = (column_n >= 0) & (column_n < num_columns)
    column_n = jnp.where(is_here_n, column_n, 0)
    return _Scores(
        score_nC,
        _competes(chunk, tile),
        column_n[:, None],
        is_here_n & tile.is_new_C[column_n],
    )


def _competes(chunk: _Chunk, tile: _Tile) -> Array:
    """`_Scores.competes_nC`."""
    competes_1C = (tile.allowed_C & tile.is_new_C)[None]
    if chunk.excluded_GX is None:
        return competes_1C
    num_columns = len(tile.table_CD)
    column_GX = chunk.excluded_GX - tile.first
    # Id 0 pads the list; whether PAD competes is for allowed_V to say.
    is_here_GX = (chunk.excluded_GX > 0) & (column_GX >= 0)
    column_GX = jnp.where(is_here_GX, column_GX, num_columns)
    local_G1 = jnp.arange(len(column_GX))[:, None]
    mask_GC = jnp.broadcast_to(competes_1C, (len(column_GX), num_columns))
    mask_GC = mask_GC.at[local_G1, column_GX].set(False, mode="drop")
    return mask_GC[chunk.local_n]


def _shift(own_N: Array, bound_N: Array, highest: Callable[[], Array]) -> Array:
    """What the scores of each position are lowered by before they are exponentiated.

    The highest of them would do, but to find it takes a pass over all. The target's own
    does too, or more where some score may be far above it, as long as the target's term
    stays a number.

    Args:
      own_N: scores of the targets.
      bound_N: no score is above it, but for rounding.
      highest: finds the highest scores of competing rows. A condition on a device: what
        it costs on a GPU has not been measured.
    """
    shift_N = jnp.maximum(own_N, bound_N - _HIGHEST)
    is_far = jnp.any(own_N - shift_N < _LOWEST)
    return jax.lax.cond(is_far, lambda: jnp.maximum(highest(), own_N), lambda: shift_N)


def _bound(hidden_ND: Array, table_VD: Array) -> Array:
    """[N], which no score exceeds: |h| max_v |table_v|, by Cauchy and Schwarz."""
    squares = jnp.square(hidden_ND).sum(axis=-1) * jnp.square(table_VD).sum(-1).max()
    return jnp.sqrt(squares)


def _whole(hidden_ND, table: _Table, positions, size: int, with_gradients: bool):
    """Chunk by chunk of positions, each against the whole table."""
    tile = _tile(table, 0)
    bound_N = _bound(hidden_ND, table.table_VD)
    chains = _CPU_CHAINS if jax.default_backend() == "cpu" else 1

    def one_chunk(chunk: _Chunk):
        """The sum of a chunk, and (dhidden, dtable^T, owed_n); see `_less_own`."""
        scores = _scores(chunk, tile)
        own_n = scores.own_n()
        shift_n = _shift(own_n, _at(bound_N, chunk), scores.highest_n)
        exp_nC = scores.exp_nC(shift_n)
        missing_n = jnp.where(scores.is_missing_n(), jnp.exp(own_n - shift_n), 0)
        total_n = exp_nC.sum(axis=-1) + missing_n
        total = _weighted(chunk.weight_n, total_n, shift_n, own_n)
        if not with_gradients:
            return total, None
        scale_n1 = (chunk.weight_n / total_n)[:, None]
        hidden_grad_nD = scale_n1 * jnp.dot(exp_nC, table.table_VD)
        table_grad_DV = _transposed_dot(scale_n1 * chunk.hidden_nD, exp_nC)
        owed_n = chunk.weight_n * (1 - missing_n / total_n)
        return total, (hidden_grad_nD, table_grad_DV, owed_n)

    def body(i, carry):
        total, hidden_grad_ND, table_grad_DV, owed_N = carry
        chunks = [
            _chunk(hidden_ND, table, positions, i * chains + j, size // chains)
            for j in range(chains)
        ]
        for chunk, result in zip(chunks, map(one_chunk, chunks), strict=True):
            some, gradients = result
            total += some
            if gradients is not None:
                hidden_grad_nD, some_grad_DV, owed_n = gradients
                hidden_grad_ND = _put(hidden_grad_ND, hidden_grad_nD, chunk)
                table_grad_DV += some_grad_DV
                owed_N = _put(owed_N, owed_n, chunk)
        return total, hidden_grad_ND, table_grad_DV, owed_N

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros_like(hidden_ND),
        jnp.zeros_like(table.table_VD.T),
        jnp.zeros_like(positions.weight_N),
    )
    num_turns = (positions.count + size - 1) // size
    total, hidden_grad_ND, table_grad_DV, owed_N = jax.lax.fori_loop(
        0, num_turns, body, start
    )
    table_grad_VD = table_grad_DV.T
    if not with_gradients:
        return total, hidden_grad_ND, table_grad_VD
    gradients = _less_own(
        hidden_grad_ND, table_grad_VD, hidden_ND, table, positions.target_N, owed_N
    )
    return total, *gradients


def _weighted(weight_N, total_N, shift_N, own_N) -> Array:
    """The sum of w (log(total) + shift - own)."""
    # In this order: a large shift would swallow the logarithm.
    loss_N = jnp.log(total_N) + (shift_N - own_N)
    return jnp.where(weight_N > 0, weight_N * loss_N, 0).sum()


def _transposed_dot(a_nD: Array, b_nC: Array) -> Array:
    """a^T b, of which only the small operand is transposed: on a CPU a third faster."""
    return jnp.dot(jax.lax.optimization_barrier(a_nD.T), b_nC)


def _less_own(
    hidden_grad_ND, table_grad_VD, hidden_ND, table: _Table, target_N, owed_N
):
    """The gradients less what a softmax minus its one-hot target owes to the target.

    In a tile that would be one more pass over all scores; here it is N rows.

    Args:
      owed_N: the weight, less the target's share of it where the target was missing.
    """
    owed_N1 = owed_N[:, None]
    hidden_grad_ND -= owed_N1 * table.table_VD[target_N]
    return hidden_grad_ND, table_grad_VD.at[target_N].add(-owed_N1 * hidden_ND)


def _tiled(hidden_ND, table: _Table, positions, size: int, with_gradients: bool):
    """Tile by tile of the table, each against chunk by chunk of positions."""
    num_tiles = -(-len(table.table_VD) // table.tile)
    num_chunks = (positions.count + size - 1) // size

    def over_chunks(body: Any, j, start: Any) -> Any:
        """body(chunk, j-th tile, carry) over the chunks."""
        tile = _tile(table, j)

        def step(i, carry):
            chunk = _chunk(hidden_ND, table, positions, i, size)
            return body(chunk, tile, carry)

        return jax.lax.fori_loop(0, num_chunks, step, start)

    def over_tiles(body: Any, start: Any) -> Any:
        return jax.lax.fori_loop(0, num_tiles, partial(over_chunks, body), start)

    def rise(chunk: _Chunk, tile: _Tile, highest_N):
        highest_n = _scores(chunk, tile).highest_n()
        return _put(highest_N, jnp.maximum(highest_n, _at(highest_N, chunk)), chunk)

    about_own_N = jnp.sum(hidden_ND * table.table_VD[positions.target_N], axis=-1)
    shift_N = _shift(
        about_own_N,
        _bound(hidden_ND, table.table_VD),
        lambda: over_tiles(rise, about_own_N),
    )

    def normalise(chunk: _Chunk, tile: _Tile, carry):
        scores = _scores(chunk, tile)
        total_n, own_n, is_missing_n = (_at(x_N, chunk) for x_N in carry)
        updated = (
            total_n + scores.exp_nC(_at(shift_N, chunk)).sum(axis=-1),
            jnp.where(scores.is_here_n, scores.own_n(), own_n),
            is_missing_n | scores.is_missing_n(),
        )
        return tuple(
            _put(x_N, x_n, chunk) for x_N, x_n in zip(carry, updated, strict=True)
        )

    weight_N = positions.weight_N
    zero_N = jnp.zeros_like(weight_N)
    start = (zero_N, zero_N, jnp.zeros(weight_N.shape, bool))
    # The target's score as the sum has it: another sum of products differs in its bits.
    total_N, own_N, is_missing_N = over_tiles(normalise, start)
    missing_N = jnp.where(is_missing_N, jnp.exp(own_N - shift_N), 0)
    total_N += missing_N
    total = _weighted(weight_N, total_N, shift_N, own_N)
    zero_ND, zero_VD = jnp.zeros_like(hidden_ND), jnp.zeros_like(table.table_VD)
    if not with_gradients:
        return total, zero_ND, zero_VD

    def differentiate(chunk: _Chunk, tile: _Tile, carry):
        exp_nC = _scores(chunk, tile).exp_nC(_at(shift_N, chunk))
        hidden_grad_ND, table_grad_DC = carry
        scale_n1 = (chunk.weight_n / _at(total_N, chunk))[:, None]
        hidden_grad_nD = scale_n1 * jnp.dot(exp_nC, tile.table_CD)
        hidden_grad_nD += _at(hidden_grad_ND, chunk)
        table_grad_DC += _transposed_dot(scale_n1 * chunk.hidden_nD, exp_nC)
        return _put(hidden_grad_ND, hidden_grad_nD, chunk), table_grad_DC

    def tile_gradient(j, carry):
        hidden_grad_ND, table_grad_VD = carry
        first = _tile(table, j).first
        # The rows that the last tile shares with the one ahead of it have gradients.
        before_CD = jax.lax.dynamic_slice_in_dim(table_grad_VD, first, table.tile)
        hidden_grad_ND, table_grad_DC = over_chunks(
            differentiate, j, (hidden_grad_ND, before_CD.T)
        )
        table_grad_VD = jax.lax.dynamic_update_slice_in_dim(
            table_grad_VD, table_grad_DC.T, first, 0
        )
        return hidden_grad_ND, table_grad_VD

    hidden_grad_ND, table_grad_VD = jax.lax.fori_loop(
        0, num_tiles, tile_gradient, (zero_ND, zero_VD)
    )
    # Positions past the count have no total, and no weight.
    owed_N = weight_N * (1 - missing_N / jnp.where(total_N > 0, total_N, 1))
    gradients = _less_own(
        hidden_grad_ND, table_grad_VD, hidden_ND, table, positions.target_N, owed_N
    )
    return total, *gradients


def _at(x_N: Array, chunk: _Chunk) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_N, chunk.first, len(chunk.target_n))


def _put(x_N: Array, x_n: Array, chunk: _Chunk) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x_N, x_n, chunk.first, 0)
