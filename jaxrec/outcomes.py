"""What a finished run left behind: its result, and where it ranked every target.

Metrics are computed again from the saved ranks, one value a user, so that runs can be
compared user by user; nothing is ranked anew.
"""

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxrec import record
from jaxrec.errors import InputError

PARTS = ("valid", "test")
TIES = ("pessimistic", "mean", "optimistic")

# What results must agree on to be of one protocol. The window may differ: it is the
# model's, and what it is ranked against stays the same.
PROTOCOL = (
    "split",
    "filter_seen",
    "history_filtered",
    "target_in_history",
    "candidates",
    "ties",
)

# A result holds the means of float32 sums, we add in float64.
_MEAN_TOLERANCE = 2e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run on one held-out part.

    Attributes:
      path: where it was read from.
      part: "valid" or "test".
      result: what result.json holds.
      user_N: int64, the user of each held-out row, not decreasing.
      filtered_N, unfiltered_N, ties_N: int64, see `ranking.Ranks`.
      history_length_N: int64, what the user had before each row, which names the row
        among those of the user and increases with it; None where it was not saved.
    """

    path: Path
    part: str
    result: dict
    user_N: np.ndarray
    filtered_N: np.ndarray
    unfiltered_N: np.ndarray
    ties_N: np.ndarray
    history_length_N: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.result['method']}-seed{self.result['seed']}"

    @property
    def num_items(self) -> int:
        return self.result["data"]["items"]

    @property
    def num_users(self) -> int:
        return len(np.unique(self.user_N))

    @property
    def rows_U(self) -> np.ndarray:
        """Held-out rows of each user, int64 [U], in the order of the users."""
        return np.unique(self.user_N, return_counts=True)[1]

    @property
    def is_filtered(self) -> bool:
        """Whether the run was judged by its filtered ranks."""
        return self.result["protocol"]["filter_seen"]

    @property
    def share_tied(self) -> float:
        """Share of rows whose target has the score of another item, seen or not."""
        return float((self.ties_N > 0).mean())


def read(path: str | Path, part: str = "test") -> Outcome:
    """A finished run's outcome on a held-out part.

    Args:
      path: the run's workdir, with result.json and ranks.npz; or a committed record,
        `<name>.json` (the same as result.json) beside `<name>.ranks.npz`.
      part: "test" or "valid".

    Raises:
      InputError: no run, or one that is unfinished or damaged; ranks that do not give
        the metrics of the result.
    """
    if part not in PARTS:
        raise InputError(f"part must be one of {', '.join(PARTS)}: got {part!r}.")
    path = Path(path)
    path = path.parent if path.name == "result.json" else path
    result_path, ranks_path = _files(path)
    result = record.read_json(result_path)
    _check_result(result, part, result_path)
    outcome = Outcome(path, part, result, **_read_ranks(ranks_path, part))
    _check_ranks(outcome, ranks_path)
    _check_rows(outcome, ranks_path)
    for name, reported in result[part].items():
        value_U = metric_values(outcome, name, filtered=outcome.is_filtered)
        if not abs(value_U.mean() - reported) <= _MEAN_TOLERANCE:
            raise InputError(
                f"{ranks_path} must be of the run of {result_path}: its ranks give "
                f"{part} {name} {value_U.mean():.6f}, the result says {reported:.6f}. "
                "Restore both from one run."
            )
    return outcome


def _files(path: Path) -> tuple[Path, Path]:
    """The result and the ranks of a run; an InputError that says what is missing."""
    if path.suffix == ".json":
        result, ranks = path, path.with_suffix(".ranks.npz")
    else:
        result, ranks = path / "result.json", path / "ranks.npz"
        if not result.is_file() and (path / "config.json").is_file():
            raise InputError(
                f"the run in {path} is not finished: it has no result.json. Go on with "
                "it: python -m jaxrec.train with its config and --resume, or "
                "train(..., resume=True)."
            )
    if not result.is_file():
        raise InputError(
            f"there is no run in {path}: {result} is missing. Give the workdir of a "
            "run of jaxrec.train, or a record such as sasrec_ce-seed0.json."
        )
    if not ranks.is_file():
        raise InputError(
            f"{result} has no ranks: {ranks} is missing. Restore it, or train again."
        )
    return result, ranks


def _check_result(result, part: str, path: Path) -> None:
    """Raises InputError unless it has all that is used of it."""
    needed: dict[str, dict[str, type]] = {
        "": {"dataset": str, "method": str, "seed": int, "split_sha256": str}
        | dict.fromkeys((part, "data", "protocol"), dict),
        "data": {"items": int, "sha256": str},
        "protocol": dict.fromkeys(PROTOCOL, object),
    }
    for section, types in needed.items():
        of = result[section] if section else result
        for key, kind in types.items():
            if not (isinstance(of, dict) and key in of and isinstance(of[key], kind)):
                raise InputError(
                    f"{path} must be a result of jaxrec.train: it has no "
                    f"{f'{section}.' if section else ''}{key}. Restore it, or train "
                    "again."
                )


def _read_ranks(path: Path, part: str) -> dict[str, np.ndarray]:
    names = ("user", "filtered", "unfiltered", "ties")
    advice = "Restore it, or train again."
    try:
        # Opened here: NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file) as saved:
            if f"{part}_history_length" in saved:  # early versions did not save it
                names += ("history_length",)
            arrays = {name: saved[f"{part}_{name}"] for name in names}
    except KeyError as error:
        raise InputError(
            f"{path} must hold {', '.join(f'{part}_{name}' for name in names)}: "
            f"{error.args[0]}. {advice}"
        ) from None
    # What NumPy raises where a zip or an array in it is cut off, or is something else.
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(
            f"{path} is damaged: it cannot be read as NumPy arrays. {advice}"
        ) from None
    shapes = [array.shape for array in arrays.values()]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise InputError(
            f"the {part} arrays of {path} must be lists of one length, at least 1: got "
            f"{', '.join(f'{k} {v.shape}' for k, v in arrays.items())}. {advice}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "iu":
            raise InputError(
                f"{part}_{name} of {path} must be whole numbers: got {array.dtype}. "
                f"{advice}"
            )
    # Wide enough to add and subtract, whatever they were saved as.
    wide = {f"{name}_N": array.astype(np.int64) for name, array in arrays.items()}
    keys = [wide[key] for key in ("history_length_N", "user_N") if key in wide]
    order_N = np.lexsort(keys)  # by user, then by what the user had before
    return {name: array[order_N] for name, array in wide.items()}


def _check_ranks(outcome: Outcome, path: Path) -> None:
    """Raises InputError unless the numbers can be ranks."""
    filtered_N, unfiltered_N = outcome.filtered_N, outcome.unfiltered_N
    miss = outcome.num_items + 1
    is_rank_N = (1 <= filtered_N) & (1 <= unfiltered_N) & (unfiltered_N < miss)
    is_rank_N &= (filtered_N <= unfiltered_N) | (filtered_N == miss)
    is_rank_N &= (0 <= outcome.ties_N) & (outcome.ties_N < unfiltered_N)
    if not is_rank_N.all():
        row = int(np.argmin(is_rank_N))
        raise InputError(
            f"the {outcome.part} ranks of {path} must be in 1..{miss - 1} ({miss} for "
            "a filtered target of the history), filtered not above unfiltered, ties "
            f"below it: row {row} has {filtered_N[row]}, {unfiltered_N[row]}, "
            f"{outcome.ties_N[row]}. Restore it, or train again."
        )


def _check_rows(outcome: Outcome, path: Path) -> None:
    """Raises InputError if two rows, in order, have one user and history length."""
    if outcome.history_length_N is None:
        return
    key_N2 = np.stack([outcome.user_N, outcome.history_length_N], axis=1)
    is_same_N = (np.diff(key_N2, axis=0) == 0).all(axis=1)
    if is_same_N.any():
        user, length = key_N2[int(np.argmax(is_same_N))]
        raise InputError(
            f"the {outcome.part} rows of a user in {path} must differ in "
            f"history_length: two of user {user} have {length}. Restore it, or train "
            "again."
        )


def check_comparable(one: Outcome, other: Outcome) -> None:
    """Raises InputError if a difference of the two would not be one of the methods."""
    names = f"{one.path} has {{}}, {other.path} has {{}}"
    if one.path.resolve() == other.path.resolve() or one.result == other.result:
        raise InputError(
            f"runs must be different runs: {one.path} and {other.path} are the same, "
            f"{one.name} of {one.result['dataset']}. Give it once."
        )

    def check(what: str, a, b, advice: str) -> None:
        if a != b:
            raise InputError(f"runs must have {what}: {names.format(a, b)}. {advice}")

    a, b = one.result, other.result
    advice = "Train both on one file."
    check(
        "the same data",
        f"{a['dataset']}, sha256 {a['data']['sha256'][:12]}",
        f"{b['dataset']}, sha256 {b['data']['sha256'][:12]}",
        advice,
    )
    check("the same split_sha256", a["split_sha256"], b["split_sha256"], advice)
    for key in PROTOCOL:
        check(
            f"the same protocol.{key}",
            repr(a["protocol"][key]),
            repr(b["protocol"][key]),
            "Train one of them again.",
        )
    a_N, b_N = one.history_length_N, other.history_length_N
    differ = ""
    if not np.array_equal(one.user_N, other.user_N):
        differ = "users"
    elif a_N is not None and b_N is not None and not np.array_equal(a_N, b_N):
        differ = "history lengths"
    if differ:
        raise InputError(
            f"runs must have the same {one.part} rows: "
            f"{names.format(*(f'{len(o.user_N)} rows' for o in (one, other)))}, and "
            f"their {differ} differ. Restore ranks.npz, or train again."
        )


def metric_values(
    outcome: Outcome, name: str, *, filtered: bool = True, ties: str = "pessimistic"
) -> np.ndarray:
    """A metric for each user, from the saved ranks; its mean is the metric.

    A user with several held-out rows has the sum of their values times
    num_users / num_rows: rows of a user stay together, and the mean over users is the
    mean over rows. Its spread is that of the mean where users have equally many; else
    see `significance.of_ratio` and `Outcome.rows_U`.

    Args:
      outcome: from `read`.
      name: such as "ndcg@10".
      filtered: rank among the items that the user has not had.
      ties: where a target stands among items of its score: "pessimistic" (last, the
        rule of `ranking`), "optimistic" (first), or "mean" (the metric's expectation
        over a random order).

    Returns:
      float64 [U], in the order of the users' first ids; fractions in [0, 1] where a
      user has one row.

    Raises:
      InputError: a wrong name; or, for filtered ranks, targets that tie with seen and
        unseen items so that `ties` does not determine their metric: only the number of
        both together is saved.
    """
    import jax.numpy as jnp

    from jaxrec import metrics

    if ties not in TIES:
        raise InputError(f"ties must be one of {', '.join(TIES)}: got {ties!r}.")
    metric_fn, k = metrics.parse(name)
    # Every rank there is, then look up: a million users share them.
    rank_V = metrics.uncut(np.arange(1, outcome.num_items + 2), outcome.num_items)
    value_V = np.asarray(metric_fn(jnp.asarray(rank_V), k), float)
    rank_N = outcome.filtered_N if filtered else outcome.unfiltered_N
    if ties == "pessimistic":
        return _per_user(value_V[rank_N - 1], outcome.user_N)
    least_N, most_N = _tied_rivals(outcome) if filtered else (outcome.ties_N,) * 2
    # The metric is monotone in the number of tied rivals: equal ends, one value.
    value_N = _among_ties(value_V, rank_N, least_N, ties)
    is_open_N = value_N != _among_ties(value_V, rank_N, most_N, ties)
    if is_open_N.any():
        raise InputError(
            f"ties={ties!r} needs the number of unseen items that tie with a target: "
            f"for {name}, {is_open_N.sum()} of {len(rank_N)} rows of {outcome.path} "
            "tie with items of which some were seen, and ranks.npz counts both "
            "together. Use ties=pessimistic, or unfiltered ranks."
        )
    return _per_user(value_N, outcome.user_N)


def _tied_rivals(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the number of unseen items with the target's score.

    Of the `ties`, at most unfiltered - filtered were seen (the seen items that score
    at least as high), and the unseen ones are among the filtered - 1 rivals ahead. A
    target in the history has none: it is a miss under any rule.
    """
    filtered_N, ties_N = outcome.filtered_N, outcome.ties_N
    least_N = np.maximum(0, ties_N - (outcome.unfiltered_N - filtered_N))
    most_N = np.minimum(ties_N, filtered_N - 1)
    is_seen_N = filtered_N > outcome.num_items
    return np.where(is_seen_N, 0, least_N), np.where(is_seen_N, 0, most_N)


def _among_ties(value_V, rank_N, tied_N, ties: str) -> np.ndarray:
    """The metric of targets at ranks rank - tied..rank, by the rule."""
    first_N = rank_N - tied_N
    if ties == "optimistic":
        return value_V[first_N - 1]
    total_V = np.concatenate([[0.0], np.cumsum(value_V)])
    return (total_V[rank_N] - total_V[first_N - 1]) / (tied_N + 1)


def _per_user(value_N: np.ndarray, user_N: np.ndarray) -> np.ndarray:
    user_U, index_N = np.unique(user_N, return_inverse=True)
    sum_U = np.bincount(index_N, value_N)
    return sum_U * (len(user_U) / len(user_N))
