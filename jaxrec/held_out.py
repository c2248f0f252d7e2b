"""A held-out part of a run, ranked: what its metrics are made of, row by row."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxrec import beyond, metrics, popularity, sampled, slices
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment
from jaxrec.ranking import Ranks
from jaxrec.recommender import Recommender

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("valid", "test")
LEVEL = 0.95  # of every interval


class HeldOut:
    """A held-out part of an experiment, ranked by a model.

    Args:
      experiment: see `experiment.build`.
      params: the encoder's parameters.
      part: "test" or "valid"; all of its rows.
      beyond_k: length of the lists that the metrics beyond the rank are of, at least 2;
        None for none of these.

    Attributes:
      split, holdout: what is ranked.
      ranks: of the model.
      names: of the run's metrics.

    Raises:
      InputError: no such part, or a length outside 2..num_items.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: Any,
        *,
        part: str = "test",
        beyond_k: int | None = None,
    ):
        if part not in PARTS:
            raise InputError(f"part must be one of {', '.join(PARTS)}: got {part!r}.")
        num_items = experiment.split.dataset.num_items
        if beyond_k is not None and not 2 <= beyond_k <= num_items:
            raise InputError(
                f"metrics beyond the rank need lists of 2..{num_items} items: got "
                f"{beyond_k}. Two at least, to be diverse or not."
            )
        self._experiment, self._params, self._beyond_k = experiment, params, beyond_k
        self.split = experiment.split
        self.holdout = getattr(experiment.split, part)
        self.names = experiment.evaluation.reported
        chunks = experiment.evaluator.cut(self.holdout)
        self.ranks: Ranks = experiment.evaluator.ranks(params, chunks)

    def ranks_by(self, *, with_sampled: bool = False) -> dict[str, np.ndarray]:
        """Ranks of the rows by each way of ranking; see `evaluate`."""
        floor = popularity.ranks(self.split, self.holdout)
        is_filtered = self._experiment.evaluation.filter_seen
        laws = sampled.LAWS if with_sampled else ()
        return {
            "filtered": self.ranks.filtered,
            "unfiltered": self.ranks.unfiltered,
            "popularity": floor.filtered if is_filtered else floor.unfiltered,
            **{
                f"sampled_{law}": sampled.sampled_ranks(
                    self._experiment, self._params, self.holdout, law=law
                )
                for law in laws
            },
        }

    def values(self, rank_N: np.ndarray) -> dict[str, np.ndarray]:
        """The run's metrics of each row, float64 [N] by name."""
        parsed = {name: metrics.parse(name) for name in self.names}
        placed_N = jnp.asarray(metrics.uncut(rank_N, self.split.dataset.num_items))
        return {
            name: np.asarray(metric_fn(placed_N, k), float)
            for name, (metric_fn, k) in parsed.items()
        }

    @cached_property
    def own_values(self) -> dict[str, np.ndarray]:
        """Metrics of each row as the run is judged, those of its list too."""
        is_filtered = self._experiment.evaluation.filter_seen
        ranks = self.ranks
        values = self.values(ranks.filtered if is_filtered else ranks.unfiltered)
        return values | (self.list_values["model"] if self._beyond_k else {})

    @cached_property
    def _recommender(self) -> Recommender:
        return Recommender(self._experiment, self._params)

    @cached_property
    def _lists(self) -> dict[str, np.ndarray]:
        """item_NK by "model" and "popularity"."""
        assert self._beyond_k is not None, "lists have a length"
        floor = Recommender(*popularity.as_experiment(self._experiment))
        filter_seen = self._experiment.evaluation.filter_seen
        result = {}
        for name, by in (("model", self._recommender), ("popularity", floor)):
            _, result[name] = by.lists(
                self.holdout, k=self._beyond_k, filter_seen=filter_seen
            )
        return result

    @cached_property
    def list_values(self) -> dict[str, dict[str, np.ndarray]]:
        """Metrics beyond the rank of each row's list, by "model" and "popularity"."""
        k, count_V = self._beyond_k, self.split.train_item_counts()
        item_VD = self._recommender.item_embeddings().vector_ND
        vector_VD = np.pad(item_VD, ((1, 0), (0, 0)))
        return {
            name: {
                f"novelty@{k}": beyond.novelty(item_NK, count_V),
                f"mean_popularity@{k}": beyond.mean_popularity(item_NK, count_V),
                f"diversity@{k}": beyond.diversity(item_NK, vector_VD),
            }
            for name, item_NK in self._lists.items()
        }

    @cached_property
    def catalogue_values(self) -> dict[str, dict[str, float]]:
        """Metrics of all lists together, by "model" and "popularity"."""
        k, num_items = self._beyond_k, self.split.dataset.num_items
        return {
            name: {
                f"coverage@{k}": beyond.coverage(item_NK, num_items),
                f"gini@{k}": beyond.gini(item_NK, num_items),
            }
            for name, item_NK in self._lists.items()
        }

    def interval(self, value_N: np.ndarray) -> dict[str, float]:
        """Of a value of the rows: the mean, and its bounds "low" and "high"."""
        return slices.interval(value_N, self.holdout.user, level=LEVEL)._asdict()

    def sliced(
        self, num_slices: int = 4, *, edges: Mapping[str, Sequence[float]] | None = None
    ) -> list[dict[str, Any]]:
        """The metrics by history length and by popularity of the target.

        Args:
          num_slices: of nearly equal size.
          edges: given ones in place of them, by a key of `slices.VALUES`.

        Returns:
          As `slices.means`, for both one after the other.

        Raises:
          InputError: num_slices < 1, or edges that do not increase.
        """
        rows = []
        for by, value in slices.VALUES.items():
            of_N = value(self.split, self.holdout)
            edge_E = (edges or {}).get(by)
            if edge_E is None:
                edge_E = slices.quantile_edges(of_N, num_slices)
            rows += slices.means(
                by, of_N, edge_E, self.own_values, self.holdout.user, level=LEVEL
            )
        return rows

    def frame(self) -> "pd.DataFrame":
        """A row for each held-out row, in the caller's ids.

        Returns:
          Columns user, target, history_length, target_popularity (training
          interactions), rank (among the items that the user has not had; num_items + 1
          is a miss), rank_unfiltered, ties, and each metric of `own_values`.
        """
        import pandas as pd

        dataset, holdout = self.split.dataset, self.holdout
        return pd.DataFrame(
            {
                "user": dataset.user_ids[holdout.user],
                "target": dataset.item_ids[holdout.target - 1],
                **{
                    name: value(self.split, holdout)
                    for name, value in slices.VALUES.items()
                },
                "rank": self.ranks.filtered,
                "rank_unfiltered": self.ranks.unfiltered,
                "ties": self.ranks.ties,
                **self.own_values,
            }
        )
