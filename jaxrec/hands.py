"""Negatives dealt like cards: a set for each sequence, all from one shuffle.

Each set has the law of `negatives.uniform_without_replacement`. But those of sequences
that sit side by side have most of their items in common, so that a loss gathers these
once for several sequences: on Beauty, with 3000 for each of 128, a quarter of the rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import indices, negatives
from jaxrec.negatives import Pool

Array = jax.Array

# A row of the table that is gathered and added to takes as long on a CPU as so many
# scores with their gradients: fitted to steps of Beauty with 1, 4 and 8 hands together
# (benchmarks/LOG.md). Of other devices the same is assumed.
_SCORES_A_ROW = 56


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth
class Hands:
    """The sets of a batch, in the order of where they start.

    Places are those of item_A modulo A: a hand may go on from its end to its beginning.

    item_A: int32, the items of the pool, shuffled.
    sequence_B: int32, which sequence of the batch has the hand.
    start_B, end_B: int32, its first place, below A, and the one after its last.
    dropped_BX: int32, places from start_B on that are not of the hand, since the
      sequence has seen their items; -1 fills the rest.
    longest: end_B - start_B at the most.
    """

    item_A: Array
    sequence_B: Array
    start_B: Array
    end_B: Array
    dropped_BX: Array
    longest: int = dataclasses.field(metadata={"static": True})


def deal(key: Array, seen_BX: Array, pool: Pool, *, num_negatives: int) -> Hands:
    """A uniform subset of S unseen items of the pool for each sequence of a batch.

    The pool is shuffled, B places are spread evenly over it and taken by the sequences
    at random, and each has the first S items from its place on that it has not seen.

    Sets of a batch are not independent. Where nothing is seen and n = B S / A is whole,
    every item is in n of them, and two have S (n - 1) / (B - 1) items in common in the
    mean, where independent ones have S^2 / A. Of f_b added up over the items of set b,
    and over the batch, the variance is then

        S (A - S) / (A (A - 1)) (B sum_b |f_b|^2 - |sum_b f_b|^2) / (B - 1),

    f_b taken from its mean over the items: at the most B / (B - 1) times that of
    independent sets, and nothing where the f_b are alike.

    Args:
      key: PRNG key, consumed.
      seen_BX: int32, ids in 0..V-1; 0 is padding, repeats are allowed.
      pool: the items that may be negatives.
      num_negatives: S, in 1..A.

    Returns:
      The hands. One with m < S unseen items has these: refuse such users at start-up
      with `negatives.check_enough`.

    Raises:
      InputError: S is not in 1..A.

    Source: circular systematic sampling, from a list in random order (Murthy & Rao,
    "Systematic Sampling with Illustrative Examples", Handbook of Statistics 6, 1988).

    Two hands of two items, of four that nobody has seen:
    >>> pool = negatives.make_pool(np.arange(5) > 0)
    >>> found = deal(jax.random.key(0), jnp.zeros((2, 1), int), pool, num_negatives=2)
    >>> found.start_B.tolist(), found.end_B.tolist(), sorted(found.item_A.tolist())
    ([0, 2], [2, 4], [1, 2, 3, 4])
    """
    negatives.check_num_negatives(num_negatives, pool)
    (num_hands, num_seen), num_pool = seen_BX.shape, len(pool.item_A)
    of_pool, of_hands = jax.random.split(key)
    slot_A = jnp.arange(num_pool, dtype=jnp.int32)
    order_A = negatives.swap_or_not(of_pool, slot_A, num_pool)
    place_A = indices.inverse(order_A, num_pool)
    sequence_B = jax.random.permutation(of_hands, num_hands)
    # In 64 bits, before they are the program's.
    start_B = np.arange(num_hands, dtype=np.int64) * num_pool // num_hands
    start_B = jnp.asarray(start_B, jnp.int32)
    index_BX = jax.vmap(negatives.seen_index, in_axes=(0, None))(
        jnp.asarray(seen_BX)[sequence_B], pool
    )
    is_seen_BX = index_BX < num_pool
    ahead_BX = place_A.at[index_BX].get(mode="clip") - start_B[:, None]
    ahead_BX = jnp.where(ahead_BX < 0, ahead_BX + num_pool, ahead_BX)
    # The k-th of the seen items, in the order of their places, has its place less k of
    # unseen ones ahead of it, and is passed if that is fewer than S.
    place_BX = jnp.sort(jnp.where(is_seen_BX, ahead_BX, num_pool), axis=1)
    unseen_BX = place_BX - jnp.arange(num_seen, dtype=jnp.int32)[None]
    is_passed_BX = (place_BX < num_pool) & (unseen_BX < num_negatives)
    length_B = num_negatives + is_passed_BX.sum(axis=1, dtype=jnp.int32)
    return Hands(
        pool.item_A[order_A],
        sequence_B,
        start_B,
        start_B + jnp.minimum(length_B, num_pool),
        jnp.where(is_seen_BX, start_B[:, None] + ahead_BX, -1),
        longest=min(num_negatives + num_seen, num_pool),
    )


def together(num_hands: int, num_pool: int, longest: int, num_positions: int) -> int:
    """How many neighbouring hands to gather at once: u, a divisor of B.

    The union of u hands has S + (u - 1) A / B places, for hands of S. It is gathered
    B / u times, and scored for all N positions in the mean once: u has the least
    (S + (u - 1) A / B) (c B / u + N), where c scores cost what a row does.

    Args:
      num_hands: B; num_pool: A; longest: S, places of a hand at the most.
      num_positions: N, that may have a target. In a cloze task few of them have, and
        more hands at once would cost less.

    Returns:
      u, 1 for hands that do not overlap.

    Of Beauty, with 3000 and with 100 negatives:
    >>> together(128, 49_438, 3051, 800), together(128, 49_438, 151, 800)
    (8, 1)
    """
    divisors = [u for u in range(1, num_hands + 1) if num_hands % u == 0]

    def cost(size: int) -> int:
        num_rows = num_hands // size * _SCORES_A_ROW
        return span(size, num_hands, num_pool, longest) * (num_rows + num_positions)

    return min(divisors, key=cost)


def span(size: int, num_hands: int, num_pool: int, longest: int) -> int:
    """Places from the first of `size` neighbouring hands to the last, at the most."""
    return longest + -(-(size - 1) * num_pool // num_hands)
