"""Sampled metrics: the rank among 100 drawn items. Unreliable; for contrast only.

With 100 negatives in place of the catalogue the numbers are several times higher and
may order models differently from the full ranking: Krichene & Rendle, KDD 2020. The
paper contrasts both, and so does `python -m jaxrec.evaluate --sampled`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import batches, negatives, ranking
from jaxrec.batches import Log
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment
from jaxrec.random import stream
from jaxrec.ranking import Rows

Array = jax.Array

LAWS = ("uniform", "popular")


def popular_without_replacement(
    key: Array, seen_L: Array, count_V: Array, *, num_negatives: int
) -> Array:
    """S unseen items, one after another with probability proportional to their counts.

    The S largest of log count + Gumbel noise have that law (Gumbel-top-k: Yellott,
    J. Math. Psychology 1977). Items of count 0 and PAD are never drawn.

    Args:
      key: PRNG key, consumed.
      seen_L: int32, ids that are not drawn; 0 is padding.
      count_V: float32, training interactions of each row of the item table.
      num_negatives: S.

    Returns:
      int32 [S].
    """
    noise_V = jax.random.gumbel(key, count_V.shape)
    score_V = jnp.where(count_V > 0, jnp.log(count_V) + noise_V, -jnp.inf)
    score_V = score_V.at[seen_L].set(-jnp.inf).at[0].set(-jnp.inf)
    return jax.lax.top_k(score_V, num_negatives)[1].astype(jnp.int32)


def sampled_ranks(
    experiment: Experiment,
    params: Any,
    holdout: Holdout,
    *,
    law: str = "uniform",
    num_negatives: int = 100,
) -> np.ndarray:
    """1 + #(drawn items that score at least as high as the target): int32 [N].

    Items are drawn for each row without replacement from the training items outside the
    user's whole history, as in the paper's code.

    Args:
      law: "uniform", or "popular" for in proportion to training counts.
      num_negatives: items drawn for each row.

    Raises:
      InputError: an unknown law, or a row with fewer candidates.
    """
    if law not in LAWS:
        raise InputError(f"the law must be one of {', '.join(LAWS)}: got {law!r}.")
    split, recipe = experiment.split, experiment.recipe
    num_pool = len(experiment.items.pool.item_A)
    if num_pool < num_negatives:
        raise InputError(
            f"sampled metrics draw {num_negatives} items for each row: the training "
            f"part of {split.dataset.name} has {num_pool}. Leave out --sampled "
            "(in Python with_sampled=True)."
        )
    start_N = split.dataset.offsets[holdout.user]
    longest = int((holdout.end - start_N).max())
    chunks = experiment.evaluator.cut(holdout)
    counts_V = np.zeros(len(experiment.items.is_item_V), np.float32)
    counts_V[: split.dataset.num_items + 1] = split.train_item_counts()
    count_V = jnp.asarray(counts_V)

    @jax.jit
    def step(params: Any, log: Log, rows: Rows, key: Array):
        # Both as arguments: a constant would be copied into the program.
        hidden_BD = ranking.last_hidden(
            experiment.encoder,
            params,
            log,
            rows,
            max_length=recipe.max_length,
            num_rows=chunks.num_rows,
        )
        table_VD = experiment.encoder.apply({"params": params}, method="table")
        seen_BL = batches.windows(log, rows.start_B, rows.end_B, length=longest)
        # The target is not a negative of itself.
        seen_BL = jnp.concatenate([seen_BL, rows.target_B[:, None]], axis=1)
        if law == "uniform":
            draw = partial(negatives.uniform_without_replacement, pool=pool)
        else:
            draw = partial(popular_without_replacement, count_V=count_V)
        keys_B = jax.random.split(key, len(seen_BL))
        negative_BS = jax.vmap(
            lambda key, seen_L: draw(key, seen_L, num_negatives=num_negatives)
        )(keys_B, seen_BL)
        item_BS = jnp.concatenate([rows.target_B[:, None], negative_BS], axis=1)
        score_BS = jnp.einsum(
            "bd,bsd->bs", hidden_BD, table_VD[item_BS], precision="highest"
        )
        at_least_BS = score_BS[:, 1:] >= score_BS[:, :1]
        count_B = negatives.unseen_counts(seen_BL, pool)
        return 1 + at_least_BS.sum(axis=1, dtype=jnp.int32), count_B

    pool = experiment.items.pool
    key = stream(recipe.seed, f"sampled/{law}")
    rank_N, count_N = (np.zeros(len(start_N), np.int32) for _ in range(2))
    order_CB = chunks.order_N.reshape(chunks.rows.start_B.shape)
    for c, order_B in enumerate(order_CB):
        rows = Rows(*(x[c] for x in chunks.rows))
        for result_N, x_B in zip(
            (rank_N, count_N),
            step(params, experiment.log, rows, jax.random.fold_in(key, c)),
            strict=True,
        ):
            result_N[order_B[order_B >= 0]] = np.asarray(x_B)[order_B >= 0]
    negatives.check_enough(count_N, split.dataset.user_ids[holdout.user], num_negatives)
    return rank_N
