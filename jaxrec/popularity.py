"""Popularity as a model: it shows the most popular items that a user has not had."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.experiment import Experiment


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
