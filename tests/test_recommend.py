"""The command: files of recommendations and of neighbours, and what it says of them."""

import numpy as np
import pandas as pd
import pytest

from jaxrec import command, recommend, runs, train
from jaxrec.errors import InputError
from jaxrec.recommend import Recommender

SETTINGS = {
    "method": "sasrec_ce",
    "data": {"user": "customer", "item": "sku", "time": "ts"},
    "model": {"name": "sasrec", "width": 8, "num_layers": 1},
    "loss": {"name": "ce"},
    "optim": {"name": "adam"},
    "train": {"batch_size": 16, "max_length": 5, "max_epochs": 1},
    "eval": {"batch_size": 16, "metrics": ("hr@10", "ndcg@10")},
}


def toy_frame(num_users=40, num_items=25):
    """Users of 3 to 8 items each: numbers for users, text for items."""
    rng = np.random.default_rng(1)
    rows = [
        (100 + u, f"i{item:02d}", t)
        for u in range(num_users)
        for t, item in enumerate(
            rng.choice(num_items, size=int(rng.integers(3, 9)), replace=False)
        )
    ]
    return pd.DataFrame(rows, columns=["customer", "sku", "ts"])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "toy.csv"
    toy_frame().to_csv(path, index=False)
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "path": str(path)}}
    train.train(settings, folder / "toy", log=lambda line: None)
    return folder / "toy"


@pytest.fixture
def ask(workdir, tmp_path, capsys):
    """Runs the command; returns the table that it wrote and what it said."""

    def run(*flags, suffix=".csv"):
        path = tmp_path / f"out{suffix}"
        recommend.main(["--workdir", str(workdir), "--output", str(path), *flags])
        read = pd.read_csv if suffix == ".csv" else pd.read_parquet
        return read(path), capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def recommender(workdir):
    return Recommender.load(workdir)


def same(table, expected):
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_holds_what_the_frame_does(ask, recommender, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table, said = ask("--k", "2", suffix=suffix)
    expected = recommender.recommend(k=2)
    assert len(expected) == 80
    same(table.astype({"source": str}), expected.astype({"source": str}))
    assert said.out.startswith("80 recommendations in ") and said.err == ""


def test_some_users_some_items_seen_ones_too(ask, recommender, tmp_path):
    (tmp_path / "allowed.txt").write_text("i03\n\ni05\nnew\ni08 \n")
    table, said = ask(
        *("--users", "105,102", "--keep-seen", "--forbid", "i05"),
        *("--allow", f"@{tmp_path / 'allowed.txt'}", "--k", "2"),
    )
    expected = recommender.recommend(
        [105, 102], k=2, filter_seen=False, allowed=["i03", "i08"]
    )
    assert table["user"].tolist() == [105, 105, 102, 102]
    same(table, expected.astype({"source": str}))
    assert "1 allowed items are not in the log, 3 are" in said.out
    assert "fewer than" not in said.out
    everyone, said = ask("--k", "25", "--forbid", "sold out")
    assert everyone["item"].nunique() == 25
    assert "40 of 40 users get fewer than 25 items: no more are left" in said.out
    assert "1 forbidden items are not in the log, 0 are" in said.out


def test_seen_items_as_the_run_was_judged_unless_told(ask, recommender):
    kept = recommender.recommend([105], filter_seen=False)
    assert not kept.equals(recommender.recommend([105]))
    judged_with_seen = "--noconfig.eval.filter_seen"
    for flags, filter_seen in (
        ([], True),
        (["--keep-seen"], False),
        ([judged_with_seen], False),
        ([judged_with_seen, "--drop-seen"], True),
    ):
        table, _ = ask("--users", "105", *flags)
        expected = recommender.recommend([105], filter_seen=filter_seen)
        same(table, expected.astype({"source": str}))


def test_ids_of_a_flag_without_blanks():
    assert recommend.ids("a, b,,", flag="--users") == ["a", "b"]


def test_new_users_from_a_file(ask, recommender, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("ts,sku,customer\n2,i04,7\n1,i02,7\n1,i99,8\n3,i98,7\n")
    table, said = ask("--histories", str(path), "--k", "2")
    expected = recommender.recommend(histories={7: ["i02", "i04"], 8: []}, k=2)
    same(table, expected.astype({"source": str}))
    assert table["source"].tolist() == ["model"] * 2 + ["popularity"] * 2
    assert "2 of 4 items of histories are not in the log" in said.out
    assert "i99, i98" in said.out or "i98, i99" in said.out
    assert "1 of 2 users have no history" in said.out
    renamed = tmp_path / "other.csv"
    renamed.write_text("who,what\n7,i02\n7,i04\n8,i99\n")
    again, _ = ask("--histories", str(renamed), "--columns", "who,what", "--k", "2")
    same(again, table)


def test_a_table_of_no_rows_is_no_users(ask, tmp_path, recommender):
    path = tmp_path / "new.csv"
    path.write_text("ts,sku,customer\n")
    for suffix in (".csv", ".parquet"):
        table, said = ask("--histories", str(path), "--k", "2", suffix=suffix)
        assert list(table.columns) == ["user", "rank", "item", "score", "source"]
        assert table.empty and said.out.startswith("0 recommendations in ")
    for dtype in (float, str):
        empty = pd.DataFrame(columns=["customer", "sku", "ts"], dtype=dtype)
        assert recommender.recommend(histories=empty).empty


def test_ids_are_stripped_and_a_file_may_have_a_byte_order_mark(tmp_path):
    assert recommend.ids("105, 102 ", flag="--users") == ["105", "102"]
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbf105\r\n zo\xc3\xa9\r\n")
    assert recommend.ids(f"@{path}", flag="--users") == ["105", "zoé"]


def test_neighbours_of_items(ask, recommender):
    table, said = ask("--similar-to", "i04,i02", "--measure", "dot", "--k", "3")
    same(table, recommender.similar(["i04", "i02"], k=3, measure="dot"))
    assert said.out.startswith("6 neighbours in ")
    every, _ = ask("--similar-to", "--k", "3")
    same(every, recommender.similar(k=3))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--users", "100", "--histories", "x.csv"], "drop --users"),
        (["--similar-to", "i01", "--keep-seen"], "--similar-to is of items: drop --ke"),
        (["--similar-to", "i01", "--drop-seen"], "--similar-to is of items: drop --dr"),
        (["--keep-seen", "--drop-seen"], "not allowed with"),
        (["--measure", "dot"], "--measure is of --similar-to"),
        (["--columns", "a,b"], "--columns is of --histories"),
        (["--measure", "euclid"], "invalid choice"),
        (["--users", "@none.txt"], "--users @none.txt cannot be read"),
        (["--users", "100,nobody"], "1 of 2 users are not in the log"),
        (["--allow", "allowed.txt"], "none of the 1 allowed items"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(ask, flags, message):
    with pytest.raises(InputError, match=message):
        ask(*flags)


def test_what_was_not_asked_for_is_said_in_a_line():
    report = {"k": 3, "items": 1200, "lists_shorter_than_k": 1100}
    assert recommend.summary(report, asked_k=3) == [
        "1,100 of 1,200 items get fewer than 3 items: no more are left for them"
    ]
    report = {"k": 3, "users": 9, "lists_shorter_than_k": 0, "remarks": ["is odd"]}
    assert recommend.summary(report, asked_k=None) == [
        "k is 3, not 10: the log has no more items",
        "histories: is odd",
    ]
    broken = {
        "rows_read": 5,
        "rows_broken": 2,
        "broken": {"column 'ts' has no value": {"rows": 2, "first_lines": [3, 5]}},
        "remarks": ["1 user of broken rows only: b"],
    }
    report = {"k": 10, "users": 1, "lists_shorter_than_k": 0, **broken}
    assert recommend.summary(report, asked_k=None) == [
        "histories: rows_broken 2 of 5",
        "histories: 2 rows (lines 3, 5): column 'ts' has no value",
        "histories: 1 user of broken rows only: b",
    ]
    report = {"k": 10, "users": 9, "lists_shorter_than_k": 0}
    assert recommend.summary(report, asked_k=None) == []


def test_a_file_of_ids_needs_its_sign(ask, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("i03\n")
    with pytest.raises(InputError, match="--allow .* is a file: .* say @"):
        ask("--allow", str(path))


def test_output_is_checked_before_the_work(tmp_path):
    with pytest.raises(InputError, match=".csv or .parquet"):
        recommend.main(["--workdir", "none", "--output", str(tmp_path / "recs.xlsx")])
    with pytest.raises(InputError, match="no folder"):
        recommend.main(["--workdir", "none", "--output", str(tmp_path / "no/recs.csv")])


def test_the_status_tells_of_bad_input(workdir, tmp_path, capsys):
    output = str(tmp_path / "recs.csv")
    arguments = ["--workdir", str(workdir), "--output", output, "--k", "0"]
    assert command.run_command(recommend.main, arguments) == 2
    assert "error: k must be in 1..25" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_progress_in_a_log_file_and_on_a_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = recommend.Progress("users", every_s=10)
    for seconds, done in [(4.0, 1000), (11.0, 2750), (12.0, 3000), (20.0, 5000)]:
        now[0] = seconds
        progress(done, 5000)
    assert capsys.readouterr().err == "2,750 of 5,000 users  250/s  9 s left\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    live = recommend.Progress("users")
    for seconds, done in [(21.0, 100), (22.0, 200)]:
        now[0] = seconds
        live(done, 200)
    clear = "\r\x1b[K"
    expected = f"{clear}100 of 200 users  100/s  1 s left{clear}"
    assert capsys.readouterr().err == expected


def test_other_data_than_the_runs_is_refused(workdir, tmp_path):
    path = tmp_path / "other.csv"
    toy_frame(num_users=39).to_csv(path, index=False)
    with pytest.raises(InputError, match="other data"):
        runs.load(workdir, [f"--config.data.path={path}"])


def test_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        runs.load(tmp_path)
