"""Top-k recommendations in the caller's ids; and the command for it.

python -m jaxrec.recommend --workdir runs/ml-1m-sasrec_ce-seed0 --output recs.csv
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import evaluator, ranking, runs
from jaxrec.batches import Log
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment
from jaxrec.ranking import Rows, Seen

if TYPE_CHECKING:
    import pandas as pd

Array = jax.Array


def top_items(
    hidden_BD: Array,
    table_VD: Array,
    is_item_V: Array,
    seen: Seen,
    *,
    k: int,
    item_chunk: int | None = None,
) -> tuple[Array, Array]:
    """The k highest-scored items of each row that are not in `seen`, exactly.

    Chunks of the catalogue are scored one after another and merged into a running
    top k. Equal scores are ordered by item id.

    Args:
      hidden_BD, table_VD, is_item_V, item_chunk: as in `ranking.target_ranks`.
      seen: what is left out; an empty one leaves out nothing.

    Returns:
      (score_BK float32, item_BK int32), best first. Where fewer than k items are left,
      the rest has the score -inf.
    """
    hidden_BD = hidden_BD.astype(jnp.float32)
    num_rows, num_columns = len(hidden_BD), len(table_VD)
    chunk = num_columns if item_chunk is None else min(item_chunk, num_columns)
    num_chunks = -(-num_columns // chunk)
    padding = num_chunks * chunk - num_columns
    table_VD = jnp.pad(table_VD, ((0, padding), (0, 0)))
    is_item_V = jnp.pad(is_item_V, (0, padding))

    def body(best, first):
        table_CD = jax.lax.dynamic_slice_in_dim(table_VD, first, chunk)
        is_item_C = jax.lax.dynamic_slice_in_dim(is_item_V, first, chunk)
        score_BC = jnp.dot(hidden_BD, table_CD.T, precision="highest")
        score_BC = jnp.where(is_item_C[None], score_BC, -jnp.inf)
        column_H = seen.item_H - first
        is_here_H = seen.is_valid_H & (column_H >= 0)
        column_H = jnp.where(is_here_H, column_H, chunk)  # out of range: dropped
        score_BC = score_BC.at[seen.row_H, column_H].set(-jnp.inf, mode="drop")
        score_BK, column_BK = jax.lax.top_k(score_BC, min(k, chunk))
        # Earlier chunks first: top_k prefers the earlier of equals, the lower id.
        score_BM = jnp.concatenate([best[0], score_BK], axis=1)
        item_BM = jnp.concatenate([best[1], column_BK + first], axis=1)
        score_BK, place_BK = jax.lax.top_k(score_BM, k)
        return (score_BK, jnp.take_along_axis(item_BM, place_BK, axis=1)), None

    none = (
        jnp.full((num_rows, k), -jnp.inf, jnp.float32),
        jnp.zeros((num_rows, k), jnp.int32),
    )
    firsts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
    (score_BK, item_BK), _ = jax.lax.scan(body, none, firsts)
    return score_BK, item_BK


class Recommender:
    """What to show next to the users of a log, by a trained model.

    Args:
      experiment: see `experiment.build`; its whole log is the users' history.
      params: the encoder's parameters.

    >>> recommender = Recommender.load("runs/ml-1m-sasrec_ce-seed0")  # doctest: +SKIP
    >>> recommender.recommend(users=[1, 2], k=3)                      # doctest: +SKIP
    """

    def __init__(self, experiment: Experiment, params: Any):
        self._experiment, self._params = experiment, params
        dataset = experiment.split.dataset
        self._is_first_I = jnp.ones(dataset.num_interactions, bool)

    @classmethod
    def load(
        cls, workdir: str | Path, options: Sequence[str] = (), *, frame: Any = None
    ) -> "Recommender":
        """The best epoch of a run; arguments as in `runs.load`."""
        return cls(*runs.load(workdir, options, frame=frame))

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        *,
        k: int = 10,
        filter_seen: bool = True,
    ) -> "pd.DataFrame":
        """The k best items for each user after all that the log has of them.

        Args:
          users: the caller's ids; None for every user of the log.
          k: items for each user; fewer where fewer are left.
          filter_seen: leave out what the user has had already.

        Returns:
          A DataFrame of columns user, rank (from 1), item, score, in the users' order.

        Raises:
          InputError: an unknown user, or a k outside 1..num_items.
        """
        import pandas as pd

        parts = list(self.stream(users, k=k, filter_seen=filter_seen))
        return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]

    def stream(
        self,
        users: Iterable[Any] | None = None,
        *,
        k: int = 10,
        filter_seen: bool = True,
    ) -> Iterator["pd.DataFrame"]:
        """As `recommend`, a DataFrame for some thousand users at a time."""
        dataset = self._experiment.split.dataset
        if not isinstance(k, int) or not 1 <= k <= dataset.num_items:
            raise InputError(
                f"k must be in 1..{dataset.num_items}, the number of items: got {k!r}."
            )
        user_N = self._positions(users)
        for first in range(0, max(1, len(user_N)), _USERS_A_PART):
            part = user_N[first : first + _USERS_A_PART]
            yield self._frame(part, *self._top(part, k, filter_seen))

    def _positions(self, users: Iterable[Any] | None) -> np.ndarray:
        """Where each of the users is in the log."""
        ids = self._experiment.split.dataset.user_ids
        if users is None:
            return np.arange(len(ids))
        # As text, so that ids typed on a command line are found too.
        position = {str(user): i for i, user in enumerate(ids.tolist())}
        if isinstance(users, str):
            raise InputError(
                f"users must be a list of ids: got {users!r}. Use [users]."
            )
        users = list(users)
        unknown = [user for user in users if str(user) not in position]
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(users)} users are not in the log "
                f"{self._experiment.split.dataset.name}: {unknown[:3]}. Its users are "
                f"such as {ids[:3].tolist()}."
            )
        return np.array([position[str(user)] for user in users], np.int64)

    def _top(
        self, user_N: np.ndarray, k: int, filter_seen: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(score_NK, item_NK) of the users."""
        experiment = self._experiment
        if len(user_N) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        end_N = experiment.split.dataset.offsets[user_N + 1]
        holdout = Holdout(user_N, end_N, np.zeros(len(user_N), np.int32))
        chunks = experiment.evaluator.cut(holdout)
        step = partial(
            _jitted_step,
            encoder=experiment.encoder,
            max_length=experiment.recipe.max_length,
            num_rows=_rounded(chunks.num_rows),
            capacity=_rounded(chunks.capacity),
            filter_seen=filter_seen,
            k=k,
        )
        score_NK = np.zeros((len(user_N), k), np.float32)
        item_NK = np.zeros((len(user_N), k), np.int32)
        order_CB = chunks.order_N.reshape(chunks.rows.start_B.shape)
        for c, order_B in enumerate(order_CB):
            rows = Rows(*(x[c] for x in chunks.rows))
            top = step(self._params, experiment.log, self._is_first_I, rows)
            score_BK, item_BK = jax.device_get(top)
            score_NK[order_B[order_B >= 0]] = score_BK[order_B >= 0]
            item_NK[order_B[order_B >= 0]] = item_BK[order_B >= 0]
        if np.isnan(score_NK).any():
            raise InputError("the model's scores are not finite: it has diverged.")
        return score_NK, item_NK

    def _frame(self, user_N, score_NK, item_NK) -> "pd.DataFrame":
        import pandas as pd

        dataset = self._experiment.split.dataset
        is_left_NK = score_NK > -np.inf
        row_M, column_M = np.nonzero(is_left_NK)
        return pd.DataFrame(
            {
                "user": dataset.user_ids[user_N[row_M]],
                "rank": column_M + 1,
                "item": dataset.item_ids[item_NK[is_left_NK] - 1],
                "score": score_NK[is_left_NK],
            }
        )


# Users whose recommendations are held as one DataFrame.
_USERS_A_PART = 2**14


def _rounded(size: int) -> int:
    """Up to a power of two, so that parts of a large job share their compilation."""
    return 1 << (size - 1).bit_length()


def recommend_step(
    params: Any,
    log: Log,
    is_first_I: Array,
    rows: Rows,
    *,
    encoder: Any,
    max_length: int,
    num_rows: int,
    capacity: int,
    filter_seen: bool,
    k: int,
) -> tuple[Array, Array]:
    """The top k of one chunk of users; arguments as in `ranking.rank_step`. Pure."""
    hidden_BD = ranking.last_hidden(
        encoder, params, log, rows, max_length=max_length, num_rows=num_rows
    )
    table_VD = encoder.apply({"params": params}, method="table")
    is_item_V = ranking.item_mask(len(table_VD), encoder.num_items)
    seen = ranking.seen_items(log, is_first_I, rows, capacity=capacity)
    if not filter_seen:
        seen = seen._replace(is_valid_H=jnp.zeros_like(seen.is_valid_H))
    item_chunk = evaluator.item_chunk(len(table_VD), len(rows.start_B))
    return top_items(hidden_BD, table_VD, is_item_V, seen, k=k, item_chunk=item_chunk)


_jitted_step = jax.jit(
    recommend_step,
    static_argnames=(
        "encoder",
        "max_length",
        "num_rows",
        "capacity",
        "filter_seen",
        "k",
    ),
)


def write(frames: Iterable["pd.DataFrame"], path: str | Path) -> int:
    """Writes frames to a .csv or .parquet file, whole or not at all; returns its rows.

    Raises:
      InputError: another suffix, or a folder that does not exist.
    """
    path = Path(path)
    check_output(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with _sink(path.suffix, part) as sink:
            num_rows = 0
            for frame in frames:
                sink.write(frame)
                num_rows += len(frame)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return num_rows


def check_output(path: Path) -> None:
    """Raises InputError unless recommendations can be written to `path`."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"--output must end in .csv or .parquet: got {path}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "--output as .parquet needs pyarrow, which is not installed: pip install "
            "'jaxrec[parquet]', or write a .csv."
        )


class _Csv:
    def __init__(self, path: Path):
        self._file, self._is_new = path.open("w", newline=""), True

    def write(self, frame: "pd.DataFrame") -> None:
        frame.to_csv(self._file, index=False, header=self._is_new)
        self._is_new = False

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()


class _Parquet:
    def __init__(self, path: Path):
        self._path, self._writer = path, None

    def write(self, frame: "pd.DataFrame") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(frame, preserve_index=False)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self._writer is not None:
            self._writer.close()


def _sink(suffix: str, path: Path) -> _Csv | _Parquet:
    return _Csv(path) if suffix == ".csv" else _Parquet(path)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser(
        "python -m jaxrec.recommend", "Write each user's top k by a trained run."
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--output", required=True, help="a .csv or .parquet file")
    parser.add_argument("--k", type=int, default=10, help="items a user (10)")
    parser.add_argument("--users", help="ids, separated by commas; all if not given")
    parser.add_argument(
        "--keep-seen", action="store_true", help="do not leave out what a user has had"
    )
    flags, options = parse_command(parser, argv)
    check_output(Path(flags.output))
    recommender = Recommender.load(flags.workdir, options)
    users = None if flags.users is None else flags.users.split(",")
    frames = recommender.stream(users, k=flags.k, filter_seen=not flags.keep_seen)
    num_rows = write(frames, flags.output)
    print(f"{num_rows:,} recommendations in {flags.output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
