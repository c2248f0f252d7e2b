"""The paper's table, made again: runs, records, arithmetic, claims; nothing is trained
but one tiny run."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import (
    fidelity,
    figures,
    markdown,
    pace,
    records,
    reproduce,
    shapes,
    size_figures,
    time_to_quality,
)
from benchmarks.published import PUBLISHED
from jaxrec import data, loop, record, synthetic
from jaxrec.errors import InputError
from jaxrec.ranking import Ranks

NUM_ITEMS = 200
METHODS = ("sasrec_ce", "bert4rec")


def by_hand(rank_N):
    """The metrics of a list of ranks."""
    found = {}
    for k in (10, 100):
        hits = [rank for rank in rank_N if rank <= k]
        found[f"hr@{k}"] = len(hits) / len(rank_N)
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in hits) / len(rank_N)
        found[f"mrr@{k}"] = sum(1 / rank for rank in hits) / len(rank_N)
    del found["mrr@100"]
    return found


def make_run(settings, workdir, rank_N, *, train_s=(2.0, 1.0, 4.0), best_epoch=2):
    """What train.train leaves behind; users are 0, 1, 2, ..."""
    rank_N = np.asarray(rank_N, np.int32)
    result = {
        "dataset": settings["data"]["name"],
        "method": settings["method"],
        "seed": settings["train"]["seed"],
        "test": by_hand(rank_N),
        "valid": by_hand(rank_N),
        "test_popularity": dict.fromkeys(by_hand(rank_N), 0.25),
        "best_epoch": best_epoch,
        "epochs": len(train_s),
        "num_params": 7,
        "data": {"items": NUM_ITEMS, "sha256": "d"},
        "split_sha256": "s",
        "protocol": {
            "split": "leave_one_out",
            "filter_seen": True,
            "history_filtered": "whole",
            "target_in_history": "miss",
            "candidates": "every item of the log",
            "ties": "count against the target",
        },
        "seconds": {"train": sum(train_s)},
        "date": "2026-01-01",
        "command": f"python -m benchmarks.reproduce --runs '{workdir}' --seeds 0",
        "commit": None,
        "device": "abacus",
        "config": settings,
    }
    ranks = Ranks(rank_N, rank_N, np.zeros_like(rank_N))._asdict()
    ranks["user"] = np.arange(len(rank_N), dtype=np.int32)
    arrays = {f"{part}_{k}": x for part in ("valid", "test") for k, x in ranks.items()}
    workdir.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(workdir / "ranks.npz", allow_pickle=False, **arrays)
    (workdir / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"epoch": e, "train_s": s, "valid/ndcg@10": 0.1 * e}) + "\n"
            for e, s in enumerate(train_s, 1)
        )
    )
    (workdir / "result.json").write_text(json.dumps(result))
    return result


class Place:
    """Folders of one test, and a trainer that leaves a run without training."""

    def __init__(self, path):
        self.runs, self.folder = path / "runs", path / "results"
        self.document = path / "reproduction.md"
        self.document.write_text("a\n<!-- begin ml-1m -->\n<!-- end ml-1m -->\nz\n")
        self.trained: list[tuple[str, bool]] = []
        self.lines: list[str] = []

    def train(self, settings, workdir, *, resume, log):
        self.trained.append((workdir.name, resume))
        return make_run(settings, workdir, [1, 20])

    def reproduce(self, methods=METHODS, seeds=(0,), **changes):
        changes = {"train_fn": self.train, **changes}
        return reproduce.reproduce(
            "ml-1m",
            methods,
            seeds,
            runs=self.runs,
            folder=self.folder,
            document=self.document,
            log=self.lines.append,
            **changes,
        )

    def record(self, method, seed, rank_N, **facts):
        settings = reproduce.settings_of("ml-1m", method, seed)
        workdir = self.runs / f"made-{method}-{seed}"
        make_run(settings, workdir, rank_N, **facts)
        path = records.path_of(self.folder, method, seed)
        records.save(workdir, path)
        return path

    def table(self, **paces):
        found = records.read_all(self.folder)
        return fidelity.make_table("ml-1m", found, {"abacus": paces})

    def row(self, method):
        return next(row for row in self.table()["rows"] if row["method"] == method)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# Runs


def test_every_run_is_made_once_the_first_seed_of_all_first(place):
    place.reproduce(seeds=(0, 1))
    names = [
        f"ml-1m-{method}-seed{seed}" for seed in (0, 1) for method in reversed(METHODS)
    ]
    assert sorted(place.trained[:2]) == sorted((name, False) for name in names[:2])
    assert sorted(place.trained[2:]) == sorted((name, False) for name in names[2:])
    assert {path.name for path in place.folder.iterdir()} == {
        "table.json",
        "table.md",
        *(
            f"{method}-seed{seed}{suffix}"
            for method in METHODS
            for seed in (0, 1)
            for suffix in (".json", ".metrics.jsonl", ".ranks.npz")
        ),
    }
    before = {path: path.read_bytes() for path in place.folder.iterdir()}
    shutil.rmtree(place.runs)  # as in a fresh clone, which has the records alone
    place.reproduce(seeds=(0, 1))
    assert len(place.trained) == 4  # every record is skipped
    assert before == {path: path.read_bytes() for path in place.folder.iterdir()}
    place.reproduce(seeds=(0, 1, 2))
    assert len(place.trained) == 6


def test_a_finished_run_is_recorded_without_training(place):
    settings = reproduce.settings_of("ml-1m", "bert4rec", 0)
    settings["data"]["path"] = "/elsewhere/ml-1m.txt"  # changes no number
    make_run(settings, place.runs / "ml-1m-bert4rec-seed0", [3, 4])
    place.reproduce(table_only=True)
    assert place.trained == []
    assert [path.name for path in place.folder.glob("*.json")] != []
    assert (place.folder / "bert4rec-seed0.json").exists()
    assert not (place.folder / "sasrec_ce-seed0.json").exists()
    assert any("sasrec_ce seed 0: not run" in line for line in place.lines)


def test_an_interrupted_run_goes_on_and_one_without_checkpoint_begins_again(place):
    saved, unsaved = (place.runs / f"ml-1m-{method}-seed0" for method in METHODS)
    (saved / "checkpoints" / "48").mkdir(parents=True)
    (unsaved / "checkpoints").mkdir(parents=True)
    (unsaved / "config.json").write_text("{}")
    place.reproduce()
    assert sorted(place.trained) == sorted([(saved.name, True), (unsaved.name, False)])


def test_a_run_that_ended_by_other_limits_goes_on(place):
    settings = reproduce.settings_of("ml-1m", "bert4rec", 0)
    settings["train"]["max_epochs"] = 2
    make_run(settings, place.runs / "ml-1m-bert4rec-seed0", [3, 4])
    place.reproduce(["bert4rec"])
    assert place.trained == [("ml-1m-bert4rec-seed0", True)]


def test_ctrl_c_says_that_the_same_command_goes_on_and_keeps_what_is_done(place):
    def train(settings, workdir, **options):
        if settings["method"] == METHODS[1]:
            raise KeyboardInterrupt(
                "saved in epoch 3 after step 9; go on with --resume"
            )
        return place.train(settings, workdir, **options)

    with pytest.raises(KeyboardInterrupt) as stopped:
        place.reproduce(train_fn=train)
    assert stopped.value.args == (
        "ml-1m-bert4rec-seed0 saved in epoch 3 after step 9; the same command goes on "
        "with it",
    )
    assert ".5000" in (place.folder / "table.md").read_text()
    assert ".5000" in place.document.read_text()


def test_wrong_names_are_answered_before_anything_is_trained(place):
    with pytest.raises(InputError, match="no method 'bert5rec'; did you mean bert4rec"):
        place.reproduce([*METHODS, "bert5rec"])
    with pytest.raises(InputError, match="no data set 'ml-2m'; did you mean ml-20m"):
        reproduce.reproduce("ml-2m", METHODS, [0])
    with pytest.raises(InputError, match="use that name"):
        place.reproduce(["sasrec_sampled_ce_3000"])
    with pytest.raises(InputError, match="--seeds must be numbers.*'a'"):
        reproduce.main(["--dataset", "ml-1m", "--seeds", "a"])
    assert place.trained == [] and not place.folder.exists()


@pytest.mark.parametrize(
    "method, base, section, key, value",
    [
        ("sasrec_sampled_ce_30", "sasrec_sampled_ce", "loss", "num_negatives", 30),
        ("sasrec_sampled_ce_share16", "sasrec_sampled_ce", "loss", "share", 16),
        ("sasrec_sampled_ce_dealt", "sasrec_sampled_ce", "loss", "draw", "dealt"),
        ("sasrec_ce_padding", "sasrec_ce", "loss", "include_padding", True),
        ("bert4rec_bfloat16", "bert4rec", "model", "dtype", "bfloat16"),
        ("bert4rec_bfloat16_loss", "bert4rec", "loss", "dtype", "bfloat16"),
        ("sasrec_bce_26epochs", "sasrec_bce", "train", "max_epochs", 26),
    ],
)
def test_a_variant_is_its_base_but_for_one_option(method, base, section, key, value):
    changed = reproduce.settings_of("ml-1m", method, 2)
    stated = reproduce.settings_of("ml-1m", base, 2)
    assert (changed.pop("method"), stated.pop("method")) == (method, base)
    assert changed[section].pop(key) == value != stated[section].pop(key)
    assert changed == stated and stated["train"]["seed"] == 2


def test_a_real_run_is_stopped_resumed_and_recorded(place, monkeypatch):
    import pandas as pd

    log = synthetic.interactions(
        num_users=40, num_items=30, mean_length=9.0, max_length=12, num_topics=2
    )
    path = place.runs.parent / "tiny.csv"
    user = np.repeat(log.user_ids, log.lengths)
    item = log.item_ids[log.items - 1]
    pd.DataFrame({"user": user, "item": item, "timestamp": log.timestamps}).to_csv(path)

    def tiny(dataset, method, seed):
        return {
            "method": method,
            "data": {"path": str(path)},
            "model": {"name": "sasrec", "width": 8, "num_layers": 1},
            "loss": {"name": "ce"},
            "optim": {"name": "adam"},
            "train": {"seed": seed, "batch_size": 20, "max_length": 6, "max_epochs": 2},
            "eval": {"batch_size": 40},
        }

    dispatch = loop.Run.dispatch

    def stopped(self, *arguments):
        dispatch(self, *arguments)
        if self.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(reproduce, "settings_of", tiny)
    monkeypatch.setattr(loop.Run, "dispatch", stopped)
    trainer = {"train_fn": reproduce.train.train}
    with pytest.raises(KeyboardInterrupt, match="saved in epoch .*same command"):
        place.reproduce(["sasrec_ce"], **trainer)
    monkeypatch.setattr(loop.Run, "dispatch", dispatch)
    table = place.reproduce(["sasrec_ce"], **trainer)
    one = records.read_all(place.folder)["sasrec_ce"][0]
    assert [line["epoch"] for line in one.epochs] == [1, 2]
    assert table["rows"][0]["test"]["hr@10"]["mean"] == pytest.approx(
        one.result["test"]["hr@10"], abs=2e-6
    )


# Records


def test_a_record_keeps_the_ranks_in_few_bytes_the_same_each_time(tmp_path):
    rng = np.random.default_rng(0)
    ranks = {
        "test_user": np.arange(50_000, dtype=np.int32),
        "test_filtered": rng.integers(1, 3000, 50_000).astype(np.int32),
        "empty": np.zeros(0, np.int32),
    }
    path = tmp_path / "x.ranks.npz"
    records.save_ranks(path, ranks)
    with np.load(path) as read:
        assert {name: x.dtype for name, x in read.items()} == {
            "test_user": np.int32,
            "test_filtered": np.int16,
            "empty": np.int16,
        }
        for name, x in ranks.items():
            np.testing.assert_array_equal(read[name], x)
    first = path.read_bytes()
    records.save_ranks(path, ranks)
    assert path.read_bytes() == first
    np.savez_compressed(tmp_path / "plain.npz", allow_pickle=False, **ranks)
    assert len(first) < (tmp_path / "plain.npz").stat().st_size


def test_a_record_of_other_options_is_refused_before_training(place):
    path = place.record("bert4rec", 0, [1, 2])
    result = json.loads(path.read_text())
    result["config"]["train"]["checkpoint_every_s"] = 1.0  # changes no number
    result["config"]["model"]["width_of_yore"] = 3  # gone since
    del result["config"]["optim"]["clip_norm"]  # came since
    path.write_text(json.dumps(result))
    place.reproduce(["bert4rec"])
    result["config"]["model"]["dropout"] = 0.2
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="model.dropout was 0.2, is 0.1. Remove it"):
        place.reproduce()
    assert place.trained == []


def test_a_record_that_is_not_whole_or_misnamed_is_refused(place):
    path = place.record("bert4rec", 0, [1, 2])
    path.with_suffix(".metrics.jsonl").unlink()
    with pytest.raises(InputError, match="bert4rec-seed0.metrics.jsonl is missing"):
        records.read(path)
    path = place.record("bert4rec", 0, [1, 2])
    for suffix in (".json", ".metrics.jsonl", ".ranks.npz"):
        file = path.with_suffix(suffix)
        file.rename(file.with_name(file.name.replace("seed0", "seed1")))
    with pytest.raises(InputError, match="name it bert4rec-seed0.json"):
        records.read_all(place.folder)


def test_records_of_two_splits_are_refused(place):
    place.record("bert4rec", 0, [1, 2])
    path = place.record("sasrec_ce", 0, [1, 3])
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "split_sha256": "another"}))
    with pytest.raises(InputError, match="split_sha256"):
        records.read_all(place.folder)


# Arithmetic


def test_nothing_run_is_a_table_that_says_so(place):
    table = place.table()
    assert all(row["seeds"] == [] for row in table["rows"])
    assert {claim["status"] for claim in table["claims"]} == {"not run"}
    assert {claim["status"] for claim in table["times"]} == {"not run"}
    text = markdown.render(table)
    assert text.startswith(
        "Bars: 8 not run; Claims of quality: 5 not run; The order: 1 not run; "
        "Claims of time: 2 not run.\n"
    )
    assert "| SASRec+ 3000 | NDCG@10 | .1857 | not run |" in text
    assert "| Popularity |" not in text


def test_a_row_of_one_run(place):
    # Two hits of 8 at rank 1: hr = ndcg = mrr = 1/4, sd = sqrt(2 * 3/4 * 2/7 ...).
    place.record("sasrec_ce", 0, [1, 1] + [150] * 6)
    row = place.row("sasrec_ce")
    for name in fidelity.METRICS:
        assert row["test"][name]["mean"] == 0.25
    sum_of_squares = 2 * 0.75**2 + 6 * 0.25**2
    standard_error = math.sqrt(sum_of_squares / 7 / 8)
    hit = row["test"]["hr@10"]
    assert hit["standard_error"] == pytest.approx(standard_error, abs=1e-6)
    assert 0 <= hit["low"] < 0.25 < hit["high"] <= 0.625
    assert (hit["by_seed"], hit["spread"]) == ([0.25], None)
    paper = row["against_paper"]
    assert paper["hr@10"]["difference"] == pytest.approx(0.25 - 0.3152, abs=1e-6)
    assert paper["ndcg@10"]["in_standard_errors"] == pytest.approx(
        (0.25 - 0.1821) / standard_error, abs=1e-5
    )
    assert paper["ndcg@10"]["in_seed_errors"] is None
    assert [paper[name]["status"] for name in paper] == ["missed", "missed"]
    (run,) = row["runs"]
    assert (run["train_s"], run["to_best_s"]) == (7, 3)
    assert not run["is_stopped_early"]
    text = markdown.render(place.table(), link="there/")
    assert "[0](there/sasrec_ce-seed0.json)" in text and "| 3 (limit) |" in text
    assert "| Popularity |  | .2500 |" in text
    assert "**missed** (± .0060)" in text


def test_a_row_of_two_seeds(place):
    place.record("sasrec_ce", 0, [1, 1, 1, 150])
    place.record("sasrec_ce", 1, [1, 1, 150, 150])
    row = place.row("sasrec_ce")
    hit = row["test"]["hr@10"]
    assert (row["seeds"], hit["by_seed"], hit["mean"]) == ([0, 1], [0.75, 0.5], 0.625)
    spread = 0.25 / math.sqrt(2)
    assert hit["spread"] == pytest.approx(spread, abs=1e-6)
    # Users' means are 1, 1, 1/2, 0.
    sum_of_squares = 2 * 0.375**2 + 0.125**2 + 0.625**2
    assert hit["standard_error"] == pytest.approx(
        math.sqrt(sum_of_squares / 3 / 4), abs=1e-6
    )
    assert "± .1768" in markdown.render(place.table())
    # The spread of two tells next to nothing: seed errors begin with three.
    assert row["against_paper"]["hr@10"]["in_seed_errors"] is None
    place.record("sasrec_ce", 2, [1, 150, 150, 150])
    error = 0.25 * math.sqrt(1 + 1 / 3)  # 3/4, 1/2 and 1/4 lie 1/4 about their mean
    against = place.row("sasrec_ce")["against_paper"]["hr@10"]
    assert against["in_seed_errors"] == pytest.approx((0.5 - 0.3152) / error, abs=1e-5)


def test_a_bar_is_kept_from_both_sides():
    def status(mean, tolerance=0.125):
        measured = {
            "mean": mean,
            "standard_error": 0.5,
            "by_seed": [mean],
            "spread": None,
        }
        return fidelity.against(measured, 0.5, tolerance)["status"]

    assert [status(mean) for mean in (0.25, 0.375, 0.625, 0.75)] == [
        "missed",
        "met",
        "met",
        "missed",
    ]
    assert status(0.75, None) == "no bar"
    assert fidelity.against(None, 0.5, 0.1)["status"] == "not run"


def test_figure_points_and_our_own_rows_follow_the_papers(place):
    for method in (
        "sasrec_sampled_ce_300",
        "sasrec_sampled_ce_30",
        "sasrec_ce_exclude_window",
    ):
        place.record(method, 0, [1, 2])
    titles = [row["title"] for row in place.table()["rows"]]
    assert titles[-2:] == ["SASRec+ 30", "SASRec+ 300"]
    assert "published" not in place.row("sasrec_ce_exclude_window")


# Claims

# Ranks of 40 users, from good to bad; the same user is easy for all.
LADDER = {
    "sasrec_sampled_ce": [1] * 40,
    "sasrec_ce": [2] * 39 + [1],
    "bert4rec": [6] * 40,
    "sasrec_bce": [150] * 40,
}


def statuses(place):
    return [claim["status"] for claim in place.table()["claims"]]


def test_claims_hold(place):
    for method, rank_N in LADDER.items():
        place.record(method, 0, rank_N)
    claims = place.table()["claims"]
    assert [claim["status"] for claim in claims] == ["holds"] * 6
    effect = claims[1]["effects"]["ndcg@10"]  # 3000 over BCE: 1 against 0 for all
    assert (effect["difference"], effect["low"], effect["high"]) == (1, 1, 1)
    assert effect["published"] == pytest.approx(0.1857 - 0.1341, abs=1e-6)
    # Five tests, none of whose 10,000 flips was as extreme: Holm is 5 times the least.
    assert effect["p"] == pytest.approx(1 / 10_001, abs=1e-6)
    assert effect["p_holm"] == pytest.approx(5 / 10_001, abs=1e-6)
    order = claims[-1]["effects"]["ndcg@10"]
    least = (39 / math.log2(3) + 1) / 40 - 1 / math.log2(7)
    assert order["difference"] == pytest.approx(least, abs=1e-6)
    text = markdown.render(place.table())
    assert "Claims of quality: 5 holds; The order: 1 holds; Claims of time: 2" in text
    assert "| +1.0000 [+1.0000, +1.0000] |" in text


def test_claims_fail_both_ways(place):
    ladder = {**LADDER, "bert4rec": LADDER["sasrec_bce"], "sasrec_bce": [5] * 40}
    for method, rank_N in ladder.items():
        place.record(method, 0, rank_N)
    claims = place.table()["claims"]
    assert [claim["status"] for claim in claims] == ["holds"] * 4 + ["fails"] * 2
    assert claims[4]["reason"] == "it is the other way round"
    assert "BERT4Rec beats SASRec (BCE, 1 negative)" in claims[5]["reason"]
    assert "**fails**: it is the other way round" in markdown.render(place.table())


def test_no_difference_is_not_a_win(place):
    place.record("sasrec_ce", 0, [1, 150] * 20)
    place.record("bert4rec", 0, [150, 1] * 19 + [150, 2])
    claim = place.table()["claims"][2]
    assert claim["effects"]["ndcg@10"]["difference"] > 0
    assert (claim["status"], claim["reason"]) == ("fails", "no difference is seen")


def test_what_an_option_changes_is_told_over_the_seeds_of_both(place):
    # Of 40 users the variant ranks 30 first and its base none; seed 1 has no partner.
    place.record("sasrec_ce", 0, [150] * 40)
    place.record("sasrec_ce_padding", 0, [1] * 30 + [150] * 10)
    place.record("sasrec_ce_padding", 1, [1] * 40)
    place.record("bert4rec_bfloat16", 0, [1] * 40)  # its base was not run
    (change,) = place.table()["changes"]
    assert (change["variant"], change["seeds"]) == (
        "SASRec+ (full CE), PAD competes",
        [0],
    )
    effect = change["effects"]["ndcg@10"]
    assert (effect["difference"], effect["published"]) == (0.75, None)
    assert 0.5 < effect["low"] < 0.75 < effect["high"] < 1
    text = markdown.render(place.table())
    assert "| SASRec+ (full CE), PAD competes | 0 | +.7500 [" in text
    place.record("sasrec_bce", 0, [1] * 40)
    assert len(place.table()["changes"]) == 1


def test_a_claim_without_its_runs_is_not_run(place):
    place.record("sasrec_ce", 0, [1, 2])
    place.record("bert4rec", 0, [1, 4])
    claims = place.table()["claims"]
    assert statuses(place)[0] == "not run" and claims[0]["missing"] == ["sasrec_bce"]
    assert "effects" in claims[2]
    assert claims[5]["missing"] == ["sasrec_bce", "sasrec_sampled_ce"]


def test_times_are_epochs_at_one_pace_on_one_device(place):
    place.record("sasrec_ce", 0, [1, 5], train_s=(1.0,) * 3, best_epoch=3)
    place.record("sasrec_ce", 1, [1, 5], train_s=(1.0,) * 5, best_epoch=5)
    place.record("bert4rec", 0, [2, 5], train_s=(1.0,) * 8, best_epoch=8)
    claim = place.table(sasrec_ce=3.0, bert4rec=2.0)["times"][0]
    assert claim["seconds"] == {"sasrec_ce": 12, "bert4rec": 16}
    assert (claim["ratio"], claim["status"]) == (0.75, "holds")
    # Up to the best epoch: 63 of 73, and 197 of the limit of 200.
    ratio = (540 * 63 / 73) / (1409 * 197 / 200)
    assert claim["published_ratio"] == pytest.approx(ratio, abs=1e-6)
    claim = place.table(sasrec_ce=3.0)["times"][0]
    assert (claim["status"], claim["missing"]) == (
        "not run",
        ["the pace of bert4rec"],
    )


def test_a_record_does_not_say_where_the_run_was(place):
    path = place.record("sasrec_ce", 0, [1, 5])
    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.reproduce --seeds 0"
    assert str(place.runs) not in path.read_text()


def test_all_times_are_by_the_pace_of_one_device(place):
    for method, seed in (("sasrec_ce", 0), ("sasrec_ce", 1), ("bert4rec", 0)):
        place.record(method, seed, [1, 5], train_s=(1.0,) * 4, best_epoch=4)
    found = records.read_all(place.folder)

    def times(paces):
        table = fidelity.make_table("ml-1m", found, paces)
        return table["pace_of"], table["times"][0].get("seconds")

    slow, fast = ({"sasrec_ce": s, "bert4rec": s} for s in (2.0, 1.0))
    both = {"sasrec_ce": 8, "bert4rec": 8}
    # The runs were made on an abacus.
    assert times({"abacus": slow, "slide rule": fast}) == ("abacus", both)
    # But one that has the pace of more methods comes first.
    part = {"sasrec_ce": 2.0}
    assert times({"abacus": part, "slide rule": slow}) == ("slide rule", both)
    assert times({}) == ("", None)


def test_pace_is_that_of_the_latest_record(tmp_path):
    def write(name, date, device, seconds):
        rows = [{"method": "sasrec_ce", "seconds_per_epoch": seconds}]
        record = {"question": "q", "command": "c", "commit": None, "date": date}
        record |= {"device": device, "versions": {}, "rows": rows}
        (tmp_path / "pace").mkdir(exist_ok=True)
        (tmp_path / "pace" / f"{name}.json").write_text(json.dumps(record))

    assert pace.read("ml-1m", tmp_path) == {}
    write("cpu-2026-01-01-ml-1m", "2026-01-01", "abacus", 1.0)
    write("cpu-2026-01-02-ml-1m", "2026-01-02", "abacus", 2.0)
    write("cpu-2026-01-03-yelp", "2026-01-03", "abacus", 3.0)
    write("gpu-2026-01-01-ml-1m", "2026-01-01", "slide rule", 4.0)
    assert pace.read("ml-1m", tmp_path) == {
        "abacus": {"sasrec_ce": 2.0},
        "slide rule": {"sasrec_ce": 4.0},
    }


def test_pace_is_a_step_times_the_steps(tmp_path, monkeypatch):
    split = data.leave_one_out(shapes.made_log(shapes.TINY))
    monkeypatch.setattr(
        reproduce,
        "settings_of",
        lambda dataset, method, seed: shapes.settings(
            shapes.TINY, method, train={"batch_size": 25}
        ),
    )
    built = SimpleNamespace(split=split)
    monkeypatch.setattr(pace.experiment, "build", lambda settings: built)
    # The steps' program is timed, and then the validation of 1,500 ms.
    in_turn, calls = pace.measure.in_turn, []

    def timed(variants, **options):
        calls.append(variants)
        rows = in_turn(variants, **options)
        return [row | {"ms": 1500.0} for row in rows] if len(calls) == 2 else rows

    monkeypatch.setattr(pace.measure, "in_turn", timed)
    path = pace.run("ml-1m", ["sasrec_ce"], num_steps=2, seconds=0, output=tmp_path)
    assert {*calls[1][0].call()} >= {"ndcg@10"}
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["method"], row["steps"]) == ("sasrec_ce", 3)  # 60 users
    assert row["seconds_per_epoch"] == pytest.approx(3e-3 * row["ms"], rel=1e-3)
    assert row["valid_s"] == 1.5
    found = time_to_quality.measured_pace("ml-1m", record.device(), tmp_path)
    both = row["seconds_per_epoch"] + row["valid_s"]
    assert found.seconds == {"sasrec_ce": pytest.approx(both)}
    assert found.device == record.device()
    nothing = time_to_quality.measured_pace("beauty", record.device(), tmp_path)
    assert nothing.seconds == {}


def test_pace_of_another_device_where_there_is_no_other(tmp_path):
    def write(device, date, **more):
        rows = [
            {"method": name, "seconds_per_epoch": 2.0, **more}
            for name in ("sasrec_ce", "sasrec_ce_bfloat16_loss")
        ]
        found = {"question": "q", "command": "c", "commit": None, "date": date}
        found |= {"device": device, "versions": {}, "rows": rows}
        path = tmp_path / "pace" / f"{device}-{date}-ml-1m.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found))

    def found(device):
        return time_to_quality.measured_pace("ml-1m", device, tmp_path)

    write("slide rule", "2026-01-03")  # without validation
    write("abacus", "2026-01-02", valid_s=1.0)
    # How much faster bfloat16 is, is the device's own.
    assert found("slide rule") == ("abacus", {"sasrec_ce": 3.0})
    assert found("abacus").seconds["sasrec_ce_bfloat16_loss"] == 3.0
    write("tablet", "2026-01-04", valid_s=2.0)
    assert found("abacus").device == "abacus"
    assert found("slide rule") == ("tablet", {"sasrec_ce": 4.0})


# Documents


def test_a_text_has_one_place():
    document = "a <!-- begin x -->1<!-- end x --> <!-- begin y -->2<!-- end y -->"
    once = markdown.insert(document, "x", "\\1 new")
    assert "\n\\1 new\n" in once and "begin y -->2<" in once
    assert markdown.insert(once, "x", "\\1 new") == once
    with pytest.raises(InputError, match="found 0"):
        markdown.insert(document, "z", "")


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_committed_table_is_that_of_the_committed_records(dataset):
    """Means and texts; not the draws, which may differ between versions of NumPy."""
    folder = records.RESULTS / dataset
    found = records.read_all(folder)
    if not (folder / "table.json").exists():
        assert not found
        return
    reproduce.check_options(dataset, folder)
    table = json.loads((folder / "table.json").read_text())
    runs = {row["method"]: row for row in table["rows"] if row["seeds"]}
    advice = f"run python -m benchmarks.reproduce --dataset {dataset} --table-only"
    assert {m: row["seeds"] for m, row in runs.items()} == {
        m: sorted(seeds) for m, seeds in found.items()
    }, advice
    for method, row in runs.items():
        for name in fidelity.METRICS:
            means = [of.result["test"][name] for _, of in sorted(found[method].items())]
            assert row["test"][name]["by_seed"] == pytest.approx(means, abs=2e-6)
    again = fidelity.make_table(dataset, found, pace.read(dataset))
    assert (table["times"], table["pace_of"]) == (again["times"], again["pace_of"])
    assert (folder / "table.md").read_text().endswith(markdown.render(table)), advice
    document = reproduce.DOCUMENT.read_text()
    link = f"../benchmarks/results/reproduce/{dataset}/"
    if f"<!-- begin {dataset} -->" in document:
        assert markdown.render(table, link=link) in document, advice


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_no_metric_of_a_committed_record_turns_on_a_tie(dataset):
    """As docs/reproduction.md says: one target that ties is among the first 100."""
    found = {}
    for path in (records.RESULTS / dataset).glob("*.ranks.npz"):
        with np.load(path) as ranks:
            tied = ranks["test_filtered"][ranks["test_ties"] > 0]
            if (tied <= 100).any():
                found[path.name] = tied[tied <= 100].tolist()
    expected = {"beauty": {"sasrec_ce_bfloat16_scores-seed0.ranks.npz": [47]}}
    assert found == expected.get(dataset, {})


# Figures


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_a_committed_caption_is_that_of_the_committed_records(dataset, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need jaxrec[figures]")
    folder, document = records.RESULTS / dataset, reproduce.DOCUMENT.read_text()
    if not records.read_all(folder):
        assert f"<!-- begin {dataset}-curves -->" not in document
        return
    for name, caption in figures.draw(dataset, folder, tmp_path).items():
        if f"<!-- begin {dataset}-{name} -->" in document:
            advice = f"run python -m benchmarks.figures --dataset {dataset}"
            assert f"*{caption}*" in document, advice


def test_figures_are_drawn_from_records_and_name_what_is_missing(place, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need jaxrec[figures]")
    with pytest.raises(InputError, match="figures need records"):
        figures.draw("ml-1m", place.folder, tmp_path / "figures")
    for method, rank_N in {**LADDER, "sasrec_sampled_ce_30": [3] * 40}.items():
        place.record(method, 0, rank_N)
    place.record("sasrec_ce", 1, [3] * 40)
    captions = figures.draw("ml-1m", place.folder, tmp_path / "figures")
    end = "Not run yet: SASRec+, window excluded, S = 1, S = 300."
    assert captions["negatives"].endswith(end)
    end = "Not run yet: SASRec+, window excluded, GRU4Rec (full CE)."
    assert captions["curves"].endswith(end)
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(drawn) == {
        f"ml-1m-{name}.{suffix}"
        for name in ("negatives", "curves")
        for suffix in ("svg", "png")
    }
    figures.draw("ml-1m", place.folder, tmp_path / "again")
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert drawn == again  # equal records, equal bytes


def test_figures_of_sizes_are_drawn_from_records(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need jaxrec[figures]")
    with pytest.raises(InputError, match="figures need records"):
        size_figures.draw(tmp_path, tmp_path)
    stems = size_figures.draw(records.RESULTS.parent, tmp_path)
    assert {
        f"{stem.name}{suffix}" for stem in stems for suffix in (".svg", ".png")
    } == {path.name for path in tmp_path.iterdir()}
    for stem in stems:  # a committed figure for each
        assert (figures.FIGURES / f"{stem.name}.svg").exists()


def test_without_matplotlib_one_line_says_what_to_install(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'jaxrec\[figures\]'"):
        figures.draw("ml-1m", place.folder, place.folder)


def test_labels_are_moved_apart_as_little_as_possible():
    rng = np.random.default_rng(0)
    for _ in range(20):
        wished = np.sort(rng.random(6))
        places = np.array(figures.spread(wished.tolist(), 0.1))
        assert (np.diff(places) >= 0.1 - 1e-9).all()
        # No least-squares move is left: shifting any tail of a block helps nothing.
        cost = ((places - wished) ** 2).sum()
        for i in range(6):
            for step in (-1e-3, 1e-3):
                for j in range(i + 1, 7):
                    moved = places.copy()
                    moved[i:j] += step
                    if (np.diff(moved) >= 0.1 - 1e-9).all():
                        assert ((moved - wished) ** 2).sum() >= cost - 1e-12
