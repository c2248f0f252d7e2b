"""Steps over the histories of many users, in chunks of few shapes: few compilations.

`run` cuts rows into chunks of nearly equal work, as the evaluator does, and rounds what
a compiled program depends on; the steps are pure functions of one chunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import evaluator, ranking
from jaxrec.batches import Log
from jaxrec.data import Dataset, Holdout, Split
from jaxrec.experiment import Experiment
from jaxrec.ranking import Rows, Seen
from jaxrec.topk import top_items

Array = jax.Array

# Rows of the encoder and seen items of a chunk, at the least: a short request is
# compiled once, not for every length of a history.
_LEAST_ROWS, _LEAST_CAPACITY = 4, 2**10


class Source(NamedTuple):
    """Histories to recommend from.

    split: its log has them; what it holds out does not matter.
    log: the same on the device.
    is_first_I: see `ranking.seen_items`.
    """

    split: Split
    log: Log
    is_first_I: Array

    def whole(self, user_N: np.ndarray) -> Holdout:
        """Rows whose history is all that a user has."""
        end_N = self.split.dataset.offsets[user_N + 1]
        return Holdout(user_N, end_N, np.zeros(len(user_N), np.int32))

    def is_empty(self, holdout: Holdout) -> np.ndarray:
        """Whether a row has no history: bool [N]."""
        return holdout.end == self.split.dataset.offsets[holdout.user]


def known_users(experiment: Experiment) -> Source:
    """The experiment's own log."""
    # Every interaction a first one: to leave out an item twice does no harm.
    is_first_I = jnp.ones(experiment.split.dataset.num_interactions, bool)
    return Source(experiment.split, experiment.log, is_first_I)


def new_users(dataset: Dataset) -> Source:
    """The log of users who are not in the experiment's, in its items."""
    nothing = Holdout(np.zeros(0, np.int32), np.zeros(0, int), np.zeros(0, np.int32))
    split = Split(dataset, dataset.offsets[1:], valid=nothing, test=nothing)
    size = _rounded(max(dataset.num_interactions, _LEAST_CAPACITY))
    item_I = np.pad(dataset.items, (0, size - dataset.num_interactions))
    # A step reads the rows' own bounds, never the offsets.
    log = Log(jnp.asarray(item_I), jnp.zeros(1, jnp.int32))
    return Source(split, log, jnp.ones(size, bool))


def run(
    step: Callable,
    experiment: Experiment,
    params: Any,
    source: Source,
    holdout: Holdout,
) -> list[np.ndarray]:
    """What a step gives for each row of the holdout, in its order.

    Args:
      step: `top_step` or `hidden_step`, jitted, with what is its own filled in.
    """
    recipe, batch_size = experiment.recipe, experiment.evaluation.batch_size
    chunks = evaluator.cut(
        source.split,
        _filled(holdout, batch_size),
        batch_size=batch_size,
        max_length=recipe.max_length,
        is_cloze=recipe.encoder.objective == "cloze",
    )
    step = partial(
        step,
        params,
        source.log,
        source.is_first_I,
        encoder=recipe.encoder,
        max_length=recipe.max_length,
        num_rows=_rounded(max(chunks.num_rows, _LEAST_ROWS)),
        capacity=_rounded(max(chunks.capacity, _LEAST_CAPACITY)),
    )
    pending = [
        step(Rows(*(x[c] for x in chunks.rows)))
        for c in range(len(chunks.rows.start_B))
    ]
    is_row_N = chunks.order_N >= 0
    results = []
    for parts in zip(*jax.device_get(pending), strict=True):
        flat_N = np.concatenate(parts)
        result_N = np.empty_like(flat_N)
        result_N[chunks.order_N[is_row_N]] = flat_N[is_row_N]
        results.append(result_N[: len(holdout.user)])
    return results


def top_step(
    params: Any,
    log: Log,
    is_first_I: Array,
    rows: Rows,
    is_allowed_V: Array,
    *,
    encoder: Any,
    max_length: int,
    num_rows: int,
    capacity: int,
    filter_seen: bool,
    k: int,
) -> tuple[Array, Array]:
    """The top k of one chunk of rows; arguments as in `ranking.rank_step`. Pure."""
    hidden_BD = ranking.last_hidden(
        encoder, params, log, rows, max_length=max_length, num_rows=num_rows
    )
    table_VD = encoder.apply({"params": params}, method="table")
    if filter_seen:
        seen = ranking.seen_items(log, is_first_I, rows, capacity=capacity)
    else:
        zero_1 = jnp.zeros(1, jnp.int32)
        seen = Seen(zero_1, zero_1, zero_1 > 0)
    cuts = evaluator.top_cuts(len(table_VD), len(hidden_BD))
    return top_items(hidden_BD, table_VD, is_allowed_V, seen, k=k, **cuts)


def hidden_step(
    params: Any,
    log: Log,
    is_first_I: Array,
    rows: Rows,
    *,
    encoder: Any,
    max_length: int,
    num_rows: int,
    capacity: int,
) -> tuple[Array]:
    """(hidden_BD,), what `top_step` scores the items by. Pure."""
    del is_first_I, capacity  # nothing is left out
    hidden_BD = ranking.last_hidden(
        encoder, params, log, rows, max_length=max_length, num_rows=num_rows
    )
    return (hidden_BD,)


def neighbours_step(
    table_VD: Array, is_allowed_V: Array, item_B: Array, *, k: int
) -> tuple[Array, Array]:
    """The k highest dot products of each item with others than itself. Pure."""
    row_B = jnp.arange(len(item_B), dtype=jnp.int32)
    itself = Seen(row_B, item_B, item_B > 0)
    cuts = evaluator.top_cuts(len(table_VD), len(item_B))
    return top_items(table_VD[item_B], table_VD, is_allowed_V, itself, k=k, **cuts)


_SHAPES = ("encoder", "max_length", "num_rows", "capacity")
jitted_top = jax.jit(top_step, static_argnames=(*_SHAPES, "filter_seen", "k"))
jitted_hidden = jax.jit(hidden_step, static_argnames=_SHAPES)
_jitted_neighbours = jax.jit(neighbours_step, static_argnames="k")


def neighbours(
    table_VD: Array, is_allowed_V: Array, item_N: np.ndarray, *, k: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours_step` of any number of items: (score_NK, item_NK)."""
    size = _batch(len(item_N), batch_size)
    fill = max(size, -(-len(item_N) // size) * size) - len(item_N)
    item_CB = np.pad(item_N, (0, fill)).astype(np.int32).reshape(-1, size)
    pending = [
        _jitted_neighbours(table_VD, is_allowed_V, item_B, k=k) for item_B in item_CB
    ]
    score_NK, near_NK = (
        np.concatenate(parts)[: len(item_N)]
        for parts in zip(*jax.device_get(pending), strict=True)
    )
    return score_NK, near_NK


@jax.jit
def unit_rows(table_VD: Array) -> Array:
    """Each row divided by its norm; rows of zeros as they are."""
    norm_V1 = jnp.linalg.norm(table_VD, axis=1, keepdims=True)
    return table_VD / jnp.where(norm_V1 > 0, norm_V1, 1)


def _filled(holdout: Holdout, batch_size: int) -> Holdout:
    """Filled up with rows of no history, so that chunks have one of few sizes."""
    num_rows = len(holdout.user)
    size = _batch(num_rows, batch_size)
    fill = (0, max(size, -(-num_rows // size) * size) - num_rows)
    # The first user's history begins, and here ends, at 0.
    return Holdout(*(np.pad(x_N, fill) for x_N in holdout))


def _batch(num_rows: int, most: int) -> int:
    """Rows of a chunk: a power of four, or the most; short requests share programs.

    >>> [_batch(num_rows, most=200) for num_rows in (0, 1, 5, 17, 65, 1000)]
    [4, 4, 16, 64, 200, 200]
    """
    power = 4
    while power < num_rows:
        power *= 4
    return min(power, most)


def _rounded(size: int) -> int:
    """Up to one of four sizes between powers of two: at most a quarter more.

    >>> [_rounded(size) for size in (5, 17, 100, 1025)]
    [5, 20, 112, 1280]
    """
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step
