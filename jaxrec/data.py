"""The interaction log in memory: one flat array of items, and its split.

`Dataset` is a log in CSR form: the items of user u, oldest first, are
`items[offsets[u]:offsets[u + 1]]`. A `Split` never copies the log: whatever the
protocol, a user's training part is a prefix of that user's items, and a held-out
row is a prefix (the history) and the one item to be predicted from it.

Readers and filters that make a Dataset are in `readers`; further splits in `splits`;
names of public data sets in `datasets`.
"""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np

from jaxrec import ordering
from jaxrec.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions in CSR form, with the tables back to the caller's ids.

    Attributes:
      items: int32 [I], item ids in 1..num_items, grouped by user, oldest first.
      offsets: int64 [U + 1], user u owns `items[offsets[u]:offsets[u + 1]]`.
      user_ids: [U], the caller's id of each user.
      item_ids: [num_items], the caller's id of item i is `item_ids[i - 1]`.
      timestamps: [I] int64 or float64, of any unit, or None where they are unknown.
      name: what the results call it.
      report: what reading and filtering saw and removed, for the record.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    timestamps: np.ndarray | None = None
    name: str = "unnamed"
    report: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_csr(self.items, self.offsets, len(self.user_ids), len(self.item_ids))

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """Interactions of each user, int64 [U]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def is_first_I(self) -> np.ndarray:
        """Whether an interaction is the user's first with its item: bool [I]."""
        user_I = np.repeat(np.arange(self.num_users), self.lengths)
        is_first_I = ~ordering.is_repeat(user_I * (self.num_items + 1) + self.items)
        is_first_I.flags.writeable = False  # shared by all who ask
        return is_first_I

    def sha256(self) -> str:
        """Hash of offsets, items and both id tables: equal logs, equal hash."""
        return self._sha256

    @functools.cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.offsets, "<i8").data)
        digest.update(np.ascontiguousarray(self.items, "<i4").data)
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join(map(str, ids.tolist())).encode())
            digest.update(b"\0")
        return digest.hexdigest()


def spans(first_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """The indices of N runs, one after another: first, first + 1, ..., int64.

    >>> spans(np.array([7, 0, 3]), np.array([2, 0, 3])).tolist()
    [7, 8, 3, 4, 5]
    """
    before_N = np.cumsum(length_N) - length_N
    return np.repeat(first_N - before_N, length_N) + np.arange(length_N.sum())


def check_csr(items, offsets, num_users: int, num_items: int) -> None:
    """Raises InputError unless they are a log of that many users and items."""
    if len(offsets) != num_users + 1 or offsets[0] != 0 or offsets[-1] != len(items):
        raise InputError(
            f"offsets must run from 0 to {len(items)} (the number of interactions) in "
            f"{num_users + 1} entries (users + 1): got {len(offsets)} entries. "
            "Build the Dataset with preprocessing.encode()."
        )
    if np.any(np.diff(offsets) < 0):
        raise InputError(
            "offsets must not decrease. Build it with preprocessing.encode()."
        )
    if len(items) and (items.min() < 1 or items.max() > num_items):
        raise InputError(
            f"item ids must be in 1..{num_items}: got {items.min()}..{items.max()}. "
            "Build the Dataset with preprocessing.encode()."
        )


class Holdout(NamedTuple):
    """Rows to be ranked: N prefixes and the item that each of them hides.

    The history of row n is `items[offsets[user[n]]:end[n]]`; the item to be ranked
    is `target[n]`, which in a Split is `items[end[n]]`, the interaction after it. A
    user may have several rows.
    """

    user: np.ndarray  # int32 [N]
    end: np.ndarray  # int64 [N]
    target: np.ndarray  # int32 [N]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A Dataset and what each part of an experiment may see of it.

    Attributes:
      dataset: the log.
      train_end: int64 [U], user u trains on `items[offsets[u]:train_end[u]]`, which
        may be nothing.
      valid, test: the held-out rows.
      report: counts of users that a part leaves out, for the record.
    """

    dataset: Dataset
    train_end: np.ndarray
    valid: Holdout
    test: Holdout
    report: dict = dataclasses.field(default_factory=dict)

    @property
    def train_lengths(self) -> np.ndarray:
        return self.train_end - self.dataset.offsets[:-1]

    @property
    def is_train_I(self) -> np.ndarray:
        """Whether an interaction is in the training part: bool [I]."""
        rest = self.dataset.offsets[1:] - self.train_end
        runs = np.stack([self.train_lengths, rest], axis=1).reshape(-1)
        return np.repeat(np.tile([True, False], self.dataset.num_users), runs)

    def train_item_counts(self) -> np.ndarray:
        """Training interactions of each item, int64 [num_items + 1], by its id."""
        return self._train_item_counts

    @functools.cached_property
    def _train_item_counts(self) -> np.ndarray:
        items, num_rows = self.dataset.items, self.dataset.num_items + 1
        rest = items[spans(self.train_end, self.dataset.offsets[1:] - self.train_end)]
        counts = np.bincount(items, minlength=num_rows)
        counts -= np.bincount(rest, minlength=num_rows)
        counts.flags.writeable = False  # shared by all who ask
        return counts

    def sha256(self) -> str:
        """Hash of the log and of every boundary: equal splits, equal hash."""
        return self._sha256

    @functools.cached_property
    def _statistics(self) -> dict:
        dataset, lengths = self.dataset, self.dataset.lengths
        seen_in_train = self.train_item_counts() > 0
        is_cold_U = self.train_lengths == 0
        return {
            "name": dataset.name,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
            "length_mean": round(float(lengths.mean()), 2),
            "length_median": float(np.median(lengths)),
            "length_min": int(lengths.min()),
            "length_max": int(lengths.max()),
            "train_interactions": int(self.train_lengths.sum()),
            "items_in_train": int(seen_in_train.sum()),
            "users_without_training": int(is_cold_U.sum()),
            "users_of_one_training_item": int((self.train_lengths == 1).sum()),
            "valid_rows": len(self.valid.user),
            "test_rows": len(self.test.user),
            "test_users": len(np.unique(self.test.user)),
            "test_rows_of_users_without_training": int(is_cold_U[self.test.user].sum()),
            "test_targets_not_in_train": int((~seen_in_train[self.test.target]).sum()),
            **leakage(self),
            **self.report,
            **dataset.report,
            "sha256": dataset.sha256(),
        }

    @functools.cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256(self.dataset.sha256().encode())
        for array in (self.train_end, *self.valid, *self.test):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        return digest.hexdigest()


def leave_one_out(dataset: Dataset) -> Split:
    """The paper's split: a user's last item is the test, the one before it validation.

    The test history includes the validation item; nothing is trained again. A user
    with fewer than three interactions trains only (the paper's files have none).

    Source: Klenitskiy & Vasilev, RecSys 2023, section 4.1.
    """
    offsets, lengths = dataset.offsets, dataset.lengths
    is_held_out = lengths >= 3
    if not is_held_out.any():
        raise InputError(
            f"leave-one-out needs users with at least 3 interactions: none of the "
            f"{dataset.num_users} users of {dataset.name} has them. Lower the filters."
        )
    user = np.flatnonzero(is_held_out).astype(np.int32)
    last = offsets[1:][user] - 1
    train_end = offsets[1:] - np.where(is_held_out, 2, 0)
    return Split(
        dataset=dataset,
        train_end=train_end,
        valid=Holdout(user, last - 1, dataset.items[last - 1]),
        test=Holdout(user, last, dataset.items[last]),
        report={"users_train_only": int((~is_held_out).sum())},
    )


def leakage(split: Split) -> dict[str, float]:
    """How far training reaches into the future of the test rows, where times are known.

    With t_n the time of the item that test row n hides, N rows, and s_i the times of
    the I training interactions:

      test_share_older_than_training = |{n : t_n < max_i s_i}| / N
      training_share_newer_than_test = (1 / N) sum_n |{i : s_i > t_n}| / I

    The first is the share of rows that are older than the last training interaction of
    the log, which is to say: than any. The second is how much of the training part is
    newer than a test row, on average. Both are 0 where training ends before the test
    begins, as under a split at a time point; leave-one-out leaks by its nature, since
    one user's last item is older than another's training part.

    Returns:
      Both, fractions in [0, 1]; {} where the times are unknown or no row is tested.
    """
    time_I = split.dataset.timestamps
    if time_I is None or not len(split.test.end):
        return {}
    train_I = np.sort(time_I[split.is_train_I])
    test_N = time_I[split.test.end]
    num_newer_N = len(train_I) - np.searchsorted(train_I, test_N, side="right")
    return {
        "test_share_older_than_training": round(float((num_newer_N > 0).mean()), 4),
        "training_share_newer_than_test": round(
            float(num_newer_N.mean() / len(train_I)), 4
        ),
    }


def statistics(split: Split) -> dict:
    """What a reader of a result wants to know of its data, as plain numbers.

    Cold users and items are in there: `users_without_training` train on nothing, and of
    the test rows `test_rows_of_users_without_training` are theirs;
    `test_targets_not_in_train` hide an item that nobody trains on. Such rows are ranked
    like all others. `users_of_one_training_item` train on too little to predict a next
    item. See also `leakage`, and the reports of the split and of the readers.
    """
    return {**split._statistics}
