"""Negative samplers: pure functions of one key and one sequence, vmapped over a batch.

The law is the paper's: candidates are the items of a pool (by default the items of
the training part) that are not among the items seen by the sequence, and every
candidate is as likely as another. Which items count as seen is the caller's choice:
the truncated window, as in the paper, or the whole history, a longer array.

Nothing here has the size of batch x catalogue. The j-th unseen item is found from j
by a binary search among the seen ones, and distinct j's come from a pseudorandom
permutation of 0..m-1 evaluated at the places that are needed only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.errors import InputError

# Subsets drawn with 8 rounds fail chi-square tests of their law; with 24 they pass.
NUM_ROUNDS = 24


class Pool(NamedTuple):
    """The A items that may be negatives; build it with make_pool.

    Attributes:
      item_A: int32 [A], their ids, ascending, without PAD.
      index_V: int32 [V], the place of an item in item_A, or A when it is not there.
    """

    item_A: jax.Array
    index_V: jax.Array


def make_pool(is_allowed_V: np.ndarray) -> Pool:
    """The pool of the items allowed as negatives; runs on the host, once.

    >>> make_pool(np.array([False, True, False, True])).item_A.tolist()
    [1, 3]

    Args:
      is_allowed_V: bool [V], one entry for each row of the item table. PAD (row 0) must
        not be allowed, and MASK should not. The paper's pool is
        `split.train_item_counts() > 0`.

    Raises:
      InputError: not a vector of bools, PAD is allowed, or nothing is.
    """
    is_allowed_V = np.asarray(is_allowed_V)
    if is_allowed_V.ndim != 1 or is_allowed_V.dtype != bool:
        raise InputError(
            "is_allowed_V must be one bool for each row of the item table: got "
            f"{is_allowed_V.dtype} {is_allowed_V.shape}. Compare counts with > 0."
        )
    if not is_allowed_V.any() or is_allowed_V[0]:
        raise InputError(
            "is_allowed_V must allow at least one item and never row 0, the padding: "
            f"got {is_allowed_V.sum()} allowed rows, row 0 is "
            f"{'' if is_allowed_V[0] else 'not '}among them. Allow items 1..num_items."
        )
    item_A = np.flatnonzero(is_allowed_V)
    index_V = np.where(is_allowed_V, np.cumsum(is_allowed_V) - 1, len(item_A))
    return Pool(jnp.asarray(item_A, jnp.int32), jnp.asarray(index_V, jnp.int32))


def unseen_count(seen_L: jax.Array, pool: Pool) -> jax.Array:
    """Number m of candidates of one sequence, |pool minus seen|.

    >>> pool = make_pool(np.array([False, True, True, True, True, True]))
    >>> int(unseen_count(jnp.array([2, 0, 2, 5]), pool))
    3

    Args:
      seen_L: int32 [L], ids in 0..V-1; 0 is padding, at any place; repeats count once,
        and items outside the pool do not count.
      pool: the items that may be negatives.

    Returns:
      int32, in 0..A.
    """
    return len(pool.item_A) - _num_seen(seen_index(seen_L, pool), pool)


@jax.jit
def unseen_counts(seen_BL: jax.Array, pool: Pool) -> jax.Array:
    """unseen_count of each row, int32 [B]: what check_enough takes."""
    return jax.vmap(unseen_count, in_axes=(0, None))(seen_BL, pool)


def check_enough(counts_B, user_ids, num_negatives: int) -> None:
    """Raises InputError unless each user has at least num_negatives candidates.

    Args:
      counts_B: int [B], the unseen_counts of the users.
      user_ids: [B], the caller's ids of the same users.
      num_negatives: how many are to be drawn without replacement.
    """
    counts_B = np.asarray(counts_B)
    num_short = int((counts_B < num_negatives).sum())
    if not num_short:
        return
    worst = int(counts_B.argmin())
    raise InputError(
        "num_negatives must be at most the number of items that a user has not seen: "
        f"got num_negatives={num_negatives}, but user {user_ids[worst]} has "
        f"{counts_B[worst]} candidates ({num_short} of {len(counts_B)} users have too "
        "few). Lower num_negatives, shorten what counts as seen, or use the full "
        "cross-entropy."
    )


def uniform_with_replacement(
    key: jax.Array, seen_L: jax.Array, pool: Pool, *, shape: tuple[int, ...]
) -> jax.Array:
    """Independent draws, each uniform over the unseen items of the pool.

    The relative bias of a draw is below m / 2^32.

    Args:
      key: PRNG key, consumed.
      seen_L: int32 [L], ids in 0..V-1; 0 is padding, repeats are allowed.
      pool: the items that may be negatives.
      shape: of the result, (positions, negatives of a position) for a BCE.

    Returns:
      int32 [shape], item ids; all 0 where nothing is unseen.

    Source: Klenitskiy & Vasilev, RecSys 2023, the negatives of the vanilla SASRec.
    """
    seen_index_L = seen_index(seen_L, pool)
    num_unseen = len(pool.item_A) - _num_seen(seen_index_L, pool)
    rank = jax.random.randint(key, shape, 0, num_unseen, jnp.int32)
    return _unseen_item(rank, seen_index_L, pool)


def uniform_without_replacement(
    key: jax.Array, seen_L: jax.Array, pool: Pool, *, num_negatives: int
) -> jax.Array:
    """A uniform subset of S unseen items of the pool, all distinct.

    The order is that of a random permutation: the first j are a uniform j-subset for
    every j (as far as swap_or_not is one). Work is O(S log L) after one sort of the
    seen items; with S above m / 2, uniform_complement draws the same law with less.

    Args:
      key: PRNG key, consumed.
      seen_L: int32 [L], ids in 0..V-1; 0 is padding, repeats are allowed.
      pool: the items that may be negatives.
      num_negatives: S, in 1..A.

    Returns:
      int32 [S], item ids. With m < S, the m unseen items and then 0s: refuse such users
      at start-up with check_enough.

    Raises:
      InputError: S is not in 1..A.

    Source: Klenitskiy & Vasilev, RecSys 2023, the negatives of SASRec+ 3000.
    """
    check_num_negatives(num_negatives, pool)
    seen_index_L = seen_index(seen_L, pool)
    num_unseen = len(pool.item_A) - _num_seen(seen_index_L, pool)
    slot_S = jnp.arange(num_negatives, dtype=jnp.int32)
    rank_S = swap_or_not(key, slot_S, num_unseen)
    item_S = _unseen_item(rank_S, seen_index_L, pool)
    return jnp.where(slot_S < num_unseen, item_S, 0)


def uniform_complement(
    key: jax.Array,
    seen_L: jax.Array,
    pool: Pool,
    *,
    num_negatives: int,
    size: int | None = None,
) -> jax.Array:
    """What a uniform subset of S unseen items of the pool leaves out of the pool.

    These are the seen items of the pool and a uniform subset of m - S unseen ones,
    together A - S whatever m is. The pool without them has the law of
    uniform_without_replacement, and the cost is that of the smaller part. A seen item
    outside the pool is not listed: it is the pool that keeps it out.

    Args:
      key: PRNG key, consumed.
      seen_L: int32 [L], ids in 0..V-1; 0 is padding, repeats are allowed.
      pool: the items that may be negatives.
      num_negatives: S, in 1..m: refuse users with fewer unseen items at start-up with
        check_enough.
      size: entries of the result, A - S by default, which always suffices.

    Returns:
      int32 [size], A - S distinct item ids, the seen ones first, then 0s.

    Raises:
      InputError: S is not in 1..A, or size is below A - S.
    """
    check_num_negatives(num_negatives, pool)
    num_excluded = len(pool.item_A) - num_negatives
    size = num_excluded if size is None else size
    if size < num_excluded:
        raise InputError(
            f"size must be at least {num_excluded}, the {len(pool.item_A)} items of "
            f"the pool less num_negatives={num_negatives}: got {size}. Leave size out."
        )
    seen_index_L = seen_index(seen_L, pool)
    num_seen = _num_seen(seen_index_L, pool)
    slot = jnp.arange(size, dtype=jnp.int32)
    rank = swap_or_not(
        key, jnp.maximum(slot - num_seen, 0), len(pool.item_A) - num_seen
    )
    seen_item = _item(seen_index_L.at[slot].get(mode="clip"), pool)
    item = jnp.where(slot < num_seen, seen_item, _unseen_item(rank, seen_index_L, pool))
    return jnp.where(slot < num_excluded, item, 0)


def swap_or_not(key: jax.Array, x: jax.Array, m: jax.Array | int) -> jax.Array:
    """Images of x under a pseudorandom permutation of 0..m-1, O(1) work for each.

    Each round pairs x with (k - x) mod m, for a random k, and a hash of the larger of
    the two says whether both stay or swap. It is made for statistics, not for secrecy.

    Args:
      key: PRNG key, consumed; it names the permutation.
      x: int32, any shape, in 0..m-1.
      m: int32 scalar below 2^31, may be traced.

    Returns:
      int32 of the shape of x, in 0..m-1, distinct where x is.

    Source: Hoang, Morris, Rogaway, CRYPTO 2012, figure 1. The deviation: a 32-bit hash
    keyed with 64 random bits a round is the round function, and k has a relative bias
    below m / 2^32.
    """
    m = jnp.asarray(m, jnp.uint32)
    bits = jax.random.bits(key, (NUM_ROUNDS, 3), jnp.uint32)

    def swap(x, bits):
        difference = bits[0] % m - x
        # A negative difference has wrapped to a huge one, and adding m brings it back.
        partner = jnp.minimum(difference, difference + m)
        is_swapped = _bit(jnp.maximum(x, partner), bits[1:])
        return jnp.where(is_swapped, partner, x), None

    # A loop over rounds beats one fused body on CPU: its state stays in cache.
    x, _ = jax.lax.scan(swap, x.astype(jnp.uint32), bits)
    return x.astype(jnp.int32)


def _bit(x: jax.Array, salts: jax.Array) -> jax.Array:
    """A pseudorandom bit of each uint32, by multiplications and shifts."""
    x = (x ^ salts[0]) * jnp.uint32(0x85EBCA6B)
    x = ((x ^ (x >> 15)) + salts[1]) * jnp.uint32(0xC2B2AE35)
    x = (x ^ (x >> 13)) * jnp.uint32(0x9E3779B1)
    return x >> 31 == 1


def check_num_negatives(num_negatives: int, pool: Pool) -> None:
    """Raises InputError unless the pool has that many items."""
    if not 1 <= num_negatives <= len(pool.item_A):
        raise InputError(
            f"num_negatives must be in 1..{len(pool.item_A)}, the items that may be "
            f"negatives: got {num_negatives}. Change num_negatives."
        )


def seen_index(seen_L: jax.Array, pool: Pool) -> jax.Array:
    """Places in the pool of the distinct seen items, ascending, then A's."""
    index_L = jnp.sort(pool.index_V[seen_L])
    is_repeat_L = jnp.diff(index_L, prepend=-1) == 0
    return jnp.sort(jnp.where(is_repeat_L, len(pool.item_A), index_L))


def _num_seen(seen_index_L: jax.Array, pool: Pool) -> jax.Array:
    return jnp.sum(seen_index_L < len(pool.item_A), dtype=jnp.int32)


def _unseen_item(rank: jax.Array, seen_index_L: jax.Array, pool: Pool) -> jax.Array:
    """The rank-th unseen item of the pool, counted from 0; 0 when there are fewer."""
    num_pool = len(pool.item_A)
    num_unseen_before_L = jnp.where(
        seen_index_L < num_pool,
        seen_index_L - jnp.arange(len(seen_index_L), dtype=jnp.int32),
        num_pool,
    )
    num_seen_before = jnp.searchsorted(
        num_unseen_before_L, rank, side="right", method="scan_unrolled"
    )
    return _item(rank + num_seen_before, pool)


def _item(index: jax.Array, pool: Pool) -> jax.Array:
    return pool.item_A.at[index].get(mode="fill", fill_value=0)
