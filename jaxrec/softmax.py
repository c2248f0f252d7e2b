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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.score_tiles import (
    Chunk,
    Hidden,
    Positions,
    Table,
    Tile,
    chunk_of,
    gradients_of,
    hidden_forms,
    own_gradients_of,
    scores_of,
    tile_of,
)

__all__ = ["Positions", "loss_sum", "tile_shape"]

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


def loss_sum(
    hidden_ND: Array,
    table_VD: Array,
    positions: Positions,
    allowed_V: Array,
    excluded_BX: Array | None,
    *,
    dtype: str = "float32",
) -> Array:
    """sum_n w_n (logsumexp_{v in C_n} s_nv - s_n,target), s = hidden table^T, in nats.

    C_n is the allowed rows less the excluded ones of n's sequence, and the target.

    Args:
      hidden_ND: float32; table_VD: float32; positions: see `Positions`.
      allowed_V: bool.
      excluded_BX: int32 rows of the table, 0-padded, or None.
      dtype: "float32" or "bfloat16", of what the matmuls of the gradients multiply.
        Scores and all sums are float32. With bfloat16 a term of the denominator is off
        by 2^-8 of itself at the most, so the loss of a position by .004 nats, and a
        gradient by 3 2^-8 of the sum of its terms' sizes; and see `score_tiles` for
        scores.

    Returns:
      A float32 scalar, with gradients to hidden_ND and table_VD, float32.
    """
    assert dtype in ("float32", "bfloat16"), dtype
    return _loss_sum(hidden_ND, table_VD, positions, allowed_V, excluded_BX, dtype)


def _value(*arguments) -> Array:
    return _over_positions(*arguments, with_gradients=False)[0]


def _forward(*arguments):
    total, *gradients = _over_positions(*arguments, with_gradients=True)
    return total, gradients


def _backward(dtype: str, gradients, cotangent):
    del dtype
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None, None, None


_loss_sum = jax.custom_vjp(_value, nondiff_argnums=(5,))
_loss_sum.defvjp(_forward, _backward)


class _Problem(NamedTuple):
    """Positions in chunks of `size`, and the table in tiles.

    bound_N: no score of the position is above it, but for rounding.
    """

    hidden: Hidden
    table: Table
    positions: Positions
    bound_N: Array
    size: int

    @property
    def num_chunks(self) -> Array:
        """Chunks that have a target."""
        return (self.positions.count + self.size - 1) // self.size

    def over_chunks(self, body: Callable[[Chunk, Any], Any], start: Any) -> Any:
        """body(chunk, carry) over the chunks."""

        def step(i, carry):
            chunk = chunk_of(self.hidden, self.table, self.positions, i, self.size)
            return body(chunk, carry)

        return jax.lax.fori_loop(0, self.num_chunks, step, start)

    def over_tiles(self, body: Callable[[Chunk, Tile, Any], Any], start: Any) -> Any:
        """body(chunk, tile, carry) over the chunks, tile by tile."""

        def step(j, carry):
            tile = tile_of(self.table, j)
            return self.over_chunks(lambda chunk, some: body(chunk, tile, some), carry)

        return jax.lax.fori_loop(0, self.table.num_tiles, step, start)


def _over_positions(
    hidden_ND,
    table_VD,
    positions,
    allowed_V,
    excluded_BX,
    dtype: str,
    *,
    with_gradients: bool,
):
    """(sum, dhidden, dtable), over the chunks that the positions fill."""
    num_positions = len(hidden_ND)
    size, tile = tile_shape(len(table_VD), num_positions)
    padding = -num_positions % size
    hidden_ND = jnp.pad(hidden_ND, ((0, padding), (0, 0)))
    problem = _Problem(
        hidden_forms(hidden_ND, dtype),
        Table(table_VD, allowed_V, excluded_BX, tile, dtype),
        Positions(
            jnp.pad(positions.target_N, (0, padding)),
            jnp.pad(positions.weight_N, (0, padding)),
            jnp.pad(positions.sequence_N, (0, padding), mode="edge"),
            positions.count,
        ),
        _bound(hidden_ND, table_VD),
        size,
    )
    over = _whole if tile == len(table_VD) else _tiled
    total, hidden_grad_ND, table_grad_VD = over(problem, with_gradients)
    return total, hidden_grad_ND[:num_positions], table_grad_VD


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


def _whole(problem: _Problem, with_gradients: bool):
    """Chunk by chunk of positions, each against the whole table."""
    hidden, table, positions, bound_N, size = problem
    tile = tile_of(table, 0)
    chains = _CPU_CHAINS if jax.default_backend() == "cpu" else 1

    def one_chunk(chunk: Chunk):
        """The sum of a chunk, and (dhidden, dtable^T, share_n, scale_n) less own."""
        scores = scores_of(chunk, tile)
        own_n = scores.own_n()
        shift_n = _shift(own_n, _at(bound_N, chunk), scores.highest_n)
        exp_nC = scores.exp_nC(shift_n, table.dtype)
        missing_n = jnp.where(scores.is_missing_n(), jnp.exp(own_n - shift_n), 0)
        share_n = _summed(exp_nC)
        total_n = share_n + missing_n
        total = _weighted(chunk.weight_n, total_n, shift_n, own_n)
        if not with_gradients:
            return total, None
        scale_n = chunk.weight_n / total_n
        gradients = gradients_of(chunk, tile, exp_nC, scale_n)
        return total, (*gradients, share_n, scale_n)

    def body(i, carry):
        total, hidden_grad_ND, table_grad_DV, share_N, scale_N = carry
        chunks = [
            chunk_of(hidden, table, positions, i * chains + j, size // chains)
            for j in range(chains)
        ]
        for chunk, result in zip(chunks, map(one_chunk, chunks), strict=True):
            some, gradients = result
            total += some
            if gradients is not None:
                hidden_grad_nD, some_grad_DV, share_n, scale_n = gradients
                hidden_grad_ND = _put(hidden_grad_ND, hidden_grad_nD, chunk)
                table_grad_DV += some_grad_DV
                share_N = _put(share_N, share_n, chunk)
                scale_N = _put(scale_N, scale_n, chunk)
        return total, hidden_grad_ND, table_grad_DV, share_N, scale_N

    zero_N = jnp.zeros_like(positions.weight_N)
    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros_like(hidden.hidden_ND),
        jnp.zeros_like(table.table_VD.T),
        zero_N,
        zero_N,
    )
    total, hidden_grad_ND, table_grad_DV, share_N, scale_N = jax.lax.fori_loop(
        0, problem.num_chunks, body, start
    )
    table_grad_VD = table_grad_DV.T
    if not with_gradients:
        return total, hidden_grad_ND, table_grad_VD
    gradients = _less_own(problem, hidden_grad_ND, table_grad_VD, share_N, scale_N)
    return total, *gradients


def _summed(exp_nC: Array) -> Array:
    """Over the rows, as the gradients have them: a position's shares sum to one."""
    return exp_nC.sum(axis=-1, dtype=jnp.float32)


def _weighted(weight_N, total_N, shift_N, own_N) -> Array:
    """The sum of w (log(total) + shift - own)."""
    # In this order: a large shift would swallow the logarithm.
    loss_N = jnp.log(total_N) + (shift_N - own_N)
    return jnp.where(weight_N > 0, weight_N * loss_N, 0).sum()


def _less_own(problem: _Problem, hidden_grad_ND, table_grad_VD, share_N, scale_N):
    """The gradients less what a softmax minus its one-hot target owes to the target.

    In a tile that would be one more pass over all scores; here it is N rows.

    Args:
      share_N: the normaliser, less the target's term where the target was missing.
      scale_N: the weight over the normaliser.
    """
    target_N = problem.positions.target_N
    own_hidden_ND, own_row_ND = own_gradients_of(
        problem.hidden, problem.table, target_N, share_N, scale_N
    )
    return hidden_grad_ND - own_hidden_ND, table_grad_VD.at[target_N].add(-own_row_ND)


def _tiled(problem: _Problem, with_gradients: bool):
    """Tile by tile of the table, each against chunk by chunk of positions."""
    hidden_ND, table = problem.hidden.hidden_ND, problem.table
    target_N, weight_N = problem.positions.target_N, problem.positions.weight_N
    about_own_N = jnp.sum(hidden_ND * table.table_VD[target_N], axis=-1)

    def rise(chunk: Chunk, tile: Tile, highest_N):
        highest_n = scores_of(chunk, tile).highest_n()
        return _put(highest_N, jnp.maximum(highest_n, _at(highest_N, chunk)), chunk)

    shift_N = _shift(
        about_own_N, problem.bound_N, lambda: problem.over_tiles(rise, about_own_N)
    )
    share_N, own_N, is_missing_N = _normalisers(problem, shift_N)
    total_N = share_N + jnp.where(is_missing_N, jnp.exp(own_N - shift_N), 0)
    total = _weighted(weight_N, total_N, shift_N, own_N)
    if not with_gradients:
        return total, jnp.zeros_like(hidden_ND), jnp.zeros_like(table.table_VD)
    # Positions past the count have no total, and no weight.
    scale_N = weight_N / jnp.where(total_N > 0, total_N, 1)
    hidden_grad_ND, table_grad_VD = _tiled_gradients(problem, shift_N, scale_N)
    gradients = _less_own(problem, hidden_grad_ND, table_grad_VD, share_N, scale_N)
    return total, *gradients


def _normalisers(problem: _Problem, shift_N: Array):
    """(sum of exp(score - shift) of what competes, target's score, is it missing)."""

    def normalise(chunk: Chunk, tile: Tile, carry):
        scores = scores_of(chunk, tile)
        exp_nC = scores.exp_nC(_at(shift_N, chunk), problem.table.dtype)
        total_n, own_n, is_missing_n = (_at(x_N, chunk) for x_N in carry)
        updated = (
            total_n + _summed(exp_nC),
            # As the sum has it: another sum of products differs in its bits.
            jnp.where(scores.is_here_n, scores.own_n(), own_n),
            is_missing_n | scores.is_missing_n(),
        )
        return tuple(
            _put(x_N, x_n, chunk) for x_N, x_n in zip(carry, updated, strict=True)
        )

    zero_N = jnp.zeros_like(shift_N)
    start = (zero_N, zero_N, jnp.zeros(zero_N.shape, bool))
    return problem.over_tiles(normalise, start)


def _tiled_gradients(problem: _Problem, shift_N: Array, scale_N: Array):
    """(dhidden, dtable) of all that competes."""
    table = problem.table

    def one_tile(j, carry):
        hidden_grad_ND, table_grad_VD = carry
        tile = tile_of(table, j)

        def differentiate(chunk: Chunk, carry):
            hidden_grad_ND, table_grad_DC = carry
            exp_nC = scores_of(chunk, tile).exp_nC(_at(shift_N, chunk), table.dtype)
            hidden_grad_nD, some_grad_DC = gradients_of(
                chunk, tile, exp_nC, _at(scale_N, chunk)
            )
            hidden_grad_nD += _at(hidden_grad_ND, chunk)
            hidden_grad_ND = _put(hidden_grad_ND, hidden_grad_nD, chunk)
            return hidden_grad_ND, table_grad_DC + some_grad_DC

        # The rows that the last tile shares with the one ahead of it have gradients.
        before_CD = jax.lax.dynamic_slice_in_dim(table_grad_VD, tile.first, table.tile)
        hidden_grad_ND, table_grad_DC = problem.over_chunks(
            differentiate, (hidden_grad_ND, before_CD.T)
        )
        table_grad_VD = jax.lax.dynamic_update_slice_in_dim(
            table_grad_VD, table_grad_DC.T, tile.first, 0
        )
        return hidden_grad_ND, table_grad_VD

    start = jnp.zeros_like(problem.hidden.hidden_ND), jnp.zeros_like(table.table_VD)
    return jax.lax.fori_loop(0, table.num_tiles, one_tile, start)


def _at(x_N: Array, chunk: Chunk) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_N, chunk.first, len(chunk.target_n))


def _put(x_N: Array, x_n: Array, chunk: Chunk) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x_N, x_n, chunk.first, 0)
