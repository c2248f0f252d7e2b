"""A trained model in use: top k for known and new users, neighbours, embeddings.

All of it speaks in the caller's ids, is exact over the whole catalogue, and works
through users (or items) part by part, so that memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import histories as raw
from jaxrec import runs, serving
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment
from jaxrec.lookup import Lookup
from jaxrec.serving import Source

if TYPE_CHECKING:
    import pandas as pd

Array = jax.Array

# Where a recommendation comes from: column `source`.
SOURCES = ("model", "popularity")
MEASURES = ("cosine", "dot")

DEFAULT_K = 10

# Users whose recommendations are held as one DataFrame, and its rows, at the most.
_PART_USERS, _PART_ROWS = 2**14, 2**18


class Embeddings(NamedTuple):
    """Vectors and whose they are: id_N, the caller's ids; vector_ND, float32."""

    id_N: np.ndarray
    vector_ND: np.ndarray

    def to_frame(self) -> "pd.DataFrame":
        """Columns "0", "1", ..., one a dimension; the ids are the index."""
        import pandas as pd

        names = [str(d) for d in range(self.vector_ND.shape[1])]
        return pd.DataFrame(self.vector_ND, index=self.id_N, columns=names)


class Recommender:
    """What to show next by a trained model.

    Args:
      experiment: see `experiment.build`; its whole log is the users' history.
      params: the encoder's parameters.

    >>> recommender = Recommender.load("runs/ml-1m-sasrec_ce-seed0")  # doctest: +SKIP
    >>> recommender.recommend(users=[1, 2], k=3)                      # doctest: +SKIP
    >>> recommender.recommend(histories={"new": [260, 1196]}, k=3)    # doctest: +SKIP
    """

    def __init__(self, experiment: Experiment, params: Any):
        self._experiment, self._params = experiment, params
        dataset = experiment.split.dataset
        self._known = serving.known_users(experiment)
        self._users = Lookup(dataset.user_ids, "users")
        self._items = Lookup(dataset.item_ids, "items")

    @classmethod
    def load(
        cls, workdir: str | Path, options: Sequence[str] = (), *, frame: Any = None
    ) -> "Recommender":
        """The best epoch of a run; arguments as in `runs.load`."""
        return cls(*runs.load(workdir, options, frame=frame))

    def __repr__(self) -> str:
        config, dataset = self._experiment.config, self._experiment.split.dataset
        return (
            f"Recommender({config['model']['name']} on {dataset.name}: "
            f"{dataset.num_users:,} users, {dataset.num_items:,} items)"
        )

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        *,
        histories: Any = None,
        columns: Sequence[str] = (),
        k: int | None = None,
        filter_seen: bool | None = None,
        allowed: Iterable[Any] | None = None,
        forbidden: Iterable[Any] | None = None,
    ) -> "pd.DataFrame":
        """The k best items for each user after all that is known of them.

        A user without any item that the model knows is shown the items with the most
        training interactions, marked in column `source`.

        Args:
          users: the caller's ids; None for every user of the log, if there are no
            histories.
          histories: of users who need not be in the log: a mapping of an id to a list
            of items, oldest first, or a table of interactions, in memory or a file.
            They are taken in place of what the log has.
          columns: of the histories' table: see `histories.read`.
          k: items for each user, fewer where fewer are left; None for 10, or for all
            where the log has fewer.
          filter_seen: leave out what the user has had already; None for as the run was
            judged, its eval.filter_seen.
          allowed: the items that may be recommended; None for all.
          forbidden: items that are not.

        Returns:
          A DataFrame in the users' order, of columns user, rank (from 1), item, score
          and source: "model" (the score is the logit, to be compared within a user
          only) or "popularity" (training interactions). Its `attrs["report"]` has k,
          and counts the users, those without a history, the lists that are shorter than
          k, and the ids of histories, allowed and forbidden that the model does not
          know.

        Raises:
          InputError: an unknown user, a k outside 1..num_items, or nothing allowed.
        """
        parts = self.stream(
            users,
            histories=histories,
            columns=columns,
            k=k,
            filter_seen=filter_seen,
            allowed=allowed,
            forbidden=forbidden,
        )
        return _joined(parts)

    def stream(
        self,
        users: Iterable[Any] | None = None,
        *,
        histories: Any = None,
        columns: Sequence[str] = (),
        k: int | None = None,
        filter_seen: bool | None = None,
        allowed: Iterable[Any] | None = None,
        forbidden: Iterable[Any] | None = None,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Iterator["pd.DataFrame"]:
        """As `recommend`, a DataFrame for some thousand users at a time.

        The report counts the short lists so far.

        Args:
          on_progress: called after each part with the number of users done and in all.
        """
        k, filter_seen = self._checked_k(k), self._filters(filter_seen)
        source, user_N, report = self._request(users, histories, columns)
        is_allowed_V, counts = self._catalogue(allowed, forbidden)

        def part(user_N: np.ndarray) -> "pd.DataFrame":
            return self._user_part(source, user_N, k, filter_seen, is_allowed_V)

        return _parts(part, user_N, {"k": k, **report, **counts}, on_progress)

    def similar(
        self,
        items: Iterable[Any] | None = None,
        *,
        k: int | None = None,
        measure: str = "cosine",
        allowed: Iterable[Any] | None = None,
        forbidden: Iterable[Any] | None = None,
    ) -> "pd.DataFrame":
        """The k nearest items of each item, by the model's item embeddings; exact.

          dot(i, j) = <e_i, e_j>        cosine(i, j) = <e_i, e_j> / (|e_i| |e_j|)

        The cosine with a vector of zeros is 0. The model is trained to rank histories;
        that near items are alike is a by-product.

        Args:
          items: the caller's ids; None for every item.
          k: neighbours of each, itself not counted; as in `recommend`.
          measure: "cosine" or "dot".
          allowed, forbidden: as in `recommend`, of the neighbours.

        Returns:
          A DataFrame of columns item, rank (from 1), neighbour, score, in the items'
          order; equal scores in the order of the items of the log. Its
          `attrs["report"]` counts the items in place of users.

        Raises:
          InputError: an unknown item or measure, a k outside 1..num_items, or nothing
            allowed.
        """
        parts = self.stream_similar(
            items, k=k, measure=measure, allowed=allowed, forbidden=forbidden
        )
        return _joined(parts)

    def stream_similar(
        self,
        items: Iterable[Any] | None = None,
        *,
        k: int | None = None,
        measure: str = "cosine",
        allowed: Iterable[Any] | None = None,
        forbidden: Iterable[Any] | None = None,
        on_progress: Callable[[int, int], Any] | None = None,
    ) -> Iterator["pd.DataFrame"]:
        """As `similar`, a DataFrame for some thousand items at a time."""
        k = self._checked_k(k, others=1)
        if measure not in MEASURES:
            raise InputError(
                f"the measure must be one of {', '.join(MEASURES)}: got {measure!r}."
            )
        is_allowed_V, counts = self._catalogue(allowed, forbidden)
        item_N = self._item_positions(items) + 1
        table_VD = self._table_VD
        if measure == "cosine":
            table_VD = serving.unit_rows(table_VD)

        def part(item_N: np.ndarray) -> "pd.DataFrame":
            return self._item_part(table_VD, item_N, k, is_allowed_V)

        report = {"k": k, "items": len(item_N), **counts}
        return _parts(part, item_N, report, on_progress)

    def item_embeddings(self, items: Iterable[Any] | None = None) -> Embeddings:
        """The item embeddings that score the hidden states.

        Args:
          items: the caller's ids; None for every item.

        Raises:
          InputError: an unknown item.
        """
        position_N = self._item_positions(items)
        vector_ND = np.asarray(self._table_VD, np.float32)[position_N + 1]
        return Embeddings(self._items.id_N[position_N], vector_ND)

    def user_embeddings(
        self,
        users: Iterable[Any] | None = None,
        *,
        histories: Any = None,
        columns: Sequence[str] = (),
    ) -> Embeddings:
        """The hidden states after the users' histories: score = <user, item>.

        Args:
          users, histories, columns: as in `recommend`.

        Returns:
          Vectors in the users' order; zeros for a user without a history.
        """
        source, user_N, _ = self._request(users, histories, columns)
        width = self._table_VD.shape[1]
        parts = [np.zeros((0, width), np.float32)]
        for first in range(0, len(user_N), _PART_USERS):
            holdout = source.whole(user_N[first : first + _PART_USERS])
            (hidden_ND,) = self._run(serving.jitted_hidden, source, holdout)
            parts.append(np.where(source.is_empty(holdout)[:, None], 0, hidden_ND))
        user_ids = source.split.dataset.user_ids
        return Embeddings(user_ids[user_N], np.concatenate(parts))

    def lists(
        self,
        holdout: Holdout,
        *,
        k: int | None = None,
        filter_seen: bool | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What would have been shown after the histories of held-out rows.

        Args:
          holdout: rows of the experiment's split.
          k, filter_seen: as in `recommend`.

        Returns:
          (score_NK float32, item_NK int32): items are 1..num_items, and 0 (score -inf)
          where fewer than k are left.
        """
        k, filter_seen = self._checked_k(k), self._filters(filter_seen)
        is_allowed_V, _ = self._catalogue(None, None)
        size = _part_size(k)
        parts = [
            self._top(
                self._known,
                Holdout(*(x[first : first + size] for x in holdout)),
                k,
                filter_seen,
                is_allowed_V,
            )
            for first in range(0, max(1, len(holdout.user)), size)
        ]
        score_NK, item_NK = (np.concatenate(x) for x in zip(*parts, strict=True))
        return score_NK, np.where(np.isneginf(score_NK), 0, item_NK)

    @cached_property
    def _table_VD(self) -> Array:
        return self._experiment.encoder.apply({"params": self._params}, method="table")

    def _checked_k(self, k: int | None, *, others: int = 0) -> int:
        """The length of the lists; by default no longer than the items but `others`."""
        num_items = len(self._items.id_N)
        if k is None:
            return max(1, min(DEFAULT_K, num_items - others))
        is_number = isinstance(k, Integral) and not isinstance(k, bool)
        if not is_number or not 1 <= k <= num_items:
            raise InputError(
                f"k must be in 1..{num_items}, the number of items: got {k!r}."
            )
        return int(k)

    def _filters(self, filter_seen: bool | None) -> bool:
        if filter_seen is None:
            return self._experiment.evaluation.filter_seen
        return filter_seen

    def _item_positions(self, items: Iterable[Any] | None) -> np.ndarray:
        if items is None:
            return np.arange(len(self._items.id_N))
        name = self._experiment.split.dataset.name
        return self._items.known(
            items, where=f"the log {name}", advice="Leave them out."
        )

    def _request(
        self, users: Iterable[Any] | None, given: Any, columns: Sequence[str]
    ) -> tuple[Source, np.ndarray, dict]:
        """Where the histories are, whose are wanted, and what to say of them."""
        if given is None:
            source, user_N = self._known, self._user_positions(users)
        elif users is not None:
            raise InputError(
                "give users or histories, not both: histories are of all their users."
            )
        else:
            data = self._experiment.config["data"]
            if self._known.split.dataset.timestamps is None:
                data = {**data, "time": ""}
            read = raw.read(given, self._items, data=data, columns=columns)
            source, user_N = serving.new_users(read), np.arange(read.num_users)
        dataset = source.split.dataset
        num_empty = int((dataset.lengths[user_N] == 0).sum())
        report = {"users": len(user_N), "users_without_history": num_empty}
        return source, user_N, report | (dataset.report if given is not None else {})

    def _user_positions(self, users: Iterable[Any] | None) -> np.ndarray:
        if users is None:
            return np.arange(len(self._users.id_N))
        name = self._experiment.split.dataset.name
        return self._users.known(
            users,
            where=f"the log {name}",
            advice="Of users who are not, give histories.",
        )

    def _catalogue(
        self, allowed: Iterable[Any] | None, forbidden: Iterable[Any] | None
    ) -> tuple[Array, dict]:
        """Which rows of the table may be recommended; and the ids that are none."""
        is_allowed_V = np.zeros(len(self._table_VD), bool)
        num_items, report = len(self._items.id_N), {}
        is_allowed_V[1 : num_items + 1] = allowed is None
        for name, ids, value in (
            ("allowed", allowed, True),
            ("forbidden", forbidden, False),
        ):
            if ids is None:
                continue
            ids = ids if isinstance(ids, str) else list(ids)
            position_N = self._items.positions(ids)
            is_known_N = position_N >= 0
            # To forbid what the model does not know does no harm.
            if value and len(ids) and not is_known_N.any():
                raise InputError(
                    f"none of the {len(ids)} allowed items is an item of the log: got "
                    f"{ids[:3]}. Its items are such as {self._items.id_N[:3].tolist()}."
                )
            is_allowed_V[position_N[is_known_N] + 1] = value
            report[f"{name}_items"] = int(is_known_N.sum())
            report[f"{name}_items_unknown"] = int((~is_known_N).sum())
        if not is_allowed_V.any():
            raise InputError(
                "no item may be recommended: every allowed one is forbidden, or none "
                "is allowed. Allow more."
            )
        return jnp.asarray(is_allowed_V), report

    def _user_part(
        self,
        source: Source,
        user_N: np.ndarray,
        k: int,
        filter_seen: bool,
        is_allowed_V: Array,
    ) -> "pd.DataFrame":
        import pandas as pd

        holdout = source.whole(user_N)
        score_NK, item_NK = self._top(source, holdout, k, filter_seen, is_allowed_V)
        row_M, column_M = np.nonzero(score_NK > -np.inf)
        source_M = source.is_empty(holdout)[row_M].astype(np.int8)
        return pd.DataFrame(
            {
                "user": source.split.dataset.user_ids[user_N[row_M]],
                "rank": column_M + 1,
                "item": self._items.id_N[item_NK[row_M, column_M] - 1],
                "score": score_NK[row_M, column_M],
                "source": pd.Categorical.from_codes(
                    source_M, dtype=pd.CategoricalDtype([*SOURCES])
                ),
            }
        )

    def _top(
        self,
        source: Source,
        holdout: Holdout,
        k: int,
        filter_seen: bool,
        is_allowed_V: Array,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(score_NK, item_NK) after the histories of the rows."""
        step = partial(
            serving.jitted_top, is_allowed_V=is_allowed_V, filter_seen=filter_seen, k=k
        )
        score_NK, item_NK = self._run(step, source, holdout)
        if np.isnan(score_NK).any() or np.isposinf(score_NK).any():
            raise InputError(
                "the model's scores are not finite: it has diverged. Lower "
                "optim.learning_rate or set optim.clip_norm, and train again."
            )
        is_empty_N = source.is_empty(holdout)
        if is_empty_N.any():
            score_NK[is_empty_N], item_NK[is_empty_N] = self._popular(k, is_allowed_V)
        return score_NK, item_NK

    def _popular(self, k: int, is_allowed_V: Array) -> tuple[np.ndarray, np.ndarray]:
        """(score_K, item_K) of the items with the most training interactions."""
        count_V = self._experiment.split.train_item_counts()
        is_item_V = np.asarray(is_allowed_V)[: len(count_V)]
        score_V = np.where(is_item_V, count_V, -np.inf).astype(np.float32)
        item_K = np.argsort(-score_V, kind="stable")[:k]
        return score_V[item_K], item_K

    def _run(self, step: Callable, source: Source, holdout: Holdout) -> list:
        return serving.run(step, self._experiment, self._params, source, holdout)

    def _item_part(
        self, table_VD: Array, item_N: np.ndarray, k: int, is_allowed_V: Array
    ) -> "pd.DataFrame":
        import pandas as pd

        score_NK, near_NK = serving.neighbours(
            table_VD,
            is_allowed_V,
            item_N,
            k=k,
            batch_size=self._experiment.evaluation.batch_size,
        )
        row_M, column_M = np.nonzero(score_NK > -np.inf)
        ids = self._items.id_N
        return pd.DataFrame(
            {
                "item": ids[item_N[row_M] - 1],
                "rank": column_M + 1,
                "neighbour": ids[near_NK[row_M, column_M] - 1],
                "score": score_NK[row_M, column_M],
            }
        )


def _parts(
    part: Callable[[np.ndarray], "pd.DataFrame"],
    position_N: np.ndarray,
    report: dict[str, Any],
    on_progress: Callable[[int, int], Any] | None,
) -> Iterator["pd.DataFrame"]:
    """One frame for each few positions, and one for none, with the report so far."""
    total, k, num_short = len(position_N), report["k"], 0
    size = _part_size(k)
    for first in range(0, max(1, total), size):
        frame = part(position_N[first : first + size])
        done = min(first + size, total)
        # A list of k items has one of rank k.
        num_short += done - first - int((frame["rank"] == k).sum())
        frame.attrs["report"] = {**report, "lists_shorter_than_k": num_short}
        yield frame
        if on_progress is not None:
            on_progress(done, total)


def _joined(parts: Iterable["pd.DataFrame"]) -> "pd.DataFrame":
    """All parts as one frame, with the report of the last."""
    import pandas as pd

    frames = list(parts)
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = frames[-1].attrs
    return frame


def _part_size(k: int) -> int:
    return max(1, min(_PART_USERS, _PART_ROWS // k))
