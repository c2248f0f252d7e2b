"""A run ranked again: its own numbers, popularity, and the sampled ones apart."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxrec import evaluate, synthetic, train
from jaxrec.errors import InputError

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


def test_wrong_questions_are_answered_in_one_line(result, tmp_path):
    workdir, _ = result
    with pytest.raises(InputError, match="valid, test"):
        evaluate.evaluate(workdir, part="train")
    with pytest.raises(InputError, match="no such folder"):
        evaluate.main(["--workdir", str(workdir), "--output", str(tmp_path / "no/x")])
    with pytest.raises(InputError, match="no run in"):
        evaluate.evaluate(tmp_path)
