"""The exact rank of every held-out item in the full catalogue.

rank = 1 + #(other items that score at least as high as the target): ties count against
the target, so that constant scores rank last and a collapsed model cannot look good.
The filtered rank leaves out the items of the user's whole history (not just of the
window that the encoder sees). A target that is itself in the history is filtered with
it and counts as a miss, the paper's rule: its filtered rank is num_items + 1.

Ranks are counted, never sorted, in chunks of users and, where the catalogue is large,
of items. The target's score is read from the same score matrix as its competitors': a
dot product of its own differs in the last bit and would break ties at random.

`rank_step` is one pure function of its arguments; it runs unchanged under jit, pmap and
shard_map, and each row's ranks depend on that row alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import batches
from jaxrec.batches import Log

Array = jax.Array


class Ranks(NamedTuple):
    """Ranks in 1..num_items + 1 of N held-out items, int32 [N] each.

    filtered: among the items that the user has not had.
    unfiltered: among all items.
    ties: other items with exactly the target's score.
    """

    filtered: Any
    unfiltered: Any
    ties: Any


class Rows(NamedTuple):
    """B held-out rows of a chunk, on the host or on the device.

    start_B, end_B: int32, the history is `item_I[start:end]`; a filler has start = end.
    target_B: int32; 0 for a filler.
    slot_B: int32, where the row's window begins in the packed rows of the encoder.
    """

    start_B: Any
    end_B: Any
    target_B: Any
    slot_B: Any


class Seen(NamedTuple):
    """The distinct seen items of B rows, flat: entry h is item_H[h] of row row_H[h]."""

    row_H: Array
    item_H: Array
    is_valid_H: Array


def seen_items(log: Log, is_first_I: Array, rows: Rows, *, capacity: int) -> Seen:
    """The histories of the rows as one flat list of static length.

    Args:
      is_first_I: bool, see `Dataset.is_first_I`: repeats must not be counted twice.
      capacity: H, at least the number of interactions in all histories.
    """
    length_B = rows.end_B - rows.start_B
    row_H = jnp.repeat(
        jnp.arange(len(length_B), dtype=jnp.int32),
        length_B,
        total_repeat_length=capacity,
    )
    before_B = jnp.cumsum(length_B) - length_B
    offset_H = jnp.arange(capacity, dtype=jnp.int32) - before_B[row_H]
    index_H = rows.start_B[row_H] + offset_H
    is_valid_H = offset_H < length_B[row_H]
    is_valid_H &= is_first_I.at[index_H].get(mode="fill", fill_value=False)
    item_H = log.item_I.at[index_H].get(mode="fill", fill_value=0)
    return Seen(row_H, item_H, is_valid_H)


class _Counts(NamedTuple):
    better_B: Array
    tied_B: Array
    seen_at_least_B: Array


def _count(score_BC, target_score_B, target_B, seen: Seen, first: int | Array):
    """Competitors among the items first..first + C - 1, whose scores are score_BC."""
    num_rows, num_columns = score_BC.shape
    is_better_BC = score_BC > target_score_B[:, None]
    item_C = first + jnp.arange(num_columns, dtype=jnp.int32)
    is_tied_BC = score_BC == target_score_B[:, None]
    is_tied_BC &= item_C[None] != target_B[:, None]
    column_H = seen.item_H - first
    in_chunk_H = seen.is_valid_H & (column_H >= 0) & (column_H < num_columns)
    score_H = score_BC[seen.row_H, jnp.clip(column_H, 0, num_columns - 1)]
    at_least_H = in_chunk_H & (score_H >= target_score_B[seen.row_H])
    return _Counts(
        is_better_BC.sum(axis=1, dtype=jnp.int32),
        is_tied_BC.sum(axis=1, dtype=jnp.int32),
        jax.ops.segment_sum(at_least_H.astype(jnp.int32), seen.row_H, num_rows),
    )


def in_row_blocks(
    fn: Callable[..., Any], arrays: tuple[Array, ...], seen: Seen, row_block: int | None
) -> Any:
    """fn(*arrays, seen), for some rows at a time, so that what it makes is small.

    Args:
      fn: its results have the rows first, too.
      arrays: [B, ...] each.
      row_block: b, rows at a time; all of them if None.
    """
    num_rows = len(arrays[0])
    if row_block is None or row_block >= num_rows:
        return fn(*arrays, seen)
    num_blocks = -(-num_rows // row_block)
    fillers = num_blocks * row_block - num_rows

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, fillers),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(num_blocks, row_block, *x.shape[1:])

    def one(block: tuple[Array, ...]) -> Any:
        first, *arrays_b = block
        row_H = seen.row_H - first
        is_here_H = (row_H >= 0) & (row_H < row_block)
        here = Seen(
            jnp.where(is_here_H, row_H, 0), seen.item_H, seen.is_valid_H & is_here_H
        )
        return fn(*arrays_b, here)

    firsts = jnp.arange(num_blocks, dtype=jnp.int32) * row_block
    found = jax.lax.map(one, (firsts, *map(blocks, arrays)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], found)


def target_ranks(
    hidden_BD: Array,
    table_VD: Array,
    is_item_V: Array,
    target_B: Array,
    seen: Seen,
    *,
    row_block: int | None = None,
    item_chunk: int | None = None,
) -> tuple[Ranks, Array]:
    """Ranks of the targets by the scores hidden_BD table_VD^T.

    Args:
      hidden_BD: float.
      table_VD: float32.
      is_item_V: bool, the rows that are items; PAD and MASK never compete.
      target_B: int32.
      seen: what the filtered rank leaves out.
      row_block: rows scored at a time; all of them if None.
      item_chunk: C, scores of a row held at a time; the whole catalogue if None. In
        chunks the scores are computed twice: to find the target's, and to count.

    Returns:
      The ranks, and bool [B]: whether all of a row's scores are finite.
    """

    def ranks_of(hidden_bD, target_b, seen: Seen) -> tuple[Ranks, Array]:
        return _block_ranks(hidden_bD, table_VD, is_item_V, target_b, seen, item_chunk)

    return in_row_blocks(ranks_of, (hidden_BD, target_B), seen, row_block)


def _block_ranks(
    hidden_BD, table_VD, is_item_V, target_B, seen: Seen, item_chunk: int | None
) -> tuple[Ranks, Array]:
    """`target_ranks` of one block of rows."""
    hidden_BD = hidden_BD.astype(jnp.float32)
    num_columns, num_items = len(table_VD), is_item_V.sum(dtype=jnp.int32)
    chunk = num_columns if item_chunk is None else min(item_chunk, num_columns)
    num_chunks = -(-num_columns // chunk)
    # Like the targets: under shard_map, what a scan carries must vary as they do.
    infinite_B = jnp.full_like(target_B, jnp.inf, dtype=jnp.float32)

    def scores(start, first):
        table_CD = jax.lax.dynamic_slice_in_dim(table_VD, start, chunk)
        is_item_C = jax.lax.dynamic_slice_in_dim(is_item_V, start, chunk)
        is_item_C &= start + jnp.arange(chunk, dtype=jnp.int32) >= first
        score_BC = jnp.dot(
            hidden_BD,
            table_CD.T,
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        is_finite_B = (jnp.isfinite(score_BC) | ~is_item_C[None]).all(axis=1)
        return jnp.where(is_item_C[None], score_BC, -jnp.inf), is_finite_B

    def own(score_BC, first):
        column_B = target_B - first
        is_here_B = (column_B >= 0) & (column_B < chunk)
        score_B = score_BC[jnp.arange(len(target_B)), jnp.clip(column_B, 0, chunk - 1)]
        return jnp.where(is_here_B, score_B, -jnp.inf)

    def sweep(target_score_B, _):
        """One pass over the chunks: next target scores, and counts by these ones."""

        def body(carry, first):
            found_B, counts, is_finite_B = carry
            # The last chunk begins early enough to be a whole one: padding the table to
            # a multiple would copy it. What had its turn does not compete again.
            start = jnp.minimum(first, num_columns - chunk)
            score_BC, is_chunk_finite_B = scores(start, first)
            more = _count(score_BC, target_score_B, target_B, seen, start)
            found_B = jnp.maximum(found_B, own(score_BC, start))
            counts = jax.tree.map(jnp.add, counts, more)
            return (found_B, counts, is_finite_B & is_chunk_finite_B), None

        zero_B = jnp.zeros_like(target_B)
        start = (-infinite_B, _Counts(zero_B, zero_B, zero_B), target_B >= 0)
        firsts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
        (found_B, counts, is_finite_B), _ = jax.lax.scan(body, start, firsts)
        return found_B, (counts, is_finite_B)

    if num_chunks == 1:
        score_BC, is_finite_B = scores(0, 0)
        counts = _count(score_BC, own(score_BC, 0), target_B, seen, 0)
    else:
        # The same compiled sweep twice, so that both see the same bits.
        _, both = jax.lax.scan(sweep, infinite_B, None, length=2)
        counts, is_finite_B = jax.tree.map(lambda x: x[-1], both)

    is_target_H = seen.is_valid_H & (seen.item_H == target_B[seen.row_H])
    is_seen_B = jax.ops.segment_max(
        is_target_H.astype(jnp.int32), seen.row_H, len(target_B)
    )
    unfiltered_B = 1 + counts.better_B + counts.tied_B
    filtered_B = jnp.where(
        is_seen_B > 0, num_items + 1, unfiltered_B - counts.seen_at_least_B
    )
    return Ranks(filtered_B, unfiltered_B, counts.tied_B), is_finite_B


def last_hidden(
    encoder, params, log: Log, rows: Rows, *, max_length: int, num_rows: int
) -> Array:
    """The hidden state [B, D] that scores what comes after each history.

    Next-item encoders are read at the last item of the window; cloze encoders at a MASK
    put after the last max_length - 1 items.
    """
    is_cloze = encoder.objective == "cloze"
    length = max_length - 1 if is_cloze else max_length
    tokens_BL = batches.windows(log, rows.start_B, rows.end_B, length=length)
    count_B = (tokens_BL > 0).sum(axis=1, dtype=jnp.int32)
    if is_cloze:
        tokens_BL = jnp.pad(tokens_BL, ((0, 0), (0, 1)))
        row_B = jnp.arange(len(count_B))
        mask = encoder.num_items + 1
        tokens_BL = tokens_BL.at[row_B, count_B].set(mask)
        count_B = count_B + 1
    packing = batches.place(
        tokens_BL, rows.slot_B, num_rows=num_rows, row_length=max_length
    )
    hidden_RTD = encoder.apply(
        {"params": params}, *batches.pack(tokens_BL, packing), train=False
    )
    last_B = rows.slot_B + jnp.maximum(count_B, 1) - 1
    hidden_BD = hidden_RTD.reshape(-1, hidden_RTD.shape[-1])[last_B]
    # No history, no opinion: equal scores, which rank last.
    return jnp.where(count_B[:, None] > 0, hidden_BD, 0)


def rank_step(
    params,
    log: Log,
    is_first_I: Array,
    rows: Rows,
    *,
    encoder,
    max_length: int,
    num_rows: int,
    capacity: int,
    row_block: int | None = None,
    item_chunk: int | None = None,
) -> tuple[Ranks, Array]:
    """Ranks of one chunk of held-out rows: encode, score, count. Pure.

    Args:
      num_rows: R, packed rows of the encoder, enough for the chunk's windows.
      capacity: H, see `seen_items`.
      row_block, item_chunk: see `target_ranks`.

    Returns:
      As `target_ranks`.
    """
    hidden_BD = last_hidden(
        encoder, params, log, rows, max_length=max_length, num_rows=num_rows
    )
    table_VD = encoder.apply({"params": params}, method="table")
    is_item_V = item_mask(len(table_VD), encoder.num_items)
    seen = seen_items(log, is_first_I, rows, capacity=capacity)
    return target_ranks(
        hidden_BD,
        table_VD,
        is_item_V,
        rows.target_B,
        seen,
        row_block=row_block,
        item_chunk=item_chunk,
    )


def item_mask(num_table_rows: int, num_items: int) -> Array:
    """bool [V]: True on rows 1..num_items of the item table."""
    row_V = jnp.arange(num_table_rows)
    return (row_V >= 1) & (row_V <= num_items)
