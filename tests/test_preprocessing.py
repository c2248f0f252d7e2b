"""Filters and ids: against loops over rows, and by hand."""

import decimal
import uuid

import numpy as np
import pandas as pd
import pytest

from jaxrec import columns, preprocessing, readers
from jaxrec.errors import InputError

UUID_1, UUID_2 = uuid.UUID(int=3), uuid.UUID(int=2**100)


def rows(frame) -> list[tuple]:
    return list(frame.itertuples(index=False, name=None))


# --- filters -------------------------------------------------------------------------


def random_log(seed: int, num_rows=300, num_users=40, num_items=30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.integers(0, num_users, num_rows) * 7 - 50,
            "item": [f"i{n}" for n in rng.geometric(0.1, num_rows) % num_items],
            "timestamp": rng.integers(0, 50, num_rows),
            "rating": rng.integers(1, 11, num_rows) / 2,
        }
    )


def test_filter_rating():
    frame = random_log(0)
    kept, num_removed = preprocessing.filter_rating(frame, 3.5)
    expected = [row for row in rows(frame) if row[3] >= 3.5]
    assert rows(kept) == expected
    assert num_removed == len(frame) - len(expected) > 0


def test_filter_rating_needs_ratings():
    with pytest.raises(InputError, match="min_rating=4 needs ratings"):
        preprocessing.filter_rating(random_log(0)[["user", "item"]], 4)


@pytest.mark.parametrize("values", [["view", "buy", "cart"], [1, 2, 3]])
@pytest.mark.parametrize("source", ["frame", "csv", "parquet"])
def test_filter_events(tmp_path, source, values):
    rng = np.random.default_rng(0)
    kinds = np.array(values)[rng.integers(0, 3, 50)]
    table = pd.DataFrame({"user": 1, "item": np.arange(50), "kind": kinds})
    table.to_csv(tmp_path / "log.csv", index=False)
    table.to_parquet(tmp_path / "log.parquet")
    names = {"time": "", "event": "kind"}
    if source == "frame":
        frame = readers.as_frame(table, **names)
    else:
        frame = readers.read(tmp_path / f"log.{source}", **names)
    wanted = (str(values[2]), str(values[0]))
    kept, num_removed = preprocessing.filter_events(frame, wanted)
    expected = [n for n, kind in enumerate(kinds) if str(kind) in wanted]
    assert kept["item"].tolist() == expected
    assert num_removed == 50 - len(expected) > 0
    most = max(values, key=lambda kind: (kinds == kind).sum())
    message = f"the event 'sell'; the events and their rows: {most} \\([0-9]+\\), "
    with pytest.raises(InputError, match=message):
        preprocessing.filter_events(frame, ("sell", str(values[0])))


def test_filter_events_needs_events():
    with pytest.raises(InputError, match=r"events=\('buy',\) need a column of events"):
        preprocessing.filter_events(random_log(0), ("buy",))


@pytest.mark.parametrize("policy", ["first", "last"])
@pytest.mark.parametrize("has_times", [True, False])
def test_drop_duplicates_equals_a_loop(policy, has_times):
    frame = random_log(1)
    frame = frame if has_times else frame.drop(columns="timestamp")
    table = rows(frame)
    in_time = sorted(range(len(table)), key=lambda k: table[k][2] if has_times else 0)
    chosen = {}
    for k in in_time if policy == "first" else in_time[::-1]:
        chosen.setdefault(table[k][:2], k)
    kept, num_removed = preprocessing.drop_duplicates(frame, policy)
    assert rows(kept) == [table[k] for k in sorted(chosen.values())]
    assert num_removed == len(table) - len(chosen) > 0


def test_keep_duplicates():
    frame = random_log(1)
    kept, num_removed = preprocessing.drop_duplicates(frame, "keep")
    assert kept is frame and num_removed == 0
    with pytest.raises(InputError, match="keep, first or last: got 'latest'"):
        preprocessing.drop_duplicates(frame, "latest")


def slow_core(table, min_user, min_item):
    """Takes out one row at a time."""
    table = list(table)
    while True:
        users, items = [row[0] for row in table], [row[1] for row in table]
        for k, (user, item, *_) in enumerate(table):
            if users.count(user) < min_user or items.count(item) < min_item:
                del table[k]
                break
        else:
            return table


@pytest.mark.parametrize(
    "min_user, min_item", [(8, 9), (1, 12), (9, 1), (2, 2), (99, 1)]
)
def test_k_core_equals_a_loop(min_user, min_item):
    frame = random_log(2, num_rows=200)
    kept, num_removed = preprocessing.k_core(frame, min_user, min_item)
    assert rows(kept) == slow_core(rows(frame), min_user, min_item)
    assert num_removed == len(frame) - len(kept)


def test_k_core_follows_a_chain():
    """User n shares item n with user n + 1: its end pulls all of the chain out."""
    links = [(n, n) for n in range(9)] + [(n + 1, n) for n in range(8)]
    frame = pd.DataFrame(links, columns=["user", "item"])
    assert len(preprocessing.k_core(frame, 1, 2)[0]) == 16
    assert preprocessing.k_core(frame, 2, 2)[1] == 17


def test_k_core_of_one_keeps_all():
    frame = random_log(2)
    kept, num_removed = preprocessing.k_core(frame, 1, 0)
    assert kept is frame and num_removed == 0


# --- encode --------------------------------------------------------------------------


def slow_encode(table, has_times):
    """(histories by ascending user, users, items) of rows (user, item, time)."""
    users = sorted({row[0] for row in table})
    items = sorted({row[1] for row in table})
    histories = []
    for user in users:
        own = [row for row in table if row[0] == user]
        if has_times:
            own.sort(key=lambda row: row[2])  # stable
        histories.append([(items.index(row[1]) + 1, row[2]) for row in own])
    return histories, users, items


@pytest.mark.parametrize("scale", [1, 1e-3, 2**55, None], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_encode_equals_a_loop(scale, seed):
    """Times in integers, floats, integers too wide for one sort key, and none."""
    frame = random_log(seed).drop(columns="rating")
    frame["timestamp"] = (frame["timestamp"] - 25) * (scale or 1)
    histories, users, items = slow_encode(rows(frame), scale is not None)
    frame = frame if scale is not None else frame.drop(columns="timestamp")
    log = preprocessing.encode(frame, name="x")
    assert (log.name, log.report) == ("x", {})
    assert log.items.dtype == np.int32 and log.offsets.dtype == np.int64
    assert log.user_ids.tolist() == users
    assert log.item_ids.tolist() == items
    assert log.lengths.tolist() == [len(history) for history in histories]
    flat = [row for history in histories for row in history]
    assert log.items.tolist() == [item for item, _ in flat]
    if scale is None:
        assert log.timestamps is None
    else:
        assert log.timestamps.tolist() == [time for _, time in flat]


@pytest.mark.parametrize(
    "unit, ticks, step_s",
    [("s", 1, 1), ("us", 250_000, 0.25), ("ns", 250_000_000, 0.25), ("ns", 10, 1e-8)],
)
def test_datetimes_are_ordered_before_they_are_seconds(unit, ticks, step_s):
    """A float64 of seconds since 1970 is too coarse for steps of 10 ns."""
    order = np.random.default_rng(0).permutation(400)
    since = np.datetime64("2026-01-01", unit)
    times = since + order * np.timedelta64(ticks, unit)
    frame = pd.DataFrame({"user": 1, "item": order, "timestamp": times})
    log = preprocessing.encode(frame)
    assert log.items.tolist() == [*range(1, 401)]
    assert log.timestamps.dtype == (np.int64 if step_s == 1 else np.float64)
    since_s = int(since.astype("datetime64[s]").astype(np.int64))
    expected = step_s * np.arange(400)
    np.testing.assert_allclose(log.timestamps - since_s, expected, atol=5e-7)


@pytest.mark.parametrize("scale", [1, 1.0])
def test_equal_times_keep_the_order_of_the_rows(scale):
    items = np.random.default_rng(0).permutation(1000)
    times = np.repeat([5, 4], 500) * scale
    frame = pd.DataFrame({"user": 1, "item": items, "timestamp": times})
    expected = [*items[500:], *items[:500]]
    assert (preprocessing.encode(frame).items - 1).tolist() == expected


def test_integers_sort_by_value_and_strings_by_code_point():
    frame = pd.DataFrame({"user": [10, 9, -1], "item": ["é", "b", "B"]})
    log = preprocessing.encode(frame)
    assert log.user_ids.tolist() == [-1, 9, 10] and log.user_ids.dtype == np.int64
    assert log.item_ids.tolist() == ["B", "b", "é"] and log.item_ids.dtype.kind == "U"
    assert log.items.tolist() == [1, 2, 3]
    log = preprocessing.encode(frame.astype({"user": str}))
    assert log.user_ids.tolist() == ["-1", "10", "9"]


@pytest.mark.parametrize(
    "ids",
    [
        [2**64 - 1, 2**53 + 1, 2**53],
        pd.array([2, 2**53 + 1, 2**53], "Int64"),
        pd.array([2, 2**53 + 1, 2**53], "int64[pyarrow]"),
        pd.Categorical([2, 2**53 + 1, 2**53], categories=[2**53 + 1, 2, 5, 2**53]),
        np.array([2, 2**53 + 1, 2**53], object),
        np.array([3, 1, 2], np.uint8),
        pd.Categorical(["b", "a", "c"], categories=["c", "b", "a", "d"]),
        pd.array(["b", "a", "c"], "string"),
        np.array(["b", "a", "c"], object),
    ],
    ids=str,
)
def test_kinds_of_ids(ids):
    frame = pd.DataFrame({"user": ids, "item": 1, "timestamp": 0})
    log = preprocessing.encode(readers.as_frame(frame))
    assert log.user_ids.tolist() == sorted(pd.Series(ids).tolist())
    assert log.user_ids.dtype.kind in "iuU"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint64"])
@pytest.mark.parametrize("largest", [120, 70_000, 2**50])
def test_integers_are_numbered_by_value(dtype, largest):
    """By a table of all integers up to the largest, or where it is large by hashing."""
    rng = np.random.default_rng(0)
    largest = min(largest, np.iinfo(dtype).max)
    pool = np.append(rng.choice(min(largest, 10**6), 40, replace=False), largest)
    ids = rng.permutation(np.append(pool, rng.choice(pool, 200))).astype(dtype)
    column = pd.Series(ids)
    expected, expected_I = np.unique(ids, return_inverse=True)
    code_I, distinct = columns.sorted_codes(column)
    assert code_I.dtype == np.int32 and distinct.dtype == np.int64
    assert distinct.tolist() == expected.tolist()
    assert code_I.tolist() == expected_I.tolist()
    by_table = columns._counted_codes(column, np.int32)
    assert (by_table is None) == (largest > columns._NARROW + 2 * len(ids))
    code_I, distinct = columns.codes(column)
    assert code_I.dtype == np.int64
    assert np.asarray(distinct)[code_I].tolist() == ids.tolist()
    assert len(set(distinct.tolist())) == len(expected)
    assert column.tolist() == ids.tolist()


def test_a_table_in_memory_stays_what_it_was():
    """Pandas 3 shares its columns until one of both is written to."""
    frame = random_log(0).assign(item=lambda x: x["item"].str[1:].astype(int))
    before = frame.copy(deep=True)
    for duplicates in ("keep", "first", "last"):
        table = readers.as_frame(frame, rating="rating")
        filters = {"min_rating": 2, "duplicates": duplicates, "min_item": 3}
        log = preprocessing.build(table, **filters)
        assert log.num_interactions > 0
        pd.testing.assert_frame_equal(frame, before)
    is_shared = np.shares_memory(table["timestamp"], frame["timestamp"])
    assert is_shared == (int(pd.__version__.partition(".")[0]) >= 3)
    table.loc[0, "timestamp"] = -1
    pd.testing.assert_frame_equal(frame, before)
    table = readers.as_frame(frame)
    frame.loc[0, "timestamp"] = -1
    assert table["timestamp"].tolist() == before["timestamp"].tolist()


@pytest.mark.parametrize("dtype", [object, "str", "string", "category"])
def test_texts_become_categories(dtype):
    ids = pd.Series(["b", "a", "b"]).astype(dtype)
    frame = readers.as_frame(pd.DataFrame({"user": ids, "item": 1}), time="")
    assert isinstance(frame["user"].dtype, pd.CategoricalDtype)
    assert frame["user"].tolist() == ["b", "a", "b"]


@pytest.mark.parametrize(
    "ids, expected",
    [
        # Equal, and of different texts: what is left is spelled as it was.
        ([1.0, 1, 1, 2, 2], [1, 2]),
        ([True, 1, 1, 2, 2], [1, 2]),
        ([UUID_2, UUID_1, UUID_1, UUID_2, UUID_2], [str(UUID_1), str(UUID_2)]),
        (["\ud800", "b", "b", "a", "a"], ["a", "b"]),  # no UTF-8, which Arrow wants
    ],
)
def test_ids_of_a_row_that_is_left_out_leave_no_trace(ids, expected):
    users = pd.Series(ids, dtype=object)
    frame = pd.DataFrame({"user": users, "item": [9, 8, 8, 8, 8]})
    log = preprocessing.build(readers.as_frame(frame, time=""), min_item=2)
    assert log.user_ids.tolist() == expected


UUIDS = [UUID_2, UUID_1]


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([2.0, -1.0, 2.0**53], [-1, 2, 2**53]),
        (np.array([2.0, 10.0], object), [2, 10]),
        ([2.5, 10.0], ["10.0", "2.5"]),
        ([2.0**60, 1.0], ["1.0", str(2.0**60)]),
        ([2**64, 1], ["1", str(2**64)]),
        ([3, "a", 20], ["20", "3", "a"]),
        ([True, False], ["False", "True"]),
        ([b"b", "é".encode()], ["b", "é"]),
        (UUIDS, sorted(map(str, UUIDS))),
        ([("b", 1), ("a", 2)], ["('a', 2)", "('b', 1)"]),
        (
            pd.to_datetime(["2024-02-01", "2024-01-01"]),
            ["2024-01-01 00:00:00", "2024-02-01 00:00:00"],
        ),
        ([decimal.Decimal("2.50"), decimal.Decimal(1)], ["1", "2.50"]),
    ],
    ids=str,
)
def test_ids_of_any_other_type_are_whole_numbers_or_their_text(ids, expected):
    frame = pd.DataFrame({"user": 1, "item": pd.Series(ids)})
    log = preprocessing.encode(readers.as_frame(frame, time=""))
    assert log.item_ids.tolist() == expected and log.item_ids.dtype.kind in "iU"
    assert sorted(log.items.tolist()) == [*range(1, len(expected) + 1)]


@pytest.mark.parametrize(
    "ids, message",
    [
        (["a", "a\0"], r"the id 'a\\x00': an id cannot end in a NUL"),
        ([7, "a\0"], r"the id 'a\\x00': an id cannot end in a NUL"),
        ([1, "1"], "different ids with the same text '1', of kind mixed-integer"),
        ([b"\xff", b"a"], "ids in bytes must be UTF-8 text: column 'item'"),
        ([["a"], ["b"]], "column 'item' holds values that are no ids: unhashable"),
    ],
)
def test_ids_that_cannot_be_told_apart(ids, message):
    frame = pd.DataFrame({"user": 1, "item": pd.Series(ids)})
    with pytest.raises(InputError, match=message):
        preprocessing.encode(frame)


def test_encode_refuses_nothing_at_all():
    with pytest.raises(InputError, match="unnamed has no rows: expected interactions"):
        preprocessing.encode(pd.DataFrame({"user": [], "item": []}))


def test_encode_refuses_gaps():
    frame = pd.DataFrame({"user": ["a", None], "item": 1})
    with pytest.raises(InputError, match="column 'user' has missing ids"):
        preprocessing.encode(frame)


def test_build_runs_the_filters_in_order_and_reports():
    table = [
        # user, item, timestamp, rating
        ("a", "x", 1, 5.0),
        ("a", "y", 2, 1.0),  # below 3: a has x and z left, and x twice
        ("a", "x", 3, 4.0),
        ("a", "z", 4, 4.0),
        ("b", "x", 5, 3.0),
        ("b", "z", 6, 3.0),
        ("c", "x", 7, 5.0),  # alone: c has too few
    ]
    frame = pd.DataFrame(table, columns=["user", "item", "timestamp", "rating"])
    log = preprocessing.build(
        frame, name="n", min_rating=3, duplicates="last", min_user=2, min_item=2
    )
    assert log.user_ids.tolist() == ["a", "b"] and log.item_ids.tolist() == ["x", "z"]
    assert log.items.tolist() == [1, 2, 1, 2]
    assert log.timestamps.tolist() == [3, 4, 5, 6]
    assert log.report == {
        "rows_read": 7,
        "rows_below_min_rating": 1,
        "rows_duplicate": 1,
        "rows_outside_core": 1,
    }
    table = [(*row, kind) for row, kind in zip(table, "abcabca", strict=True)]
    frame = pd.DataFrame(table, columns=[*frame.columns, "event"])
    log = preprocessing.build(
        frame, min_rating=3, events=("a", "c"), duplicates="first"
    )
    assert log.report == {
        "rows_read": 7,
        "rows_below_min_rating": 1,
        "rows_of_other_events": 1,  # ("b", "x"); that of a is gone already
        "rows_duplicate": 1,
        "rows_outside_core": 0,
    }
    message = (
        "^no rows of n are left: of 7 rows, 1 below min rating, 6 outside core. Lower"
    )
    with pytest.raises(InputError, match=message):
        preprocessing.build(frame, name="n", min_rating=3, min_user=9)


@pytest.mark.parametrize(
    ("times", "share"),
    [
        # Users a and b in turn: of a's three steps, and of b's one, how many are ties?
        ([5, 5, 5, 5, 5, 5], "100%"),
        ([1, 1, 1, 1, 1, 2], "75%"),
        ([1, 1, 1, 2, 2, 2], None),  # two of four are not most
        ([1, 2, 2, 1, 3, 4], None),  # across users they are no ties
        (None, None),
    ],
)
def test_times_that_leave_the_order_to_the_rows_are_remarked_on(times, share):
    frame = pd.DataFrame({"user": list("abaaab"), "item": range(6)})
    if times is not None:
        frame["timestamp"] = times
    remarks = preprocessing.build(frame).report.get("remarks", [])
    assert [line.split()[0] for line in remarks] == ([share] if share else [])


def test_an_id_as_long_as_a_page_is_named_with_its_row(monkeypatch):
    """Three ids of at most 300 characters of 4 bytes take 3,600 bytes."""
    ids = ["ann", "bob", "x" * 300, "ann"]
    frame = pd.DataFrame({"user": ids, "item": 1, "rating": [1, 2, 2, 2]})
    frame, _ = preprocessing.filter_rating(frame, 2)
    monkeypatch.setattr(columns, "_ID_BYTES", 3600)
    assert preprocessing.encode(frame).user_ids[-1] == "x" * 300
    monkeypatch.setattr(columns, "_ID_BYTES", 3599)
    message = "column 'user' has an id of 300 characters, 'x{40}'.*, in row 2 "
    for given in (frame, frame.astype({"user": "category"})):
        with pytest.raises(InputError, match=message):
            preprocessing.encode(given)
    monkeypatch.setattr(columns, "_LONG_ID", 300)
    assert preprocessing.encode(frame).num_users == 3
