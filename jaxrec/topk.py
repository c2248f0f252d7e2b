"""The exact top k of a large catalogue, in memory that does not grow with it."""

import jax
import jax.numpy as jnp

from jaxrec.ranking import Seen, in_row_blocks

Array = jax.Array


def top_items(
    hidden_BD: Array,
    table_VD: Array,
    is_allowed_V: Array,
    seen: Seen,
    *,
    k: int,
    row_block: int | None = None,
    item_chunk: int | None = None,
) -> tuple[Array, Array]:
    """The k highest of the scores hidden_BD table_VD^T in each row, best first.

    Chunks of the catalogue are scored one after another and merged into a running
    top k, so B x C scores are held and not B x V. Equal scores are in the order of the
    item ids, whatever the chunk.

    >>> hidden_BD, table_VD = jnp.ones((1, 1)), jnp.array([[9.0], [2.0], [1.0], [2.0]])
    >>> nothing = Seen(*jnp.zeros((2, 1), jnp.int32), jnp.zeros(1, bool))
    >>> top_items(hidden_BD, table_VD, jnp.arange(4) > 0, nothing, k=2)[1].tolist()
    [[1, 3]]

    Args:
      hidden_BD: float.
      table_VD: float32.
      is_allowed_V: bool, the rows of the table that may be recommended: items, never
        PAD or MASK.
      seen: items that a row leaves out besides.
      k: K; may be more than V.
      row_block: rows scored at a time; all of them if None.
      item_chunk: C, items scored at a time; the whole catalogue if None.

    Returns:
      (score_BK float32, item_BK int32). Where fewer than k items are left, the rest has
      the score -inf and items without a meaning.
    """

    def best_of(hidden_bD, seen: Seen) -> tuple[Array, Array]:
        return _block_top_items(hidden_bD, table_VD, is_allowed_V, seen, k, item_chunk)

    return in_row_blocks(best_of, (hidden_BD,), seen, row_block)


def _block_top_items(
    hidden_BD, table_VD, is_allowed_V, seen: Seen, k: int, item_chunk: int | None
) -> tuple[Array, Array]:
    """`top_items` of one block of rows."""
    hidden_BD = hidden_BD.astype(jnp.float32)
    num_rows, num_columns = len(hidden_BD), len(table_VD)
    chunk = num_columns if item_chunk is None else min(item_chunk, num_columns)
    num_chunks = -(-num_columns // chunk)

    def body(best, first):
        # The last chunk begins early enough to be a whole one: padding the table to a
        # multiple would copy it. What was scored before is left out.
        start = jnp.minimum(first, num_columns - chunk)
        table_CD = jax.lax.dynamic_slice_in_dim(table_VD, start, chunk)
        is_allowed_C = jax.lax.dynamic_slice_in_dim(is_allowed_V, start, chunk)
        is_allowed_C &= start + jnp.arange(chunk, dtype=jnp.int32) >= first
        score_BC = jnp.dot(
            hidden_BD,
            table_CD.T,
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        score_BC = jnp.where(is_allowed_C[None], score_BC, -jnp.inf)
        column_H = seen.item_H - start
        is_here_H = seen.is_valid_H & (column_H >= 0)
        column_H = jnp.where(is_here_H, column_H, chunk)  # out of range: dropped
        score_BC = score_BC.at[seen.row_H, column_H].set(-jnp.inf, mode="drop")
        score_BK, column_BK = jax.lax.top_k(score_BC, min(k, chunk))
        # Earlier chunks first: top_k prefers the earlier of equals, the lower id.
        score_BM = jnp.concatenate([best[0], score_BK], axis=1)
        item_BM = jnp.concatenate([best[1], column_BK + start], axis=1)
        score_BK, place_BK = jax.lax.top_k(score_BM, k)
        return (score_BK, jnp.take_along_axis(item_BM, place_BK, axis=1)), None

    none = (
        jnp.full((num_rows, k), -jnp.inf, jnp.float32),
        jnp.zeros((num_rows, k), jnp.int32),
    )
    firsts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
    (score_BK, item_BK), _ = jax.lax.scan(body, none, firsts)
    return score_BK, item_BK
