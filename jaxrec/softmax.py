"""Softmax cross-entropy against a whole table of items, without the scores in memory.

Positions are worked on in chunks, and the table in tiles. The gradients are formed
while the loss is: in the backward pass they are only scaled.

Of a table of up to ten tiles a chunk's exponentials are kept until their sum is known,
on a CPU 120 MiB of them at the most: three matmuls do, the scores and from their
exponentials both gradients. Of a larger table every tile is computed twice, once for
the sums and once for the gradients: a fourth matmul, but no more than a tile is held.
(Where scores may be more than 115 nats above a target's, which no trained run that was
looked at has reached, they are computed once more, for the highest.)
benchmarks/cpu_choices.py has the times, benchmarks/memory.py the bytes.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import backend, normaliser
from jaxrec.normaliser import Sums
from jaxrec.score_tiles import (
    Chunk,
    Hidden,
    Positions,
    Scores,
    Table,
    Tile,
    chunk_of,
    gradients_of,
    hidden_forms,
    own_gradients_of,
    rounded_as_factor,
    scores_of,
    tile_of,
)

__all__ = ["Positions", "loss_sum", "tile_shape"]

Array = jax.Array


class _Sizes(NamedTuple):
    """What `tile_shape` goes by.

    scores: of a tile that is as wide as the table.
    fewest_positions: with fewer in such a tile, the table is cut.
    positions: of a tile of a table that is cut.
    most_rows: of such a tile.
    most_kept: tiles of a chunk whose exponentials are kept at once.
    """

    scores: int
    fewest_positions: int
    positions: int
    most_rows: int
    most_kept: int


# On a CPU smaller tiles make the matmuls too thin, and of larger ones more falls out of
# the cache: 2^21 float32 are 8 MiB. 120 MiB of exponentials are kept at the most.
_CPU = _Sizes(
    scores=2**21, fewest_positions=192, positions=192, most_rows=2**14, most_kept=10
)
# A GPU begins every operation of a tile anew, which takes microseconds: fewer, larger
# tiles. benchmarks/gpu_programs.py has what they need of memory; how long they take has
# not been measured yet, the part "tiles" of benchmarks.gpu compares.
_GPU = _Sizes(
    scores=2**24, fewest_positions=256, positions=4096, most_rows=2**14, most_kept=1
)


def tile_shape(num_rows: int, num_positions: int) -> tuple[int, int]:
    """Positions and table rows of a tile, from the shapes and the kind of device.

    Both are multiples of 16, which bfloat16 needs to be fast. So where the table is one
    tile, the tile may have more rows than the table.

    On a CPU:
    >>> tile_shape(3_417, 25_600), tile_shape(54_543, 6_400)
    ((608, 3424), (192, 13648))
    """
    sizes = _sizes()
    size, num_tiles = sizes.scores // _rounded_up(num_rows) // 16 * 16, 1
    if size < sizes.fewest_positions:
        size, num_tiles = sizes.positions, -(-num_rows // sizes.most_rows)
    if not backend.is_cpu():
        # Chunks of one size, or the last would be padded to that of the others.
        num_chunks = -(-num_positions // size)
        size = _rounded_up(-(-num_positions // num_chunks))
    return min(size, _rounded_up(num_positions)), _rounded_up(-(-num_rows // num_tiles))


def _sizes() -> _Sizes:
    return _CPU if backend.is_cpu() else _GPU


def _rounded_up(size: int) -> int:
    """To a multiple of 16."""
    return -(-size // 16) * 16


def loss_sum(
    hidden_ND: Array,
    table_VD: Array,
    positions: Positions,
    allowed_V: Array,
    excluded_BX: Array | None,
    *,
    dtype: str = "float32",
    score_dtype: str = "float32",
    is_dense: bool = False,
) -> Array:
    """sum_n w_n (logsumexp_{v in C_n} s_nv - s_n,target), s = hidden table^T, in nats.

    C_n is the allowed rows less the excluded ones of n's sequence, and the target.

    Args:
      hidden_ND: float32; table_VD: float32; positions: see `Positions`.
      allowed_V: bool.
      excluded_BX: int32 rows of the table, 0-padded, or None.
      dtype: "float32" or "bfloat16", of what the matmuls of the gradients multiply.
        Scores and all sums are float32. With float32, against 54,543 rows of width 64,
        a position's loss is off from float64 by 2^-19 nats in the mean, and a gradient
        by 2^-17 of the sum of its terms' sizes at the most (tests/test_softmax.py);
        where a GPU multiplies it as TF32, a factor by 2^-11 of itself. With bfloat16 a
        term of the denominator is off by 2^-8 of itself at the most, so the loss of a
        position by .004 nats, and a gradient by 3 2^-8 of the sum of its terms' sizes;
        and see `score_tiles` for scores.
      score_dtype: "float32" or "bfloat16", of what the matmul of the scores multiplies;
        its sums are float32. With bfloat16 the loss is that of hidden states and a
        table rounded to it, and so are the gradients: a score is off by 2^-7 of the sum
        of its terms' sizes at the most.
      is_dense: whether nearly all positions have a target; see `losses.Packed`.

    Returns:
      A float32 scalar, with gradients to hidden_ND and table_VD, float32.
    """
    assert {dtype, score_dtype} <= {"float32", "bfloat16"}, (dtype, score_dtype)
    how = _How(dtype, score_dtype, is_dense)
    return _loss_sum(hidden_ND, table_VD, positions, allowed_V, excluded_BX, how)


class _How(NamedTuple):
    """The options of `loss_sum`."""

    dtype: str
    score_dtype: str
    is_dense: bool


def _value(*arguments) -> Array:
    # The compiler leaves out what only the gradients need.
    return _forward(*arguments)[0]


def _forward(hidden_ND, table_VD, positions, allowed_V, excluded_BX, how: _How):
    num_positions, num_rows = len(hidden_ND), len(table_VD)
    hidden_ND = rounded_as_factor(hidden_ND, how.score_dtype)
    size, tile = tile_shape(num_rows, num_positions)
    more, more_rows = -num_positions % size, max(tile - num_rows, 0)
    hidden_ND = jnp.pad(hidden_ND, ((0, more), (0, 0)))
    # Rows that do not compete.
    table_VD = jnp.pad(table_VD, ((0, more_rows), (0, 0)))
    allowed_V = jnp.pad(allowed_V, (0, more_rows))
    problem = _Problem(
        hidden_forms(hidden_ND, how.dtype, how.score_dtype),
        Table(table_VD, allowed_V, excluded_BX, tile, how.dtype, how.score_dtype),
        Positions(
            jnp.pad(positions.target_N, (0, more)),
            jnp.pad(positions.weight_N, (0, more)),
            jnp.pad(positions.sequence_N, (0, more), mode="edge"),
            positions.count,
        ),
        _bound(hidden_ND, table_VD, how.score_dtype),
        size,
        how.is_dense,
    )
    is_kept = problem.table.num_tiles <= _sizes().most_kept
    sums_N, *gradients = _once(problem) if is_kept else _twice(problem)
    hidden_grad_ND, table_grad_VD = _less_own(problem, sums_N, *gradients)
    gradients = hidden_grad_ND[:num_positions], table_grad_VD[:num_rows]
    return _loss(problem, sums_N), gradients


def _backward(how: _How, gradients, cotangent):
    del how
    hidden_grad_ND, table_grad_VD = gradients
    return cotangent * hidden_grad_ND, cotangent * table_grad_VD, None, None, None


_loss_sum = jax.custom_vjp(_value, nondiff_argnums=(5,))
_loss_sum.defvjp(_forward, _backward)


class _Problem(NamedTuple):
    """Positions in chunks of `size`, and the table in tiles.

    bound_N: no score of the position is above it, but for rounding.
    is_dense: of `losses.Packed`.
    """

    hidden: Hidden
    table: Table
    positions: Positions
    bound_N: Array
    size: int
    is_dense: bool

    @property
    def num_chunks(self) -> Array | int:
        """Chunks that have a target; an only chunk counts without one.

        So the compiler knows of one that it is one, and makes no loop. On a GPU the
        host would wait before every turn of a loop whose number the device knows, so
        there all chunks count where few could be left out. (benchmarks/gpu.md)
        """
        most = len(self.positions.target_N) // self.size
        if most == 1 or (self.is_dense and not backend.is_cpu()):
            return most
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


def _bound(hidden_ND: Array, table_VD: Array, score_dtype: str) -> Array:
    """`normaliser.bound` of the scores, whose rows may be rounded, by 2^-8 of a row.

    They are not rounded for it: that would be one table more in memory.
    """
    most = 1 + 2.0**-8 if score_dtype == "bfloat16" else 1.0
    return most * normaliser.bound(hidden_ND, table_VD)


def _shift_ahead(problem: _Problem) -> Array:
    """`normaliser.shift` of all positions, from no tile."""
    own_row_ND = problem.table.rows(problem.positions.target_N)
    about_own_N = jnp.sum(problem.hidden.hidden_ND * own_row_ND, axis=-1)

    def rise(chunk: Chunk, tile: Tile, highest_N):
        highest_n = scores_of(chunk, tile).highest_n()
        return _put(highest_N, jnp.maximum(highest_n, _at(highest_N, chunk)), chunk)

    return normaliser.shift(
        about_own_N, problem.bound_N, lambda: problem.over_tiles(rise, about_own_N)
    )


def _loss(problem: _Problem, sums_N: Sums) -> Array:
    """The sum of w (log(total) + shift - own)."""
    weight_N = problem.positions.weight_N
    # In this order: a large shift would swallow the logarithm.
    loss_N = jnp.log(sums_N.total()) + (sums_N.shift - sums_N.own)
    return jnp.where(weight_N > 0, weight_N * loss_N, 0).sum()


def _less_own(problem: _Problem, sums_N: Sums, hidden_grad_ND, table_grad_VD):
    """The gradients less what a softmax minus its one-hot target owes to the target.

    In a tile that would be one more pass over all scores; here it is N rows.
    """
    target_N, weight_N = problem.positions.target_N, problem.positions.weight_N
    owed = own_gradients_of(
        problem.hidden, problem.table, target_N, sums_N.exp_sum, sums_N.scale(weight_N)
    )
    if owed is None:
        return hidden_grad_ND, table_grad_VD
    own_hidden_ND, own_row_ND = owed
    return hidden_grad_ND - own_hidden_ND, table_grad_VD.at[target_N].add(-own_row_ND)


def _once(problem: _Problem):
    """(sums, dhidden, dtable), chunk by chunk of positions, each against all tiles.

    The gradients may still have in them what targets owe: see `_less_own`. The loop
    over the tiles is unrolled: in a loop of the program their terms would be copied.
    """
    hidden_ND, table = problem.hidden.hidden_ND, problem.table
    tiles = [tile_of(table, j) for j in range(table.num_tiles)]
    # Not from the scores of several tiles: all would be held until it is known. Nor on
    # a GPU, whose host would wait for the condition in every chunk.
    is_ahead = len(tiles) > 1 or not backend.is_cpu()
    shift_N = _shift_ahead(problem) if is_ahead else None

    def body(chunk: Chunk, carry):
        sums_N, hidden_grad_ND, table_grads_DC = carry
        all_scores = [scores_of(chunk, tile) for tile in tiles]
        sums_n, terms = _terms(problem, chunk, all_scores, shift_N)
        scale_n = sums_n.scale(chunk.weight_n)
        gradients = [
            gradients_of(
                chunk, tile, scores.less_exp_sum(exp_nC, sums_n.exp_sum), scale_n
            )
            for tile, scores, exp_nC in zip(tiles, all_scores, terms, strict=True)
        ]
        hidden_grads_nD, some_DC = zip(*gradients, strict=True)
        return (
            _put_all(sums_N, sums_n, chunk),
            _put(hidden_grad_ND, reduce(jnp.add, hidden_grads_nD), chunk),
            jax.tree.map(jnp.add, table_grads_DC, some_DC),
        )

    start = (
        Sums.of_none(jnp.zeros_like(problem.bound_N)),
        jnp.zeros_like(hidden_ND),
        (jnp.zeros((hidden_ND.shape[1], table.tile), jnp.float32),) * len(tiles),
    )
    sums_N, hidden_grad_ND, table_grads_DC = problem.over_chunks(body, start)
    return sums_N, hidden_grad_ND, _joined(table_grads_DC, len(table.table_VD))


def _terms(
    problem: _Problem, chunk: Chunk, all_scores: list[Scores], shift_N: Array | None
) -> tuple[Sums, list[Array]]:
    """The sums of a chunk, and the exponentials that they are of in each tile.

    Args:
      all_scores: of each tile.
      shift_N: of all positions; or None for the only tile, which has their targets'
        scores.
    """
    if shift_N is None:
        (scores,) = all_scores
        bound_n = _at(problem.bound_N, chunk)
        shift_n = normaliser.shift(scores.own_n(), bound_n, scores.highest_n)
    else:
        shift_n = _at(shift_N, chunk)
    sums_n, terms = Sums.of_none(shift_n), []
    for scores in all_scores:
        exp_nC, exp_sum_n = scores.terms(shift_n, problem.table.dtype)
        sums_n = sums_n.and_of(scores, exp_sum_n)
        terms.append(exp_nC)
    return sums_n, terms


def _joined(grads_DC: tuple[Array, ...], num_rows: int) -> Array:
    """[V, D]; of the last tile without the rows that it shares with the one before."""
    *firsts, last_DC = grads_DC
    num_shared = sum(x.shape[1] for x in grads_DC) - num_rows
    return jnp.concatenate([*(x.T for x in firsts), last_DC[:, num_shared:].T])


def _twice(problem: _Problem):
    """(sums, dhidden, dtable), tile by tile of the table, each against all chunks.

    The gradients may still have in them what targets owe: see `_less_own`.
    """
    table = problem.table
    sums_N = _sums(problem)
    scale_N = sums_N.scale(problem.positions.weight_N)

    def one_tile(j, carry):
        hidden_grad_ND, table_grad_VD = carry
        tile = tile_of(table, j)

        def differentiate(chunk: Chunk, carry):
            hidden_grad_ND, table_grad_DC = carry
            shift_n = _at(sums_N.shift, chunk)
            scores = scores_of(chunk, tile)
            exp_nC, _ = scores.terms(shift_n, table.dtype)
            rest_nC = scores.less_exp_sum(exp_nC, _at(sums_N.exp_sum, chunk))
            hidden_grad_nD, some_grad_DC = gradients_of(
                chunk, tile, rest_nC, _at(scale_N, chunk)
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
    gradients = jax.lax.fori_loop(0, table.num_tiles, one_tile, start)
    return sums_N, *gradients


def _sums(problem: _Problem) -> Sums:
    """Tile by tile of the table, each against all chunks."""

    def add_tile(chunk: Chunk, tile: Tile, sums_N: Sums):
        sums_n = Sums(*(_at(x_N, chunk) for x_N in sums_N))
        scores = scores_of(chunk, tile)
        _, exp_sum_n = scores.terms(sums_n.shift, problem.table.dtype)
        return _put_all(sums_N, sums_n.and_of(scores, exp_sum_n), chunk)

    return problem.over_tiles(add_tile, Sums.of_none(_shift_ahead(problem)))


def _put_all(sums_N: Sums, sums_n: Sums, chunk: Chunk) -> Sums:
    return Sums(
        *(_put(x_N, x_n, chunk) for x_N, x_n in zip(sums_N, sums_n, strict=True))
    )


def _at(x_N: Array, chunk: Chunk) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_N, chunk.first, len(chunk.target_n))


def _put(x_N: Array, x_n: Array, chunk: Chunk) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x_N, x_n, chunk.first, 0)
