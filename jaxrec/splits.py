"""Ways to hold out interactions, each by a name that a config can give.

Every split keeps the design of `data.Split`: what a user trains on is a prefix of the
user's items, and a held-out row hides the interaction right after its history. So the
history of a row is everything that the user had before the hidden item, also what was
held out itself: that is what a model in service would be given. Nothing is trained
again between validation and test.

A user may train on nothing (train_end is where the user's items begin). A row without
any history is no row: a model of sequences has no opinion on it. Such interactions are
counted in the report.
"""

import datetime
import zlib
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from jaxrec import config, signature
from jaxrec.data import Dataset, Holdout, Split, leave_one_out
from jaxrec.errors import InputError


def leave_last_n(dataset: Dataset, *, holdout_n: int) -> Split:
    """A user's last n interactions are the test, the n before them validation.

    Each is a row of its own, ranked after all that the user had before it. A user with
    no more than 2 n interactions trains only. With n = 1 it is `leave_one_out`.

    Args:
      dataset: the log.
      holdout_n: n, at least 1.

    Raises:
      InputError: holdout_n is out of range, or no user is long enough.
    """
    if not isinstance(holdout_n, Integral) or holdout_n < 1:
        raise InputError(
            f"data.holdout_n must be a whole number, at least 1: got {holdout_n!r}."
        )
    is_held_out_U = dataset.lengths > 2 * holdout_n
    if not is_held_out_U.any():
        raise InputError(
            f"leave-last-n needs users with more than {2 * holdout_n} interactions "
            f"(2 data.holdout_n): none of the {dataset.num_users} users of "
            f"{dataset.name} has them. Lower data.holdout_n or the filters."
        )
    place_I = _from_the_end(dataset)
    is_held_out_I = np.repeat(is_held_out_U, dataset.lengths)
    is_test_I = is_held_out_I & (place_I < holdout_n)
    is_valid_I = is_held_out_I & (place_I < 2 * holdout_n) & ~is_test_I
    return Split(
        dataset=dataset,
        train_end=dataset.offsets[1:] - np.where(is_held_out_U, 2 * holdout_n, 0),
        valid=_rows(dataset, is_valid_I),
        test=_rows(dataset, is_test_I),
        report={"users_train_only": int((~is_held_out_U).sum())},
    )


def time_point(
    dataset: Dataset,
    *,
    test_from: int | float | str | datetime.date,
    valid_from: int | float | str | datetime.date | None = None,
) -> Split:
    """Train on everything before a moment, test on everything from another one on.

      train: t < valid_from;  validation: valid_from <= t < test_from;  test: the rest

    Each held-out interaction is a row of its own, ranked after all that its user had
    before it, held out or not; the first of a user that trains on nothing has no
    history and is no row. No training interaction is newer than a row.

    Args:
      dataset: the log, with times.
      test_from: a number in the unit of the log's times; an ISO 8601 time, datetime or
        date, where these are seconds since 1970 (in UTC, unless it names a zone); or,
        strictly between 0 and 1, a share of the interactions: the time of the first
        one after it.
      valid_from: likewise; None for as many interactions of validation as of test.

    Raises:
      InputError: the times are unknown, or a part would be empty.
    """
    test_from, valid_from = _plain(test_from), _plain(valid_from)
    time_I = _times(dataset)
    sorted_I = np.sort(time_I)
    test_time = _moment("test_from", test_from, sorted_I)
    if not sorted_I[0] < test_time <= sorted_I[-1]:
        first, last = (_shown(time, test_from) for time in (sorted_I[0], sorted_I[-1]))
        raise InputError(
            f"data.test_from={test_from} must be after the first interaction of "
            f"{dataset.name} and not after the last: these are of {first} and {last}."
        )
    if valid_from is None:
        num_test = len(time_I) - int(np.searchsorted(sorted_I, test_time))
        first = len(time_I) - 2 * num_test
        if first <= 0:
            raise InputError(
                f"data.test_from={test_from} leaves {len(time_I) - num_test} of "
                f"{len(time_I)} interactions before it, too few for as many of "
                "validation as of test. Say data.valid_from, or a later time."
            )
        valid_time = sorted_I[first].item()
    else:
        valid_time = _moment("valid_from", valid_from, sorted_I)
    if not sorted_I[0] < valid_time < test_time:
        raise InputError(
            f"the split needs interactions before data.valid_from={valid_time}, then "
            f"before data.test_from={test_time}, and after: the times of "
            f"{dataset.name} run from {sorted_I[0]} to {sorted_I[-1]}."
        )
    is_train_I = time_I < valid_time
    has_history_I = np.ones(len(time_I), bool)
    has_history_I[dataset.offsets[:-1][dataset.lengths > 0]] = False
    is_test_I = time_I >= test_time
    is_valid_I = ~is_train_I & ~is_test_I
    before_U1 = np.append(0, np.cumsum(is_train_I))[dataset.offsets]
    split = Split(
        dataset=dataset,
        train_end=dataset.offsets[:-1] + np.diff(before_U1),
        valid=_rows(dataset, is_valid_I & has_history_I),
        test=_rows(dataset, is_test_I & has_history_I),
        report={
            "valid_from": valid_time,
            "test_from": test_time,
            "valid_interactions_without_history": int(
                (is_valid_I & ~has_history_I).sum()
            ),
            "test_interactions_without_history": int(
                (is_test_I & ~has_history_I).sum()
            ),
            "users_train_only": int((np.diff(before_U1) == dataset.lengths).sum()),
        },
    )
    for part, holdout in (("validation", split.valid), ("test", split.test)):
        if not len(holdout.user):
            raise InputError(
                f"no {part} interaction of {dataset.name} has a history: valid_from is "
                f"{valid_time}, test_from {test_time}. Choose other times."
            )
    return split


def held_out_users(
    dataset: Dataset, *, holdout_users: int | float, seed: int = 0
) -> Split:
    """Some users never train: they are ranked by leave-one-out on their own histories.

    The last item of a held-out user is the test, the one before it validation. All
    others train on all they have.

    Args:
      dataset: the log.
      holdout_users: how many users with at least three interactions are held out,
        drawn uniformly: a number, or, strictly between 0 and 1, a share of them.
      seed: of the draw.

    Raises:
      InputError: there are not so many, or none would train.
    """
    user_N = np.flatnonzero(dataset.lengths >= 3)
    most = min(len(user_N), dataset.num_users - 1)
    if isinstance(holdout_users, float):
        is_share = 0 < holdout_users < 1
        count = max(1, round(holdout_users * len(user_N))) if is_share else 0
    else:
        count = holdout_users
    if not 1 <= count <= most:
        raise InputError(
            f"data.holdout_users must be a share in (0, 1), or a number of users from "
            f"1 to {most} (those of {dataset.name} with at least 3 interactions, one "
            f"user left to train): got {holdout_users}."
        )
    # A stream of its own: (seed, epoch) orders the epochs.
    rng = np.random.default_rng((seed, zlib.crc32(b"held_out_users")))
    chosen_N = rng.choice(user_N, count, replace=False)
    is_chosen_U = np.zeros(dataset.num_users, bool)
    is_chosen_U[chosen_N] = True
    every = leave_one_out(dataset)

    def chosen(holdout: Holdout) -> Holdout:
        return Holdout(*(x[is_chosen_U[holdout.user]] for x in holdout))

    return Split(
        dataset=dataset,
        train_end=np.where(is_chosen_U, dataset.offsets[:-1], dataset.offsets[1:]),
        valid=chosen(every.valid),
        test=chosen(every.test),
        report={"users_train_only": int((~is_chosen_U).sum())},
    )


SPLITS: dict[str, Callable[..., Split]] = {
    "leave_one_out": leave_one_out,
    "leave_last_n": leave_last_n,
    "time_point": time_point,
    "held_out_users": held_out_users,
}


def choose(name: str, *, seed: int, **given) -> Callable[[Dataset], Split]:
    """The split of that name with its options, checked before there is any data.

    Args:
      name: a key of SPLITS.
      seed: for a split that draws.
      given: the options of all splits; None where one is not given.

    Raises:
      InputError: no such split, an option that it needs, or one of another split.
    """
    if name not in SPLITS:
        near = config.suggestion(name, SPLITS, what="splits")
        raise InputError(f"no split is named {name!r}{near}.")
    function = SPLITS[name]
    options = signature.options(function)
    given = {key: value for key, value in given.items() if value is not None}
    for key in sorted(given.keys() - options.keys()):
        owners = [k for k, v in SPLITS.items() if key in signature.options(v)]
        raise InputError(
            f"data.{key} is an option of data.split={' or '.join(owners)}: got split "
            f"{name!r}. Choose that split, or leave the option out."
        )
    for key, option in options.items():
        if option.default is signature.REQUIRED and key not in given:
            raise InputError(f"data.split={name} needs data.{key}: give it.")
    if "seed" in options:
        given["seed"] = seed
    return lambda dataset: function(dataset, **given)


def _rows(dataset: Dataset, is_row_I: np.ndarray) -> Holdout:
    """The held-out rows that hide these interactions, in the order of the log."""
    end_N = np.flatnonzero(is_row_I)
    user_I = np.repeat(np.arange(dataset.num_users, dtype=np.int32), dataset.lengths)
    return Holdout(user_I[end_N], end_N, dataset.items[end_N])


def _from_the_end(dataset: Dataset) -> np.ndarray:
    """The interactions of the same user that come after each: int64 [I]."""
    last_U = dataset.offsets[1:] - 1
    return np.repeat(last_U, dataset.lengths) - np.arange(dataset.num_interactions)


def _times(dataset: Dataset) -> np.ndarray:
    """The times, found to be known and in order."""
    time_I = dataset.timestamps
    if time_I is None:
        raise InputError(
            f"data.split=time_point needs times, and {dataset.name} has none. Name "
            "their column: data.time=NAME."
        )
    is_earlier_I = np.append(False, time_I[1:] < time_I[:-1])
    is_earlier_I[dataset.offsets[:-1][dataset.lengths > 0]] = False
    if is_earlier_I.any():
        raise InputError(
            f"the times of a user must not decrease: interaction "
            f"{int(is_earlier_I.argmax())} of {dataset.name} is older than the one "
            "before it. Build the Dataset with preprocessing.encode()."
        )
    return time_I


def _plain(given: Any) -> Any:
    """A moment of any type as ISO 8601, a number as one of Python; others as given."""
    if isinstance(given, datetime.date):  # a datetime or a pandas Timestamp too
        return given.isoformat()
    if isinstance(given, np.datetime64):
        return str(given)
    return given.item() if isinstance(given, np.number) else given


def _moment(option: str, given: Any, sorted_I: np.ndarray) -> int | float:
    """What `test_from` or `valid_from` stands for, in the unit of the log's times."""
    if not isinstance(given, int | float):
        try:
            moment = datetime.datetime.fromisoformat(given)
        except (TypeError, ValueError):
            raise InputError(
                f"data.{option} must be a number, a share of the interactions in "
                f"(0, 1) or an ISO 8601 time such as 2024-03-31: got {given!r}."
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        given = moment.timestamp()
        return int(given) if given.is_integer() else given
    if 0 < given < 1:
        return sorted_I[int(given * len(sorted_I))].item()
    return given


def _shown(time: np.number, given: Any) -> str:
    """A time of the log for a person who gave a moment: a date where that was one."""
    if isinstance(given, str):
        try:
            moment = datetime.datetime.fromtimestamp(float(time), datetime.UTC)
        except (OverflowError, ValueError, OSError):
            return f"{time} (not in seconds since 1970, which a date needs)"
        return moment.isoformat()
    return str(time)
