"""Splits, against loops over Python lists; and that all their readers take them."""

import datetime

import numpy as np
import pandas as pd
import pytest

from jaxrec import data, experiment, loop, popularity, readers, splits, train
from jaxrec.errors import InputError

BERLIN = datetime.timezone(datetime.timedelta(hours=1))
SPLITS = [
    ("leave_last_n", {"holdout_n": 2}),
    ("time_point", {"test_from": 70, "valid_from": 50}),
    ("held_out_users", {"holdout_users": 0.3}),
]


def random_log(seed: int = 0, *, num_users=60, num_items=12) -> data.Dataset:
    """Histories of 0 to 9 items, with equal times within and between users."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 10, num_users)
    times = [np.sort(rng.integers(0, 100, n)) for n in lengths]
    return data.Dataset(
        items=rng.integers(1, num_items + 1, lengths.sum()).astype(np.int32),
        offsets=np.append(0, np.cumsum(lengths)),
        user_ids=np.arange(num_users),
        item_ids=np.arange(num_items),
        timestamps=np.concatenate(times),
        name="random",
    )


def histories(log: data.Dataset) -> list[list[tuple[int, int]]]:
    """(item, time) of each user."""
    pairs = list(zip(log.items.tolist(), log.timestamps.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]


def trained(split: data.Split) -> list[list[int]]:
    log = split.dataset
    starts = log.offsets[:-1]
    return [
        log.items[a:b].tolist() for a, b in zip(starts, split.train_end, strict=True)
    ]


def rows(split: data.Split, holdout: data.Holdout) -> list[tuple]:
    """(user, history, target) of a holdout."""
    log = split.dataset
    assert holdout.user.dtype == holdout.target.dtype == np.int32
    assert holdout.end.dtype == np.int64
    assert (log.items[holdout.end] == holdout.target).all()
    return [
        (user, log.items[log.offsets[user] : end].tolist(), target)
        for user, end, target in zip(*(x.tolist() for x in holdout), strict=True)
    ]


# --- leave last n --------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_leave_last_n_equals_a_loop(n):
    log = random_log()
    split = splits.leave_last_n(log, holdout_n=n)
    train_parts, valid, test, num_short = [], [], [], 0
    for user, pairs in enumerate(histories(log)):
        items = [item for item, _ in pairs]
        if len(items) <= 2 * n:
            num_short += 1
            train_parts.append(items)
            continue
        train_parts.append(items[: -2 * n])
        for place in range(len(items) - 2 * n, len(items)):
            part = valid if place < len(items) - n else test
            part.append((user, items[:place], items[place]))
    assert num_short and test
    assert trained(split) == train_parts
    assert rows(split, split.valid) == valid and rows(split, split.test) == test
    assert split.report == {"users_train_only": num_short}


def test_leave_last_one_is_leave_one_out():
    log = random_log(1)
    one, other = splits.leave_last_n(log, holdout_n=1), data.leave_one_out(log)
    assert one.sha256() == other.sha256() and one.report == other.report


# --- a point in time -----------------------------------------------------------------


def slow_time_point(log, valid_time, test_time):
    train_parts, parts, alone = [], {"valid": [], "test": []}, {"valid": 0, "test": 0}
    for user, pairs in enumerate(histories(log)):
        items = [item for item, _ in pairs]
        train_parts.append([item for item, time in pairs if time < valid_time])
        for place, (item, time) in enumerate(pairs):
            if time >= valid_time:
                part = "test" if time >= test_time else "valid"
                if place:
                    parts[part].append((user, items[:place], item))
                else:
                    alone[part] += 1
    return train_parts, parts, alone


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("valid_time, test_time", [(50, 70), (1, 99), (30, 35.5)])
def test_time_point_equals_a_loop(seed, valid_time, test_time):
    log = random_log(seed)
    split = splits.time_point(log, test_from=test_time, valid_from=valid_time)
    train_parts, parts, alone = slow_time_point(log, valid_time, test_time)
    assert trained(split) == train_parts
    assert rows(split, split.valid) == parts["valid"]
    assert rows(split, split.test) == parts["test"]
    assert sum(map(len, (*parts.values(), *train_parts))) + sum(alone.values()) == len(
        log.items
    )
    whole = zip(train_parts, histories(log), strict=True)
    assert split.report == {
        "valid_from": valid_time,
        "test_from": test_time,
        "valid_interactions_without_history": alone["valid"],
        "test_interactions_without_history": alone["test"],
        "users_train_only": sum(len(a) == len(b) for a, b in whole),
    }


def test_a_share_is_the_time_of_the_first_interaction_after_it():
    """Times 0, 0, 1, 1, ..., 9, 9: place 12 of 20 is at 6, and place 4 at 2."""
    log = data.Dataset(
        items=np.ones(20, np.int32),
        offsets=np.array([0, 10, 20]),
        user_ids=np.arange(2),
        item_ids=np.arange(1),
        timestamps=np.tile(np.arange(10), 2),
    )
    split = splits.time_point(log, test_from=0.6, valid_from=0.2)
    assert (split.report["valid_from"], split.report["test_from"]) == (2, 6)
    # Place 13 is the second one at 6: equal times stay together.
    assert splits.time_point(log, test_from=0.65).report["test_from"] == 6
    # Eight interactions from 6 on, so as many from place 4, at 2, to there.
    assert splits.time_point(log, test_from=0.6).report["valid_from"] == 2
    with pytest.raises(
        InputError, match="test_from=0.4 leaves 8 of 20.* data.valid_from"
    ):
        splits.time_point(log, test_from=0.4)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("2024-01-02", 1_704_153_600),
        ("2024-01-02T00:00:00+01:00", 1_704_150_000),
        ("2024-01-01 23:30:00.5", 1_704_151_800.5),
        (datetime.date(2024, 1, 2), 1_704_153_600),
        (datetime.datetime(2024, 1, 2, tzinfo=BERLIN), 1_704_150_000),
        (pd.Timestamp("2024-01-01 23:30:00.5"), 1_704_151_800.5),
        (np.datetime64("2024-01-02"), 1_704_153_600),
    ],
)
def test_iso_times_are_seconds_in_utc(text, seconds):
    log = random_log()
    day = 1_704_150_000 - 3600 + 120 * log.timestamps  # from 23:00, 3 h 20 min long
    log = data.Dataset(log.items, log.offsets, log.user_ids, log.item_ids, day)
    split = splits.time_point(log, test_from=text, valid_from=0.1)
    assert split.report["test_from"] == seconds
    assert split.test.end.tolist() == [
        end
        for end in np.flatnonzero(day >= seconds).tolist()
        if end not in log.offsets.tolist()
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test_from": [50]}, r"data.test_from must be a number, .*: got \[50\]"),
        ({"test_from": pd.NaT}, "data.test_from must be a number, .*: got 'NaT'"),
        ({"test_from": "soon"}, "data.test_from must be a number, a share.*got 'soon'"),
        ({"test_from": 50, "valid_from": "1,5"}, "data.valid_from must be a number"),
        ({"test_from": 50, "valid_from": 60}, "before data.valid_from=60, then before"),
        ({"test_from": 50, "valid_from": 0}, "data.valid_from=0, .* from 0 to 99"),
        ({"test_from": 100, "valid_from": 9}, "test_from=100 must .* of 0 and 99"),
        ({"test_from": 100}, "data.test_from=100 must be after the first .* the last"),
        ({"test_from": 0}, "data.test_from=0 must be after the first"),
        (
            {"test_from": "2024-01-02", "valid_from": 9},
            r"=2024-01-02 must .* 1970-01-01T00:00:00\+00:00 and .*T00:01:39\+00:00",
        ),
        ({"test_from": 1.5, "valid_from": 1.2}, "no validation interaction of random"),
    ],
)
def test_a_time_point_that_leaves_a_part_empty(options, message):
    with pytest.raises(InputError, match=message):
        splits.time_point(random_log(), **options)


def test_a_date_where_the_times_are_no_seconds():
    log = random_log()
    nanoseconds = log.timestamps + 1_704_150_000 * 10**9
    fields = (log.items, log.offsets, log.user_ids, log.item_ids, nanoseconds)
    with pytest.raises(InputError, match=r"of 17041500000{8}\d* \(not in seconds"):
        splits.time_point(data.Dataset(*fields), test_from="2024-01-02")


def test_a_time_point_needs_times_in_order():
    log = random_log()
    fields = (log.items, log.offsets, log.user_ids, log.item_ids)
    with pytest.raises(InputError, match="needs times, .* data.time=NAME"):
        splits.time_point(data.Dataset(*fields), test_from=50)
    user = int(np.argmax(log.lengths))
    times = log.timestamps.copy()
    times[log.offsets[user]] = 99
    expected = f"interaction {log.offsets[user] + 1} of unnamed is older than the one"
    with pytest.raises(InputError, match=expected):
        splits.time_point(data.Dataset(*fields, times), test_from=50)


# --- held-out users ------------------------------------------------------------------


@pytest.mark.parametrize("holdout_users, count", [(7, 7), (0.5, None), (1e-9, 1)])
def test_held_out_users_are_ranked_and_never_train(holdout_users, count):
    log = random_log()
    items = [[item for item, _ in pairs] for pairs in histories(log)]
    num_long = sum(len(own) >= 3 for own in items)
    count = count or round(0.5 * num_long)
    split = splits.held_out_users(log, holdout_users=holdout_users, seed=3)
    chosen = split.test.user.tolist()
    assert len(set(chosen)) == len(chosen) == count
    assert trained(split) == [
        [] if user in chosen else own for user, own in enumerate(items)
    ]
    assert rows(split, split.valid) == [
        (u, items[u][:-2], items[u][-2]) for u in chosen
    ]
    assert rows(split, split.test) == [(u, items[u][:-1], items[u][-1]) for u in chosen]
    assert split.report == {"users_train_only": log.num_users - count}


def test_held_out_users_are_drawn_uniformly_by_the_seed():
    log = random_log()

    def draw(seed):
        split = splits.held_out_users(log, holdout_users=5, seed=seed)
        return split.test.user.tolist()

    assert draw(1) == draw(1) != draw(2)
    times = np.bincount(sum((draw(seed) for seed in range(400)), []), minlength=60)
    is_long = log.lengths >= 3
    assert (times[~is_long] == 0).all()
    # Binomial of 400 draws with p = 5 / n: five standard deviations.
    p = 5 / is_long.sum()
    deviation = np.abs(times[is_long] - 400 * p).max()
    assert 0 < deviation < 5 * np.sqrt(400 * p * (1 - p))


@pytest.mark.parametrize("wrong", [0, -1, 1.0, 0.0, 2.5, 1000])
def test_held_out_users_that_there_are_not(wrong):
    with pytest.raises(InputError, match=f"a share in .* from 1 to .*got {wrong}"):
        splits.held_out_users(random_log(), holdout_users=wrong)


# --- by name -------------------------------------------------------------------------

NONE_GIVEN = dict.fromkeys(("holdout_n", "test_from", "valid_from", "holdout_users"))


@pytest.mark.parametrize("name, options", SPLITS)
def test_choose(name, options):
    log = random_log()
    hold_out = splits.choose(name, seed=4, **{**NONE_GIVEN, **options})
    seed = {"seed": 4} if name == "held_out_users" else {}
    expected = splits.SPLITS[name](log, **options, **seed)
    assert hold_out(log).sha256() == expected.sha256()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("leave_one", {}, "no split is named 'leave_one'; did you mean leave_one_out"),
        ("leave_last_n", {}, "data.split=leave_last_n needs data.holdout_n"),
        ("time_point", {"valid_from": 3}, "needs data.test_from"),
        (
            "leave_one_out",
            {"test_from": 3},
            "data.test_from is an option of data.split=time_point: got .*leave_one_out",
        ),
    ],
)
def test_wrong_options_are_refused_before_there_is_data(name, options, message):
    with pytest.raises(InputError, match=message):
        splits.choose(name, seed=0, **{**NONE_GIVEN, **options})


@pytest.mark.parametrize("wrong", [0, -2, 1.5, 2.0])
def test_leave_last_none(wrong):
    with pytest.raises(InputError, match=f"at least 1: got {wrong}"):
        splits.leave_last_n(random_log(), holdout_n=wrong)
    with pytest.raises(InputError, match="more than 18 interactions .*none of the 60"):
        splits.leave_last_n(random_log(), holdout_n=9)


# --- users that train on nothing -----------------------------------------------------


@pytest.mark.parametrize("name, options", SPLITS)
def test_statistics_count_what_is_cold_and_short(name, options):
    split = splits.SPLITS[name](random_log(num_items=60), **options)
    found = data.statistics(split)
    parts, tested = trained(split), rows(split, split.test)
    in_train = {item for part in parts for item in part}
    assert found["users_without_training"] == sum(not part for part in parts)
    assert found["users_of_one_training_item"] == sum(len(p) == 1 for p in parts)
    assert found["items_in_train"] == len(in_train)
    assert found["test_users"] == len({user for user, *_ in tested})
    assert found["test_rows_of_users_without_training"] == sum(
        not parts[user] for user, *_ in tested
    )
    cold = sum(target not in in_train for *_, target in tested)
    assert found["test_targets_not_in_train"] == cold
    if name != "leave_last_n":
        assert found["test_rows_of_users_without_training"] > 0 < cold


@pytest.mark.parametrize("name, options", SPLITS)
def test_popularity_ranks_every_row(name, options):
    split = splits.SPLITS[name](random_log(), **options)
    count = np.bincount(sum(trained(split), []), minlength=13)
    expected = []
    for _, history, target in rows(split, split.test):
        rivals = set(range(1, 13)) - set(history) - {target}
        rank = 1 + sum(count[item] >= count[target] for item in rivals)
        expected.append(13 if target in history else rank)
    ranks = popularity.ranks(split, split.test)
    assert ranks.filtered.tolist() == expected


def settings(name, options, **sections) -> dict:
    return {
        "method": "test",
        "data": {"split": name, "name": "n", **options},
        "model": {"name": "sasrec", "width": 8, "num_layers": 1, "num_positions": 9},
        "loss": {"name": "ce"},
        "optim": {"name": "adam"},
        "train": {"batch_size": 16, "max_length": 9, "max_epochs": 1},
        "eval": {"batch_size": 32},
        **sections,
    }


def frame(log: data.Dataset):
    users = np.repeat(log.user_ids, log.lengths)
    columns = {"user": users, "item": log.items, "timestamp": log.timestamps}
    return readers.pandas().DataFrame(columns)


@pytest.mark.parametrize("name, options", SPLITS)
def test_an_experiment_takes_users_without_training(name, options):
    built = experiment.build(
        settings(
            name,
            options,
            loss={"name": "sampled_ce", "num_negatives": 2, "exclude": "history"},
        ),
        frame(random_log()),
    )
    parts = trained(built.split)
    user_N, length_N = loop.training_users(built)
    assert user_N.tolist() == [u for u, part in enumerate(parts) if len(part) > 1]
    assert length_N.tolist() == [len(parts[u]) - 1 for u in user_N]
    tested = (
        *rows(built.split, built.split.valid),
        *rows(built.split, built.split.test),
    )
    longest = max(map(len, (*parts, *(history for _, history, _ in tested))))
    assert experiment.longest_window(built.split, built.encoder) == longest


def test_a_run_on_a_time_point(tmp_path):
    name, options = SPLITS[1]
    result = train.train(
        settings(name, options),
        tmp_path / "run",
        frame=frame(random_log()),
        log=lambda line: None,
    )
    found = result["data"]
    assert found["test_rows_of_users_without_training"] > 0
    assert found["test_share_older_than_training"] == 0
    ranks = np.load(tmp_path / "run" / "ranks.npz")
    assert len(ranks["test_filtered"]) == found["test_rows"]
    # A row is named by its user and the number of items before the hidden one, though
    # a user has several.
    log = random_log()
    number = {user: n for n, user in enumerate(np.flatnonzero(log.lengths))}
    _, parts, _ = slow_time_point(log, options["valid_from"], options["test_from"])
    for part, expected in parts.items():
        names = zip(ranks[f"{part}_user"], ranks[f"{part}_history_length"], strict=True)
        assert list(names) == [(number[user], len(had)) for user, had, _ in expected]
    assert len(set(ranks["test_user"])) < len(ranks["test_user"])
    hits = (ranks["test_filtered"] <= 10).mean()
    assert result["test"]["hr@10"] == pytest.approx(hits, rel=1e-6)  # float32 sums
