"""Popularity as a model, the floor of any other: it shows what is taken most often."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data import Holdout, Split, spans
from jaxrec.experiment import Experiment
from jaxrec.ranking import Ranks

_INTERACTIONS = 2**22  # of histories that are looked at at a time


@dataclasses.dataclass(frozen=True)
class Popularity:
    """An encoder without parameters of its own: one dimension, always 1.

    Its item table, which `params` is, holds the training interactions; so these are
    the scores of the items.
    """

    num_items: int
    objective = "next_item"

    def apply(
        self,
        variables: dict[str, Any],
        tokens_RT: jax.Array | None = None,
        *place_and_segment: jax.Array,
        method: str | None = None,
        train: bool = False,
    ) -> jax.Array:
        """As of a Linen module: the table, or hidden states."""
        del place_and_segment, train
        if method == "table":
            return variables["params"]
        assert tokens_RT is not None
        return jnp.ones((*tokens_RT.shape, 1))


def as_experiment(experiment: Experiment) -> tuple[Experiment, jax.Array]:
    """The experiment with popularity for its encoder, and its parameters."""
    encoder = Popularity(experiment.split.dataset.num_items)
    recipe = experiment.recipe._replace(encoder=encoder, max_length=1)
    count_V = jnp.asarray(experiment.split.train_item_counts(), jnp.float32)
    return dataclasses.replace(experiment, recipe=recipe), count_V[:, None]


def ranks(split: Split, holdout: Holdout) -> Ranks:
    """Ranks by the number of training interactions of an item, the floor of any model.

    The rules are those of `ranking`: ties count against the target, so rare items rank
    late. Items are sorted by their number once and a target is looked up among them, so
    that a row costs its history and not the catalogue.

    Returns:
      int32 NumPy arrays [N], in the holdout's order.
    """
    count_V = split.train_item_counts()
    num_items = len(count_V) - 1
    sorted_I = np.sort(count_V[1:])
    count_N = count_V[holdout.target]
    first_N = np.searchsorted(sorted_I, count_N, side="left")
    ties_N = np.searchsorted(sorted_I, count_N, side="right") - first_N - 1
    unfiltered_N = num_items - first_N
    seen_at_least_N, is_seen_N = _seen(split, holdout, count_V)
    filtered_N = np.where(is_seen_N, num_items + 1, unfiltered_N - seen_at_least_N)
    return Ranks(*(x.astype(np.int32) for x in (filtered_N, unfiltered_N, ties_N)))


def _seen(
    split: Split, holdout: Holdout, count_V: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row: items of its history that come as often as its target, at the least,
    and whether the target is one of them."""
    dataset = split.dataset
    start_N = dataset.offsets[holdout.user]
    length_N = holdout.end - start_N
    num_rows = len(start_N)
    at_least_N, is_seen_N = np.zeros(num_rows, np.int64), np.zeros(num_rows, bool)
    part_N = np.cumsum(length_N) // _INTERACTIONS
    for rows in np.split(np.arange(num_rows), np.flatnonzero(np.diff(part_N)) + 1):
        length_n = length_N[rows]
        row_H = np.repeat(rows, length_n)
        index_H = spans(start_N[rows], length_n)
        item_H, target_H = dataset.items[index_H], holdout.target[row_H]
        is_at_least_H = count_V[item_H] >= count_V[target_H]
        is_at_least_H &= dataset.is_first_I[index_H]
        at_least_N += np.bincount(row_H[is_at_least_H], minlength=num_rows)
        is_seen_N[row_H[item_H == target_H]] = True
    return at_least_N, is_seen_N
