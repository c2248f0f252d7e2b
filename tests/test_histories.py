"""Raw histories of new users: read like the log was, unknown items skipped, counted."""

import datetime

import numpy as np
import pandas as pd
import pytest

from jaxrec import histories
from jaxrec.errors import InputError
from jaxrec.lookup import Lookup

ITEMS = Lookup(np.array(["ham", "jam", "rye", "tea"]), "items")
DATA = {
    "user": "user",
    "item": "item",
    "time": "ts",
    "rating": "stars",
    "min_rating": None,
    "event": "",
    "events": (),
    "duplicates": "keep",
    "broken": "error",
}


def per_user(dataset):
    """User -> the names of what is left of their history."""
    names = dataset.item_ids[dataset.items - 1].tolist()
    bounds = dataset.offsets.tolist()
    return {
        user: names[bounds[u] : bounds[u + 1]]
        for u, user in enumerate(dataset.user_ids.tolist())
    }


def read(source, columns=(), **changes):
    return histories.read(source, ITEMS, data=DATA | changes, columns=columns)


def test_a_mapping_keeps_its_order_and_its_empty_users():
    in_turn = (item for item in ("nut", "jam", "oat"))
    given = {"zoe": ["tea", "ham", "tea"], "ann": [], "bob": in_turn}
    dataset = read(given)
    assert list(per_user(dataset).items()) == [
        ("zoe", ["tea", "ham", "tea"]),
        ("ann", []),
        ("bob", ["jam"]),
    ]
    assert dataset.report == {
        "history_items": 6,
        "history_items_unknown": 2,
        "first_unknown_items": ["nut", "oat"],
    }


def test_no_users_and_no_known_items():
    assert read({}).num_users == 0
    assert per_user(read({1: ["nut"], 2: []})) == {1: [], 2: []}


def test_ids_are_found_by_their_text():
    items = Lookup(np.array([7, 12]), "items")
    given = {"a": np.array([12.0, 7.0]), "b": ["7", "07", None], "c": pd.Series([12])}
    dataset = histories.read(given, items, data={})
    assert per_user(dataset) == {"a": [12, 7], "b": [7], "c": [12]}


def test_a_table_is_in_time_order_whatever_the_order_of_its_rows():
    rows = [("b", "tea", 5), ("a", "rye", 2), ("b", "nut", 4), ("a", "ham", 1)]
    frame = pd.DataFrame(rows, columns=["user", "item", "ts"])
    dataset = read(frame)
    assert per_user(dataset) == {"a": ["ham", "rye"], "b": ["tea"]}
    assert dataset.report["rows_read"] == 4
    # Without a time, the rows' own order.
    in_order = read(frame[["user", "item"]], columns=("user", "item"))
    assert per_user(in_order) == {"a": ["rye", "ham"], "b": ["tea"]}


def test_columns_of_another_name_and_a_file(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("when,sku,who\n2024-01-02,tea,9\n2024-01-01,ham,9\n")
    assert per_user(read(path, columns=("who", "sku", "when"))) == {9: ["ham", "tea"]}
    with pytest.raises(InputError, match="histories: .*'user'.*--columns") as raised:
        read(path)
    assert "data.user" not in str(raised.value)  # that is of the run's log
    # Where no column is missing, nothing is said of columns.
    with pytest.raises(InputError, match="histories: there is no file .*none.csv.$"):
        read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="histories: .* line 2: .*data.broken=skip.$"):
        path.write_text("user,item,ts\na,,1\n")
        read(path)


def test_a_remark_on_a_file_is_kept(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("user;item;ts\na;tea;1\n")
    dataset = read(path)
    assert per_user(dataset) == {"a": ["tea"]}
    (remark,) = dataset.report["remarks"]
    assert "separated by ';'" in remark


def test_a_table_is_filtered_like_the_log_was():
    day = datetime.datetime(2024, 1, 1)
    frame = pd.DataFrame(
        {
            "user": ["a", "a", "a", "b", "c", "c"],
            "item": ["tea", "ham", "tea", "rye", "jam", "jam"],
            "ts": [day + datetime.timedelta(n) for n in range(6)],
            "stars": [5, 5, 4, 5, 1, 5],
            "kind": ["sale", "view", "sale", "view", "sale", "sale"],
        }
    )
    dataset = read(
        frame,
        min_rating=4,
        event="kind",
        events=("sale", "gift"),
        duplicates="last",
    )
    # A user of whom nothing is left is still a user.
    assert per_user(dataset) == {"a": ["tea"], "b": [], "c": ["jam"]}
    report = dataset.report
    assert report["rows_below_min_rating"] == 1
    assert report["rows_of_other_events"] == 2
    assert report["rows_duplicate"] == 1
    only_views = frame[frame["kind"] == "view"]
    dataset = read(only_views, event="kind", events=("sale",), duplicates="first")
    assert per_user(dataset) == {"a": [], "b": []}


def test_broken_rows_are_what_they_were_for_the_log(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("user,item,ts\na,tea,1\nb,,2\nc,ham,x\na,jam,0\n")
    with pytest.raises(InputError, match="line 3"):
        read(path)
    dataset = read(path, broken="skip")
    assert per_user(dataset) == {"a": ["jam", "tea"]}
    assert dataset.report["rows_broken"] == 2 and dataset.report["rows_read"] == 4


def test_a_table_without_the_filters_columns_is_filtered_already(tmp_path):
    filters = {"min_rating": 0, "event": "kind", "events": ("sale",)}
    rows = {"u": ["a", "a"], "i": ["tea", "ham"], "t": [2, 1]}
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "new.csv", index=False)
    for source in (frame, tmp_path / "new.csv"):
        dataset = read(source, columns=("u", "i", "t"), **filters)
        assert per_user(dataset) == {"a": ["ham", "tea"]}
        assert dataset.report["remarks"] == [
            "without a column 'stars' all rows are taken to be of data.min_rating=0",
            "without a column 'kind' all rows are taken to be of data.events=('sale',)",
        ]
    (tmp_path / "new.txt").write_text("a tea\na ham\n")
    dataset = read(tmp_path / "new.txt", **filters)
    assert per_user(dataset) == {"a": ["tea", "ham"]}
    assert len(dataset.report["remarks"]) == 2
    half = frame.assign(kind=["view", "sale"])
    dataset = read(half, columns=("u", "i", "t"), **filters)
    assert per_user(dataset) == {"a": ["ham"]} and len(dataset.report["remarks"]) == 1


@pytest.mark.parametrize("dtype", [float, str, int, object])
def test_a_table_of_no_rows_is_no_users(tmp_path, dtype):
    frame = pd.DataFrame(columns=["user", "item", "ts"], dtype=dtype)
    frame.to_csv(tmp_path / "new.csv", index=False)
    frame.to_parquet(tmp_path / "new.parquet")
    for source in (frame, tmp_path / "new.csv", tmp_path / "new.parquet"):
        assert read(source).num_users == 0


def test_a_user_of_broken_rows_only_is_named(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("user,item,ts\na,tea,1\nb,ham,x\na,ham,2\n")
    report = read(path, broken="skip").report
    assert report["remarks"] == ["1 user of broken rows only: b"]


@pytest.mark.parametrize(
    ("source", "columns", "message"),
    [
        ({"a": "tea"}, (), "be a list of items, oldest first: that of 'a' is 'tea'.$"),
        ({"a": 3}, (), "be a list of items, oldest first: that of 'a' is 3.$"),
        ({"a": ["tea"], "b": {"tea"}}, (), "that of 'b' is a set, which has none. Gi"),
        ({"a": frozenset()}, (), "that of 'a' is a frozenset"),
        (pd.DataFrame({"user": ["a"]}), "user,item", "columns must name"),
        (pd.DataFrame({"user": ["a"]}), ("user",), "columns must name"),
        ([["tea"]], (), "a pandas DataFrame .* got list. Or give .* {user: .item, it"),
        (iter([["tea"]]), (), "got list_iterator. Or give a mapping of each user to a"),
        (pd.DataFrame({"user": ["a\0"], "item": ["tea"], "ts": 1}), (), "NUL"),
    ],
)
def test_what_is_no_history_is_an_input_error(source, columns, message):
    with pytest.raises(InputError, match=message):
        read(source, columns=columns)
