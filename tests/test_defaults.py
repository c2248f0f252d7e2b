"""The benchmark of own_data.py: its floor against loops, and its runs on a log."""

import json

import numpy as np
import pytest

from benchmarks import defaults
from jaxrec import data, outcomes, synthetic
from jaxrec.errors import InputError


def counted_by_loops(split, k):
    """NDCG@k of "what has followed the last item most often", user by user."""
    dataset = split.dataset
    follows: dict[int, dict[int, int]] = {}
    for user in range(dataset.num_users):
        history = dataset.items[dataset.offsets[user] : split.train_end[user]].tolist()
        for before, after in zip(history, history[1:], strict=False):
            of_one = follows.setdefault(before, {})
            of_one[after] = of_one.get(after, 0) + 1
    gains = []
    for user, end, target in zip(*split.valid, strict=True):
        history = dataset.items[dataset.offsets[user] : end].tolist()
        score = {v: 0 for v in range(1, dataset.num_items + 1) if v not in history}
        for item, count in follows.get(history[-1], {}).items():
            if item in score:
                score[item] = count
        if target not in score:
            gains.append(0.0)
            continue
        rank = sum(other >= score[target] for other in score.values())
        gains.append(1 / np.log2(rank + 1) if rank <= k else 0.0)
    return np.mean(gains)


@pytest.fixture(scope="module")
def split():
    return data.leave_one_out(
        synthetic.interactions(num_users=60, num_items=80, mean_length=9, max_length=20)
    )


def test_counting_is_that_of_loops(split):
    expected = counted_by_loops(split, 10)
    assert expected > 0.05  # or it would prove little
    assert defaults.counted_ndcg(split, 10) == pytest.approx(expected, abs=1e-12)


def test_counting_with_repeats_is_that_of_loops():
    rng = np.random.default_rng(0)
    length_U = rng.integers(3, 9, 50)
    repeating = data.Dataset(
        items=rng.integers(1, 6, length_U.sum()).astype(np.int32),
        offsets=np.append(0, np.cumsum(length_U)),
        user_ids=np.arange(50),
        item_ids=np.arange(5),
        name="repeats",
    )
    split = data.leave_one_out(repeating)
    expected = counted_by_loops(split, 2)
    assert defaults.counted_ndcg(split, 2) == pytest.approx(expected, abs=1e-12)


def test_a_table_gives_its_log_back():
    log = synthetic.interactions(num_users=9, num_items=80, max_length=20)
    frame = defaults.table(log)
    assert len(frame) == log.num_interactions
    first = frame[frame["user"] == log.user_ids[0]]
    items = log.item_ids[log.items[: log.offsets[1]] - 1]
    assert first["item"].tolist() == items.tolist()


@pytest.mark.parametrize("num_items", [60, 50_000])
def test_every_change_changes_one_option(num_items):
    chosen = {
        "train": {"max_length": 50, "batch_size": 32},
        "model": {"width": 64, "dropout": 0.1, "num_layers": 2},
        "optim": {"learning_rate": 1e-3},
        "loss": {"name": "ce"},
    }
    for name, change in defaults.changes(num_items).items():
        new = defaults.changed(chosen, change(chosen))
        differing = [
            (section, key)
            for section in chosen
            for key in {**chosen[section], **new[section]}
            if new[section].get(key) != chosen[section].get(key)
            and key != "num_negatives"  # which comes with its loss
        ]
        assert len(differing) == 1, name
    negatives = defaults.changes(num_items)["the other loss"](chosen)["loss"]
    assert negatives["num_negatives"] == (15 if num_items == 60 else 3000)


def test_a_log_is_trained_once_and_recorded(tmp_path, monkeypatch):
    law = {"num_users": 40, "num_items": 80, "mean_length": 8, "max_length": 15}
    monkeypatch.setitem(defaults.LAWS, "tiny", law)
    base = defaults.config.read(defaults.CONFIG)
    short = {**base, "train": {**base["train"], "max_epochs": 1}}
    monkeypatch.setattr(defaults.config, "read", lambda path: short)

    def record():
        return defaults.run(
            "tiny", runs=tmp_path, only=["half the width"], output=tmp_path / "out"
        )

    rows = json.loads(record().read_text())["rows"]
    assert [row["changed"] for row in rows] == [
        "popularity",
        "counting what follows",
        "nothing",
        "half the width",
    ]
    chosen = outcomes.read(tmp_path / "tiny-chosen", "valid")
    half = outcomes.read(tmp_path / "tiny-half_the_width", "valid")
    assert (rows[2]["width"], rows[3]["width"]) == (64, 32)
    difference = half.result["valid"]["ndcg@10"] - chosen.result["valid"]["ndcg@10"]
    assert rows[3]["difference"] == pytest.approx(difference, abs=1e-4)
    # Finished runs are not trained again.
    monkeypatch.setattr(defaults.train, "Run", None)
    assert json.loads(record().read_text())["rows"] == rows


def test_an_unknown_log_is_answered_with_its_neighbours():
    with pytest.raises(InputError, match="did you mean short"):
        defaults.read("shorts")
