"""What a config calls a loss: a loss function with the candidates it needs.

An `Objective` pairs a function of `losses` with the draw from `negatives` that feeds
it. A user's own loss is a function that returns one, named as "module:function" in the
config; its keyword arguments are the config's section `loss`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import hands, losses, negatives
from jaxrec.errors import InputError

Array = jax.Array


class Items(NamedTuple):
    """What there is to draw from, on the device.

    is_item_V: bool, True for the rows of the item table that are items (not PAD, MASK).
    pool: the items that may be negatives: those of the training part.
    """

    is_item_V: Array
    pool: negatives.Pool


@dataclasses.dataclass(frozen=True)
class TakesPacked:
    """A loss that can take `losses.Packed` for hidden_BLD, and is given them."""

    loss: Callable[..., tuple[Array, Array]]

    def __call__(self, hidden: Array | losses.Packed, *rest) -> tuple[Array, Array]:
        return self.loss(hidden, *rest)


class Objective(NamedTuple):
    """A loss and its candidates.

    candidates: (key, target_BL, seen_BX, items) -> Candidates, pure.
    loss: (hidden_BLD, table_VD, target_BL, weight_BL, candidates) -> (sum, weight);
      see `TakesPacked` for a faster one.
    num_negatives: distinct negatives that every sequence must have, 0 if none.
    exclude: whose items are no negatives: "window" or "history".
    """

    candidates: Callable[..., Any]
    loss: Callable[..., tuple[Array, Array]]
    num_negatives: int = 0
    exclude: str = "window"


def ce(
    *,
    exclude_window: bool = False,
    include_padding: bool = False,
    dtype: str = "float32",
    score_dtype: str = "float32",
) -> Objective:
    """Full softmax cross-entropy over the catalogue.

    Args:
      exclude_window: leave the other items of a sequence's own window out of its
        denominator, as the sampled loss does and the test's filter will.
      include_padding: let PAD (and MASK) compete, as in the paper's code.
      dtype: "float32", or "bfloat16" for the matmuls of the gradients: faster where the
        processor multiplies it fast (with AMX, which Linux' `lscpu` names amx_bf16, or
        a Zen 5), slower where it does not. What that changes is told in
        `softmax.loss_sum`.
      score_dtype: "bfloat16" for the matmul of the scores, on the same processors: each
        is then that of a hidden state and a row rounded to 8 bits. With "float32" they
        are of float32 factors, or nearly so if `dtype` is bfloat16.
    """
    loss = functools.partial(losses.ce, **_checked_dtypes(dtype, score_dtype))

    def candidates(key, target_BL, seen_BX, items: Items) -> losses.Catalogue:
        del key, target_BL  # full CE draws nothing
        allowed_V = items.is_item_V | include_padding
        return losses.Catalogue(allowed_V, seen_BX if exclude_window else None)

    return Objective(candidates, TakesPacked(loss))


def sampled_ce(
    *,
    num_negatives: int = 3000,
    exclude: str = "window",
    share: int = 1,
    draw: str = "apart",
    dtype: str = "float32",
    score_dtype: str = "float32",
) -> Objective:
    """Softmax cross-entropy against negatives shared by a sequence's positions.

    Args:
      num_negatives: S, drawn uniformly without replacement for each sequence from the
        items of the training part that it has not seen.
      exclude: "window", the items of the sequence's window (the paper's rule), or
        "history", all of the user's training items.
      share: sequences that share one set, drawn from the whole pool; an item of it that
        a sequence has seen does not compete with that sequence. With 1, the paper's
        rule, each sequence has S items of its own. Larger sets of a few, or one for a
        whole batch, gather and add up far fewer rows of a large table.
      draw: "apart", the paper's rule, every set by itself; or "dealt", all of a batch
        from one shuffle, each of the same law and not independent of the others: see
        `hands.deal`. That pays where the sets of a batch hold each item several times,
        and a sequence has many more negatives than items that are excluded: a step of
        Beauty takes half the time with 3000, and with 300 as long. Where S is more than
        half of the pool, sets are drawn apart.
      dtype, score_dtype: as in `ce`.
    """
    loss = functools.partial(losses.sampled_ce, **_checked_dtypes(dtype, score_dtype))
    check_exclude(exclude)
    _check_num_negatives(num_negatives)
    if share < 1:
        raise InputError(f"loss.share must be at least 1: got {share}.")
    if draw not in ("apart", "dealt"):
        raise InputError(f"loss.draw must be 'apart' or 'dealt': got {draw!r}.")
    if draw == "dealt" and share > 1:
        raise InputError(
            "loss.draw=dealt gives each sequence a set of its own, loss.share one to "
            f"several: got both, loss.share={share}. Leave one out."
        )

    def candidates(key, target_BL, seen_BX, items: Items):
        del target_BL
        if share > 1:
            return _shared(key, seen_BX, items.pool, num_negatives, share)
        num_pool = len(items.pool.item_A)
        if draw == "dealt" and 2 * num_negatives <= num_pool:
            return hands.deal(key, seen_BX, items.pool, num_negatives=num_negatives)
        keys_B = jax.random.split(key, seen_BX.shape[0])
        if 2 * num_negatives > num_pool:
            # Most of the pool: drawing the few that are left out is cheaper, and so is
            # the loss, which needs no gather.
            excluded_BX = jax.vmap(
                lambda key, seen_X: negatives.uniform_complement(
                    key, seen_X, items.pool, num_negatives=num_negatives
                )
            )(keys_B, seen_BX)
            is_pool_V = items.pool.index_V < num_pool
            return losses.Catalogue(is_pool_V, excluded_BX)
        negative_GS = jax.vmap(
            lambda key, seen_X: negatives.uniform_without_replacement(
                key, seen_X, items.pool, num_negatives=num_negatives
            )
        )(keys_B, seen_BX)
        return losses.Shared(negative_GS)

    return Objective(candidates, TakesPacked(loss), num_negatives, exclude)


def _shared(
    key: Array, seen_BX: Array, pool: negatives.Pool, num_negatives: int, share: int
) -> losses.Shared:
    """A set for every `share` sequences, less what each of them has seen of it."""
    num_sets = max(1, len(seen_BX) // share)
    if share < len(seen_BX) and len(seen_BX) % share:
        raise InputError(
            f"loss.share must divide train.batch_size, {len(seen_BX)}: got {share}."
        )
    nothing_1 = jnp.zeros((1,), jnp.int32)
    negative_GS = jax.vmap(
        lambda key: negatives.uniform_without_replacement(
            key, nothing_1, pool, num_negatives=num_negatives
        )
    )(jax.random.split(key, num_sets))
    seen_GX = seen_BX.reshape(num_sets, -1)

    def places(sets) -> Array:
        negative_S, seen_X = sets
        place_V = jnp.full(pool.index_V.shape, num_negatives, jnp.int32)
        place_V = place_V.at[negative_S].set(jnp.arange(num_negatives, dtype=jnp.int32))
        # PAD is in no set.
        return place_V[seen_X]

    # One set after another: a table of places is as long as the catalogue.
    dropped_GX = jax.lax.map(places, (negative_GS, seen_GX))
    return losses.Shared(negative_GS, dropped_GX.reshape(seen_BX.shape))


def bce(*, num_negatives: int = 1, exclude: str = "window") -> Objective:
    """Binary cross-entropy with negatives of each position's own.

    Args:
      num_negatives: S, drawn uniformly with replacement for each position.
      exclude: as in `sampled_ce`.
    """
    check_exclude(exclude)
    draw = _separate(num_negatives)
    loss = TakesPacked(losses.bce)
    return Objective(draw, loss, min(1, num_negatives), exclude)


def gbce(
    *, num_negatives: int = 256, calibration: float = 0.75, exclude: str = "window"
) -> Objective:
    """Generalised binary cross-entropy (gSASRec).

    Args:
      num_negatives: S, drawn uniformly with replacement for each position.
      calibration: t, from 0 (plain BCE) to 1 (calibrated probabilities).
      exclude: as in `sampled_ce`.
    """
    check_exclude(exclude)
    if not 0 <= calibration <= 1:
        raise InputError(f"loss.calibration must be in [0, 1]: got {calibration}.")

    def loss(hidden, table_VD, target_BL, weight_BL, drawn):
        candidates, num_pool = drawn
        beta = losses.gbce_beta(num_negatives, num_pool - 1, calibration)
        return losses.gbce(
            hidden, table_VD, target_BL, weight_BL, candidates, beta=beta
        )

    draw = _separate(num_negatives)

    def candidates(key, target_BL, seen_BX, items: Items):
        num_pool = len(items.pool.item_A)
        if num_negatives >= num_pool:
            raise InputError(
                "loss.num_negatives of gbce must be below the number of items in the "
                f"training part, {num_pool}: got {num_negatives}. Lower it."
            )
        return draw(key, target_BL, seen_BX, items), jnp.float32(num_pool)

    return Objective(candidates, TakesPacked(loss), min(1, num_negatives), exclude)


def _separate(num_negatives: int) -> Callable[..., losses.Separate]:
    _check_num_negatives(num_negatives)

    def candidates(key, target_BL, seen_BX, items: Items) -> losses.Separate:
        keys_B = jax.random.split(key, seen_BX.shape[0])
        shape = (target_BL.shape[1], num_negatives)
        negative_BLS = jax.vmap(
            lambda key, seen_X: negatives.uniform_with_replacement(
                key, seen_X, items.pool, shape=shape
            )
        )(keys_B, seen_BX)
        return losses.Separate(negative_BLS)

    return candidates


def _check_num_negatives(num_negatives: int) -> None:
    if num_negatives < 1:
        raise InputError(f"loss.num_negatives must be at least 1: got {num_negatives}.")


def _checked_dtypes(dtype: str, score_dtype: str) -> dict[str, str]:
    dtypes = {"dtype": dtype, "score_dtype": score_dtype}
    for name, given in dtypes.items():
        if given not in ("float32", "bfloat16"):
            raise InputError(
                f"loss.{name} must be 'float32' or 'bfloat16': got {given!r}."
            )
    return dtypes


def check_exclude(exclude: str) -> None:
    """Raises InputError unless `exclude` names a rule."""
    if exclude not in ("window", "history"):
        raise InputError(
            f"loss.exclude must be 'window' or 'history': got {exclude!r}."
        )


OBJECTIVES = {"ce": ce, "sampled_ce": sampled_ce, "bce": bce, "gbce": gbce}
