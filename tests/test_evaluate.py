"""A run ranked again: its own numbers, popularity, and the sampled ones apart."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxrec import evaluate, metrics, runs, significance, synthetic, train
from jaxrec.errors import InputError
from jaxrec.recommender import Recommender

SETTINGS = {
    "method": "bert4rec",
    "data": {"name": "toy"},
    "model": {"name": "bert4rec", "width": 8, "num_layers": 1, "inner_width": 8},
    "loss": {"name": "ce"},
    "optim": {"name": "adam"},
    "train": {"batch_size": 32, "max_length": 6, "max_epochs": 1},
    "eval": {"batch_size": 64, "metrics": ("hr@10", "ndcg@10")},
}


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    log = synthetic.interactions(
        num_users=60, num_items=160, mean_length=8.0, max_length=15, num_topics=4
    )
    path = tmp_path_factory.mktemp("data") / "toy.csv"
    frame = pd.DataFrame(
        {
            "user": np.repeat(log.user_ids, log.lengths),
            "item": log.item_ids[log.items - 1],
            "timestamp": log.timestamps,
        }
    )
    # Every item is somebody's, so that 100 can be drawn.
    items = sorted(set(log.item_ids))
    collectors = [f"collector-{i % 8}" for i in range(len(items))]
    rest = pd.DataFrame({"user": collectors, "item": items, "timestamp": 0})
    pd.concat([frame, rest]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def repeated(csv, tmp_path_factory):
    """A run that is judged with what the user has had, since it is taken again."""
    frame = pd.read_csv(csv)
    users = frame["user"].unique()
    again = frame.groupby("user").head(3).assign(timestamp=10**12)
    frame = pd.concat([frame, again], ignore_index=True)
    assert frame["user"].nunique() == len(users)
    settings = {**SETTINGS, "eval": {**SETTINGS["eval"], "filter_seen": False}}
    workdir = tmp_path_factory.mktemp("runs") / "repeated"
    settings = {**settings, "data": {}}
    reported = train.train(settings, workdir, frame=frame, log=None)
    return workdir, frame, reported


def test_a_run_that_keeps_seen_items_is_used_as_it_was_judged(repeated):
    workdir, frame, reported = repeated
    again = evaluate.evaluate(workdir, frame=frame)
    assert again["unfiltered"] == reported["test"]
    assert again["popularity"] == reported["test_popularity"]
    users = frame["user"].iloc[:5].unique().tolist()
    recommender = Recommender.load(workdir, frame=frame)
    had = set(zip(frame["user"], frame["item"], strict=True))

    def share_had(**options):
        recs = recommender.recommend(users, k=160, **options)
        return {*zip(recs["user"], recs["item"], strict=True)} & had

    expected = {(user, item) for user, item in had if user in users}
    assert share_had() == share_had(filter_seen=False) == expected
    assert share_had(filter_seen=True) == set()


def test_metrics_of_another_cut_off_have_the_monitor_besides(result):
    """The docstring's own example."""
    workdir, reported = result
    found = evaluate.evaluate(workdir, ["--config.eval.metrics=('hr@5',)"])
    assert list(found["filtered"]) == ["hr@5", "ndcg@10"]
    assert found["filtered"]["hr@5"] <= reported["test"]["hr@10"]
    assert found["filtered"]["ndcg@10"] == reported["test"]["ndcg@10"]


@pytest.fixture(scope="module")
def result(csv, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    settings = {**SETTINGS, "data": {"path": str(csv)}}
    return workdir, train.train(settings, workdir, log=lambda line: None)


def test_the_same_numbers_as_the_run_reported(result):
    workdir, reported = result
    again = evaluate.evaluate(workdir)
    assert list(again) == ["filtered", "unfiltered", "popularity"]
    assert again["filtered"] == reported["test"]
    assert again["unfiltered"] == reported["test_unfiltered"]
    assert again["popularity"] == reported["test_popularity"]
    assert evaluate.evaluate(workdir, part="valid")["filtered"] == reported["valid"]


def test_the_command_prints_and_writes_and_marks_the_sampled(result, tmp_path, capsys):
    workdir, reported = result
    output = tmp_path / "metrics.json"
    arguments = ["--workdir", str(workdir), "--sampled", "--output", str(output)]
    evaluate.main(arguments)
    written = json.loads(output.read_text())
    assert written["filtered"] == reported["test"]
    # A tenth of the competitors: the sampled rank can only be better.
    sampled = written["sampled_uniform"]
    assert sampled["hr@10"] >= written["filtered"]["hr@10"]
    printed = capsys.readouterr().out
    assert "unreliable" in printed
    assert f"{reported['test']['ndcg@10']:.4f}" in printed


def test_data_that_moved_is_found_where_it_is_now(result, csv, tmp_path):
    workdir, reported = result
    moved = tmp_path / "toy.csv"
    moved.write_text(csv.read_text())
    again = evaluate.evaluate(workdir, [f"--config.data.path={moved}"])
    assert again["filtered"] == reported["test"]


def test_a_table_of_users_has_every_rank_and_metric(result, csv, tmp_path):
    workdir, reported = result
    path = tmp_path / "users.parquet"
    evaluate.evaluate(workdir, per_user=path)
    table = pd.read_parquet(path)
    log = pd.read_csv(csv)
    saved = np.load(workdir / "ranks.npz")
    assert table.columns.tolist() == [
        *("user", "target", "history_length", "target_popularity"),
        *("rank", "rank_unfiltered", "ties", "hr@10", "ndcg@10"),
    ]
    np.testing.assert_array_equal(table["rank"], saved["test_filtered"])
    np.testing.assert_array_equal(table["rank_unfiltered"], saved["test_unfiltered"])
    np.testing.assert_array_equal(table["ties"], saved["test_ties"])
    assert table["ndcg@10"].mean() == pytest.approx(reported["test"]["ndcg@10"])
    gain = np.where(table["rank"] <= 10, 1 / np.log2(table["rank"] + 1), 0)
    np.testing.assert_allclose(table["ndcg@10"], gain, rtol=1e-6)  # float32
    # The histories by the file alone: all but the last two items train.
    log = log.sort_values(["user", "timestamp"], kind="stable")
    by_user = log.groupby("user")["item"].apply(list)
    trained = pd.Series([item for items in by_user for item in items[:-2]])
    counts = trained.value_counts()
    for row in table.itertuples():
        items = by_user[row.user]
        assert row.target == items[-1] and row.history_length == len(items) - 1
        assert row.target_popularity == counts.get(row.target, 0)


def test_slices_are_of_the_rows_that_they_name(result, tmp_path):
    workdir, _ = result
    path = tmp_path / "users.csv"
    found = evaluate.evaluate(
        workdir, slices=3, edges={"target_popularity": (2, 5)}, per_user=path
    )
    table = pd.read_csv(path)
    rows = found["slices"]
    by = [row["by"] for row in rows]
    assert by == ["history_length"] * 3 + ["target_popularity"] * 3
    assert [row["from"] for row in rows[3:]] == [None, 2, 5]
    for row in rows:
        low = -np.inf if row["from"] is None else row["from"]
        high = np.inf if row["below"] is None else row["below"]
        here = table[(table[row["by"]] >= low) & (table[row["by"]] < high)]
        assert row["rows"] == row["users"] == len(here) > 0
        for name in ("hr@10", "ndcg@10"):
            expected = significance.bootstrap_interval(here[name])
            assert row["metrics"][name] == pytest.approx(expected._asdict())
    assert sum(row["rows"] for row in rows[:3]) == len(table)


def test_intervals_are_those_of_the_users(result):
    workdir, reported = result
    found = evaluate.evaluate(workdir, intervals=True)["intervals"]
    assert list(found) == ["filtered", "unfiltered", "popularity"]
    rank_N = np.load(workdir / "ranks.npz")["test_unfiltered"]
    hits = significance.bootstrap_interval(np.asarray(metrics.hit_rate(rank_N, 10)))
    assert found["unfiltered"]["hr@10"] == hits._asdict()
    for name, of in found["popularity"].items():
        assert of["low"] <= reported["test_popularity"][name] <= of["high"]


def test_beyond_the_rank_by_the_lists(result):
    """The lists again, one user at a time, by the scores of all items."""
    workdir, _ = result
    found = evaluate.evaluate(workdir, beyond=3, intervals=True)
    built, params = runs.load(workdir)
    dataset, test = built.split.dataset, built.split.test
    count_V = built.split.train_item_counts()
    table_VD = np.asarray(params["item_embedding"]["table"])
    popular = np.lexsort((np.arange(len(count_V)), -count_V))
    lists = []
    for user, end in zip(test.user, test.end, strict=True):
        history = set(dataset.items[dataset.offsets[user] : end].tolist())
        lists.append([v for v in popular if v > 0 and v not in history][:3])
    norm_V1 = np.linalg.norm(table_VD, axis=1, keepdims=True)
    unit_VD = table_VD / np.where(norm_V1 > 0, norm_V1, 1)  # PAD is zeros
    cosines = [
        (unit_VD[a] @ unit_VD[b] + unit_VD[a] @ unit_VD[c] + unit_VD[b] @ unit_VD[c])
        / 3
        for a, b, c in lists
    ]
    shown = np.array(lists)
    floor = found["beyond_popularity"]
    assert floor["coverage@3"] == len(np.unique(shown)) / dataset.num_items
    assert floor["mean_popularity@3"] == pytest.approx(count_V[shown].mean())
    bits = -np.log2(count_V[shown] / count_V.sum())
    assert floor["novelty@3"] == pytest.approx(bits.mean())
    assert floor["diversity@3"] == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert found["beyond"].keys() == floor.keys()
    # The model's lists, which test_recommender compares with the ranks.
    _, item_NK = Recommender(built, params).lists(test, k=3)
    of_model = found["beyond"]
    assert of_model["coverage@3"] == len(np.unique(item_NK)) / dataset.num_items
    assert of_model["mean_popularity@3"] == pytest.approx(count_V[item_NK].mean())
    shown_V = np.bincount(item_NK.ravel(), minlength=dataset.num_items + 1)[1:]
    difference = np.abs(shown_V[:, None] - shown_V[None]).mean()
    assert of_model["gini@3"] == pytest.approx(difference / (2 * shown_V.mean()))
    intervals = found["intervals"]["beyond"]
    assert intervals.keys() == {"novelty@3", "mean_popularity@3", "diversity@3"}
    for name, of in intervals.items():
        assert of["low"] < of["mean"] < of["high"]
        assert of["mean"] == pytest.approx(found["beyond"][name])


def test_the_command_shows_all_of_it(result, tmp_path, capsys):
    workdir, reported = result
    path, output = tmp_path / "users.csv", tmp_path / "metrics.json"
    evaluate.main(
        [
            *("--workdir", str(workdir), "--intervals", "--slices", "--beyond", "2"),
            *("--length-edges", "8,12", "--per-user", str(path)),
            *("--output", str(output)),
        ]
    )
    printed = capsys.readouterr().out
    of = json.loads(output.read_text())["intervals"]["filtered"]["ndcg@10"]
    mean = reported["test"]["ndcg@10"]
    assert f"{mean:.4f} [{of['low']:.4f}, {of['high']:.4f}]" in printed
    for text in ("by history length", "8 to < 12  (", ">= 12", "coverage@2", "gini@2"):
        assert text in printed
    assert "novelty@2" in pd.read_csv(path).columns


def test_columns_that_do_not_fit_go_below():
    row = {"hr@10": 0.5, "mrr@10": 0.25, "hr@100": 0.75}
    result = {"filtered": row, "popularity": {**row, "hr@10": 0.125}}
    wide = [
        "             hr@10  mrr@10  hr@100",
        "filtered    0.5000  0.2500  0.7500",
        "popularity  0.1250  0.2500  0.7500",
    ]
    for width in (None, 34):
        assert evaluate.table(result, width=width).splitlines() == wide
    names = [line[:10] for line in wide]
    below = [f"{name}{line[26:]}" for name, line in zip(names, wide, strict=True)]
    for width in (26, 33):
        assert evaluate.table(result, width=width).splitlines() == [
            *(line[:26] for line in wide),
            "",
            *below,
        ]
    # A column is shown however narrow the screen is.
    assert evaluate.table(result, width=1).count("hr@10") == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"edges": {"age": (1,)}}, "edges must be by history_length or"),
        ({"edges": {"history_length": (5, 5)}}, "must increase"),
        ({"slices": 0}, "at least 1"),
        ({"beyond": 1}, "lists of 2..160 items: got 1"),
        ({"per_user": "users.xlsx"}, "--per-user must end in"),
    ],
)
def test_wrong_wishes_are_input_errors(result, asked, message):
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(result[0], **asked)


def test_wrong_questions_are_answered_in_one_line(result, tmp_path):
    workdir, _ = result
    with pytest.raises(InputError, match="valid, test"):
        evaluate.evaluate(workdir, part="train")
    with pytest.raises(InputError, match="there is no folder .*/no[.]"):
        evaluate.main(["--workdir", str(workdir), "--output", str(tmp_path / "no/x")])
    with pytest.raises(InputError, match="--length-edges must be numbers"):
        evaluate.main(["--workdir", str(workdir), "--length-edges", "5,long"])
    with pytest.raises(InputError, match="--length-edges must be numbers"):
        evaluate.main(["--workdir", str(workdir), "--length-edges", "5,nan"])
    with pytest.raises(InputError, match="is a folder"):
        evaluate.main(["--workdir", str(workdir), "--output", str(workdir)])
    with pytest.raises(InputError, match="no run in"):
        evaluate.evaluate(tmp_path)
