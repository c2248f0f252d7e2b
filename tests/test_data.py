"""The log and its split, against loops over Python lists."""

import hashlib

import numpy as np
import pytest

from jaxrec import data, preprocessing, readers
from jaxrec.errors import InputError

# Items of each user, oldest first: too short to be split, just enough, longer.
HISTORIES = [[1, 2], [3, 1, 2], [4], [2, 2, 3, 1, 4], [1, 3, 4, 2]]


def dataset(histories=HISTORIES, *, num_items=5, **fields) -> data.Dataset:
    """Item 5 is in the catalogue and never taken."""
    fields = {
        "user_ids": np.array([f"u{n}" for n in range(len(histories))]),
        "item_ids": np.arange(10, 10 + num_items),
        **fields,
    }
    return data.Dataset(
        items=np.array([i for items in histories for i in items], np.int32),
        offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        **fields,
    )


def test_sizes():
    log = dataset()
    assert (log.num_users, log.num_items, log.num_interactions) == (5, 5, 15)
    assert log.lengths.tolist() == [2, 3, 1, 5, 4]


def test_first_occurrences_equal_a_loop():
    rng = np.random.default_rng(5)
    histories = [rng.integers(1, 5, rng.integers(0, 9)).tolist() for _ in range(50)]
    log = dataset(histories)
    expected = [item not in h[:n] for h in histories for n, item in enumerate(h)]
    assert log.is_first_I.tolist() == expected and not all(expected)
    with pytest.raises(ValueError, match="read-only"):
        log.is_first_I[0] = False


def test_spans_equal_a_loop():
    rng = np.random.default_rng(6)
    first_N, length_N = rng.integers(0, 99, 40), rng.integers(0, 4, 40)
    expected = [f + k for f, n in zip(first_N, length_N, strict=True) for k in range(n)]
    assert data.spans(first_N, length_N).tolist() == expected
    assert data.spans(first_N[:0], length_N[:0]).tolist() == []


def test_leave_one_out_equals_a_loop():
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 9, rng.integers(0, 8)).tolist() for _ in range(200)]
    split = data.leave_one_out(dataset(histories, num_items=8))
    items, offsets = split.dataset.items, split.dataset.offsets
    valid, test, num_short = [], [], 0
    for user, history in enumerate(histories):
        is_split = len(history) >= 3
        train = history[:-2] if is_split else history
        start, end = offsets[user], split.train_end[user]
        assert items[start:end].tolist() == train
        num_short += not is_split
        if is_split:
            valid.append((user, history[:-2], history[-2]))
            test.append((user, history[:-1], history[-1]))
    assert num_short and valid
    assert split.report == {"users_train_only": num_short}
    for rows, holdout in ((valid, split.valid), (test, split.test)):
        got = [
            (user, items[offsets[user] : end].tolist(), target)
            for user, end, target in zip(*holdout, strict=True)
        ]
        assert got == rows
        assert holdout.user.dtype == holdout.target.dtype == np.int32
        assert holdout.end.dtype == np.int64


def test_leave_one_out_of_short_histories_only():
    with pytest.raises(InputError, match="none of the 2 users of unnamed has them"):
        data.leave_one_out(dataset([[1, 2], [3]]))


def test_train_item_counts():
    split = data.leave_one_out(dataset())
    # Users train on [1, 2], [3], [4], [2, 2, 3], [1, 3]; row 0 is padding.
    assert split.train_item_counts().tolist() == [0, 2, 3, 3, 1, 0]
    assert split.train_lengths.tolist() == [2, 1, 1, 3, 2]


def test_statistics():
    got = data.statistics(data.leave_one_out(dataset(report={"rows_read": 15})))
    # Targets are 2, 4 and 2: each is in somebody's training part.
    expected = {
        "name": "unnamed",
        "users": 5,
        "items": 5,
        "interactions": 15,
        "length_mean": 3.0,
        "length_median": 3.0,
        "length_min": 1,
        "length_max": 5,
        "train_interactions": 9,
        "items_in_train": 4,
        "valid_rows": 3,
        "test_rows": 3,
        "test_targets_not_in_train": 0,
        "users_train_only": 2,
        "rows_read": 15,
    }
    assert {key: got[key] for key in expected} == expected


def test_statistics_counts_targets_that_nobody_trains_on():
    split = data.leave_one_out(dataset([[1, 2, 3], [1, 2, 4], [2, 1, 1]]))
    assert data.statistics(split)["test_targets_not_in_train"] == 2


def test_train_item_counts_are_shared_and_cannot_be_changed():
    split = data.leave_one_out(dataset())
    with pytest.raises(ValueError, match="read-only"):
        split.train_item_counts()[1] = 5


def test_is_train():
    """Users train on 2 of 2, 1 of 3, 1 of 1, 3 of 5 and 2 of 4."""
    split = data.leave_one_out(dataset())
    expected = [1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0]
    assert split.is_train_I.tolist() == [bool(x) for x in expected]


def test_statistics_are_of_the_callers_own():
    split = data.leave_one_out(dataset())
    data.statistics(split)["users"] = 9
    assert data.statistics(split)["users"] == 5


# --- leakage -------------------------------------------------------------------------


def test_leakage_of_two_users_by_hand():
    """Training is at 1, 2 and 7, 9; the test items at 5 and 12.

    Only the one at 5 is older than a training item, than two of the four.
    """
    log = dataset(
        [[1, 2, 3, 4], [1, 2, 3, 4]], timestamps=np.array([1, 2, 4, 5, 7, 9, 11, 12])
    )
    found = data.statistics(data.leave_one_out(log))
    assert found["test_share_older_than_training"] == 0.5
    assert found["training_share_newer_than_test"] == 0.25


def test_equal_times_are_no_leak():
    log = dataset([[1, 2, 3], [1, 2, 3]], timestamps=np.array([1, 2, 5, 5, 6, 7]))
    assert data.leakage(data.leave_one_out(log)) == {
        "test_share_older_than_training": 0.0,
        "training_share_newer_than_test": 0.0,
    }


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_leakage_equals_a_loop(dtype):
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 9, rng.integers(0, 8)).tolist() for _ in range(80)]
    times = [np.sort(rng.integers(0, 50, len(items))) for items in histories]
    log = dataset(
        histories, num_items=8, timestamps=np.concatenate(times).astype(dtype) / 2
    )
    training, test = [], []
    for own in times:
        training += (own[:-2] if len(own) >= 3 else own).tolist()
        test += own[-1:].tolist() if len(own) >= 3 else []
    older = [sum(s > t for s in training) for t in test]
    expected = {
        "test_share_older_than_training": sum(n > 0 for n in older) / len(test),
        "training_share_newer_than_test": sum(older) / len(test) / len(training),
    }
    got = data.leakage(data.leave_one_out(log))
    # Rounded to four places.
    assert got == pytest.approx(expected, abs=5.1e-5)
    assert 0 < got["training_share_newer_than_test"]


def test_leakage_is_unknown_without_times():
    assert data.leakage(data.leave_one_out(dataset())) == {}
    found = data.statistics(data.leave_one_out(dataset()))
    assert not [key for key in found if "older" in key or "newer" in key]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"offsets": np.array([0, 2, 15])}, "in 6 entries .* got 3 entries"),
        ({"offsets": np.array([1, 2, 5, 6, 11, 15])}, "must run from 0 to 15"),
        ({"offsets": np.array([0, 2, 5, 6, 11, 14])}, "must run from 0 to 15"),
        ({"offsets": np.array([0, 5, 2, 6, 11, 15])}, "must not decrease"),
        ({"items": np.arange(15, dtype=np.int32) % 5}, r"in 1\.\.5: got 0\.\.4"),
        ({"item_ids": np.arange(3)}, r"in 1\.\.3: got 1\.\.4"),
    ],
)
def test_a_wrong_log_is_refused(change, message):
    log = dataset()
    fields = {
        "items": log.items,
        "offsets": log.offsets,
        "user_ids": log.user_ids,
        "item_ids": log.item_ids,
        **change,
    }
    with pytest.raises(InputError, match=message):
        data.Dataset(**fields)


def test_sha256_of_a_dataset_is_that_of_its_bytes():
    log = dataset([[1, 2]], num_items=2)
    content = b"".join(
        [
            (0).to_bytes(8, "little") + (2).to_bytes(8, "little"),
            (1).to_bytes(4, "little") + (2).to_bytes(4, "little"),
            b"u0\0",
            b"10\n11\0",
        ]
    )
    assert log.sha256() == hashlib.sha256(content).hexdigest()


def test_equal_logs_have_equal_hashes_and_others_not():
    log = dataset()
    same = dataset(name="another", timestamps=np.arange(15))
    others = [
        dataset([[1, 2, 3], [1, 2], *HISTORIES[2:]]),
        dataset([*HISTORIES[:-1], [1, 3, 4, 1]]),
        dataset(num_items=6),
        dataset(user_ids=np.arange(5)),
    ]
    assert log.sha256() == same.sha256()
    assert len({log.sha256(), *(other.sha256() for other in others)}) == 5
    split = data.leave_one_out(log)
    test = split.test._replace(end=split.test.end - 1)
    other = data.Split(log, split.train_end, split.valid, test)
    assert split.sha256() == data.leave_one_out(same).sha256() != other.sha256()


@pytest.mark.parametrize(
    "name, sizes, shortest, longest",
    [
        ("ml-1m", (6040, 3416, 999_611), 18, 2277),
        ("beauty", (40226, 54542, 353_962), 5, 293),
    ],
)
def test_the_papers_files(data_dir, name, sizes, shortest, longest):
    log = preprocessing.encode(readers.read(data_dir / f"{name}.txt"), name=name)
    found = data.statistics(data.leave_one_out(log))
    assert (found["users"], found["items"], found["interactions"]) == sizes
    assert (found["length_min"], found["length_max"]) == (shortest, longest)
    assert found["users_train_only"] == 0
    assert found["test_rows"] == found["valid_rows"] == sizes[0]
    share = found["test_targets_not_in_train"] / found["test_rows"]
    assert round(share, 3) == {"ml-1m": 0.0, "beauty": 0.1}[name]


def test_ids_of_ml_1m_stay(data_dir):
    """Item id i is item i, user id u is user u - 1, and lines keep their order."""
    log = preprocessing.encode(readers.read(data_dir / "ml-1m.txt"))
    pairs = np.loadtxt(data_dir / "ml-1m.txt", dtype=np.int64)
    assert (log.item_ids == np.arange(1, 3417)).all()
    assert (log.user_ids == np.arange(1, 6041)).all()
    # The file's lines are grouped by user already.
    assert (pairs[:, 0] == np.repeat(np.arange(1, 6041), log.lengths)).all()
    assert (pairs[:, 1] == log.items).all()
