"""Ranks and metrics of a model on held-out rows."""

import functools
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import backend, batches, metrics, ranking
from jaxrec.batches import Log
from jaxrec.data import Holdout, Split
from jaxrec.errors import InputError
from jaxrec.ranking import Ranks, Rows

# Scores held at a time: 2^26 float32 (256 MiB). A larger catalogue is cut into chunks.
_CHUNK_SCORES = 2**26
# On a CPU rows are scored in blocks whose scores are in its cache, 8 MiB of them: they
# are read several times. Of fewer rows than 16 the matmuls are too thin.
_BLOCK_SCORES, _FEWEST_ROWS = 2**21, 16
# Ranks in several chunks take every score twice: on a GPU a million items are one.
_GPU_CHUNK_SCORES = 2**28


class Chunks(NamedTuple):
    """Held-out rows cut into chunks of equal shape and nearly equal work.

    order_N: int, the row of the holdout that each place of the flattened chunks holds;
      -1 for a filler.
    rows: `Rows` with a leading axis of chunks.
    num_rows: R; capacity: H; see `ranking.rank_step`.
    """

    order_N: np.ndarray
    rows: Rows
    num_rows: int
    capacity: int


def cut(
    split: Split, holdout: Holdout, *, batch_size: int, max_length: int, is_cloze: bool
) -> Chunks:
    """Deals the rows, longest history first, to chunks in turn: all weigh alike."""
    if len(holdout.user) == 0:
        raise InputError(
            f"a holdout needs at least one row to be ranked: one of "
            f"{split.dataset.name} has none. Check the split and eval.max_valid_users."
        )
    start_N = split.dataset.offsets[holdout.user]
    length_N = holdout.end - start_N
    num_chunks = -(-len(start_N) // batch_size)
    size = -(-len(start_N) // num_chunks)
    by_length = np.argsort(-length_N, kind="stable")
    order_N = np.concatenate([by_length[c::num_chunks] for c in range(num_chunks)])
    dealt = [len(by_length[c::num_chunks]) for c in range(num_chunks)]

    def chunked(x_N):
        parts = np.split(x_N[order_N], np.cumsum(dealt)[:-1])
        return np.stack([np.pad(part, (0, size - len(part))) for part in parts])

    start_CB, end_CB = chunked(start_N), chunked(holdout.end)
    window_CB = np.minimum(end_CB - start_CB + is_cloze, max_length)
    slot_CB, num_rows_C = batches.assign_slots(window_CB, max_length)
    rows = Rows(start_CB, end_CB, chunked(holdout.target), slot_CB)
    place_N = np.concatenate([c * size + np.arange(n) for c, n in enumerate(dealt)])
    order = np.full(num_chunks * size, -1)
    order[place_N] = order_N
    return Chunks(
        order_N=order,
        rows=Rows(*(x.astype(np.int32) for x in rows)),
        num_rows=max(1, int(num_rows_C.max())),
        capacity=max(1, int((end_CB - start_CB).sum(axis=1).max())),
    )


class Evaluator:
    """Exact ranks of a split's held-out rows under an encoder's parameters.

    Args:
      encoder: a module of `models`.
      split: what to rank.
      log: the split's log on the device.
      max_length: the window that the encoder sees.
      batch_size: rows a chunk.
    """

    def __init__(
        self,
        encoder,
        split: Split,
        log: Log,
        *,
        max_length: int,
        batch_size: int = 256,
    ):
        self._encoder, self._split, self._log = encoder, split, log
        self._max_length, self._batch_size = max_length, batch_size
        self._programs: dict[tuple[int, int], jax.stages.Wrapped] = {}
        self._compiled: dict[tuple[int, ...], jax.stages.Compiled] = {}

    @functools.cached_property
    def _is_first_I(self) -> jax.Array:
        return jnp.asarray(self._split.dataset.is_first_I)

    def cut(self, holdout: Holdout) -> Chunks:
        """The holdout's chunks, to be made once and ranked often."""
        return cut(
            self._split,
            holdout,
            batch_size=self._batch_size,
            max_length=self._max_length,
            is_cloze=self._encoder.objective == "cloze",
        )

    def ranks(self, params, chunks: Chunks) -> Ranks:
        """Ranks of every row, in the holdout's order: int32 NumPy arrays [N].

        Raises:
          InputError: a score is not finite; a rank among NaN means nothing.
        """
        program = self._compiled.get(_shape(chunks)) or self._program(chunks)
        found = program(chunks.rows, params, self._log, self._is_first_I)
        backend.wait(jax.tree.leaves(found))
        return gather(jax.device_get(found), chunks.order_N)

    def compile(self, params, chunks: Chunks) -> None:
        """Compiles the ranking of the chunks ahead of it.

        Args:
          params: of the shapes that parameters will have, arrays or not.
        """
        arguments = (chunks.rows, params, self._log, self._is_first_I)
        lowered = self._program(chunks).lower(*arguments)
        self._compiled[_shape(chunks)] = lowered.compile()

    def _program(self, chunks: Chunks) -> jax.stages.Wrapped:
        shape = (chunks.num_rows, chunks.capacity)
        if shape not in self._programs:
            num_table_rows = self._encoder.num_items + 2
            step = partial(
                ranking.rank_step,
                encoder=self._encoder,
                max_length=self._max_length,
                num_rows=chunks.num_rows,
                capacity=chunks.capacity,
                **rank_cuts(num_table_rows, self._batch_size),
            )
            self._programs[shape] = in_one_dispatch(step)
        return self._programs[shape]


def _shape(chunks: Chunks) -> tuple[int, ...]:
    """What the program that ranks the chunks goes by."""
    return (*chunks.rows.start_B.shape, chunks.num_rows, chunks.capacity)


def in_one_dispatch(step: Callable[..., Any]) -> jax.stages.Wrapped:
    """A program of (rows, *shared): step(*shared, chunk) of each, one after another.

    What is shared comes as an argument: a constant would be copied into the program.
    """

    @jax.jit
    def program(rows: Rows, *shared: Any):
        return jax.lax.map(partial(step, *shared), rows)

    return program


def row_block(num_table_rows: int, batch_size: int) -> int:
    """Rows scored at a time: on a CPU a power of two, unless all of them are fewer."""
    if not backend.is_cpu():
        return batch_size
    most = max(_FEWEST_ROWS, _BLOCK_SCORES // num_table_rows)
    return min(batch_size, 2 ** (most.bit_length() - 1))


def item_chunk(num_table_rows: int, batch_size: int) -> int | None:
    """Items scored at a time: all (None) while a chunk's scores fit the budget.

    Else as many for each chunk, or the last one would be mostly empty.
    """
    scores = _CHUNK_SCORES if backend.is_cpu() else _GPU_CHUNK_SCORES
    most = max(1024, scores // batch_size)
    if num_table_rows <= most:
        return None
    return -(-num_table_rows // -(-num_table_rows // most))


def rank_cuts(num_table_rows: int, batch_size: int) -> dict[str, int | None]:
    """row_block and item_chunk of `ranking.target_ranks`."""
    block = row_block(num_table_rows, batch_size)
    return {"row_block": block, "item_chunk": item_chunk(num_table_rows, block)}


def top_cuts(num_table_rows: int, batch_size: int) -> dict[str, int | None]:
    """row_block and item_chunk of `topk.top_items`.

    Its top k of a row is found in one pass however the catalogue is cut, so a large one
    is, and then rows in blocks make it no faster.
    """
    chunk = item_chunk(num_table_rows, batch_size)
    block = row_block(num_table_rows, batch_size) if chunk is None else None
    return {"row_block": block, "item_chunk": chunk}


def gather(found: tuple[Ranks, np.ndarray], order_N: np.ndarray) -> Ranks:
    """Ranks of chunks, each [chunks, B], in the holdout's order; fillers dropped."""
    ranks, is_finite_CB = found
    is_row_N = order_N >= 0
    is_finite_N = is_finite_CB.reshape(-1)[is_row_N]
    if not is_finite_N.all():
        raise InputError(
            f"{(~is_finite_N).sum()} of {is_row_N.sum()} held-out rows have "
            "scores that are not finite: the model has diverged. Lower "
            "optim.learning_rate or set optim.clip_norm, and train again."
        )

    def in_order(rank_CB: np.ndarray) -> np.ndarray:
        rank_N = np.zeros(is_row_N.sum(), np.int32)
        rank_N[order_N[is_row_N]] = rank_CB.reshape(-1)[is_row_N]
        return rank_N

    return Ranks(*map(in_order, ranks))


def subset(holdout: Holdout, max_rows: int | None, *, seed: int) -> Holdout:
    """At most `max_rows` rows, drawn once by the seed, in their order; None for all."""
    if max_rows is None or max_rows >= len(holdout.user):
        return holdout
    # A stream of its own: (seed, epoch) orders the epochs.
    rng = np.random.default_rng((seed, zlib.crc32(b"valid")))
    chosen = np.sort(rng.choice(len(holdout.user), max_rows, replace=False))
    return Holdout(*(x[chosen] for x in holdout))


# Rows summed at a time: far below 2^24, where float32 stops to count by ones.
_SUM_ROWS = 2**20


def summary(
    ranks: Ranks, names: Sequence[str], *, filter_seen: bool, num_items: int
) -> dict[str, float]:
    """`means` by the filtered ranks, or the unfiltered."""
    rank_N = ranks.filtered if filter_seen else ranks.unfiltered
    return means(rank_N, names, num_items=num_items)


def means(rank_N: Any, names: Sequence[str], *, num_items: int) -> dict[str, float]:
    """Means of metrics over all rows, fractions in [0, 1], by name.

    Args:
      rank_N: int [N], 1 is best; above num_items is a miss.
      names: such as "ndcg@10".
      num_items: of the catalogue.
    """
    rank_N = metrics.uncut(rank_N, num_items)
    firsts = range(0, len(rank_N), _SUM_ROWS)
    found = metrics.means(
        metrics.sums(rank_N[first : first + _SUM_ROWS], None, names) for first in firsts
    )
    return {name: found[name] for name in names}  # in their order, not JAX's
