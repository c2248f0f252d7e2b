"""The loop: it learns, resumes to the bit, refuses what it must, and records."""

import functools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxrec import batches, config, data, experiment, loop, synthetic, train
from jaxrec import workdir as workdirs
from jaxrec.checkpoint import Checkpoints
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment, Training, build, check_negatives


def quiet(line: str) -> None:
    del line


def log_frame(num_users=120, num_items=80, seed=0):
    """A small synthetic log as a table, the way a user would bring one."""
    import pandas as pd

    log = synthetic.interactions(
        num_users=num_users,
        num_items=num_items,
        mean_length=15.0,
        max_length=30,
        num_topics=4,
        seed=seed,
    )
    return pd.DataFrame(
        {
            "user": np.repeat(log.user_ids, log.lengths),
            "item": log.item_ids[log.items - 1],
            "timestamp": log.timestamps,
        }
    )


def settings(model="sasrec", loss="ce", **changes):
    """A tiny experiment; `changes` are of section train."""
    config = {
        "method": f"{model}_{loss}",
        "data": {"name": "tiny"},
        "model": {"name": model, "width": 16, "num_layers": 1},
        "loss": {"name": loss},
        "optim": {"name": "adam", "learning_rate": 3e-3},
        "train": {"batch_size": 32, "max_length": 12, "max_epochs": 3, **changes},
        "eval": {"batch_size": 64, "metrics": ("hr@10", "ndcg@10")},
    }
    if loss != "ce":
        config["loss"]["num_negatives"] = 8
    return config


@pytest.fixture(scope="module")
def frame():
    return log_frame()


def restored(workdir, config, frame):
    run = loop.Run(build(config, frame), began=0.0)
    with Checkpoints(workdir) as checkpoints:
        run.restore(checkpoints)
    return run


def assert_trees_equal(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(leaves_a) == len(leaves_b)
    for x, y in zip(leaves_a, leaves_b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_result_has_what_it_takes_to_believe_it(tmp_path, frame):
    lines = []
    result = train.train(settings(), tmp_path / "run", frame=frame, log=lines.append)
    on_disk = json.loads((tmp_path / "run" / "result.json").read_text())
    assert on_disk == json.loads(json.dumps(result))
    for key in (
        "dataset method seed test valid best_epoch epochs num_params data split_sha256 "
        "seconds device versions commit protocol config"
    ).split():
        assert key in result
    assert (result["dataset"], result["method"], result["seed"]) == (
        "tiny",
        "sasrec_ce",
        0,
    )
    assert set(result["test"]) == {"hr@10", "ndcg@10"}
    assert set(result["seconds"]) == {"compile", "train", "total"}
    assert {"users", "items", "interactions", "sha256"} <= set(result["data"])
    epochs = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert any(line.startswith("popularity") for line in "\n".join(lines).splitlines())
    # The saved ranks give the reported metric: hit rate by hand.
    ranks = np.load(tmp_path / "run" / "ranks.npz")["test_filtered"]
    assert result["test"]["hr@10"] == pytest.approx((ranks <= 10).mean(), abs=1e-6)


def stop_after(monkeypatch, num_dispatches):
    """Sends this process SIGINT after so many dispatches, as Ctrl-C would."""
    original, count = loop.Run.dispatch, 0

    def dispatch(self, *args):
        nonlocal count
        original(self, *args)
        count += 1
        if count == num_dispatches:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "dispatch", dispatch)


@pytest.mark.parametrize("num_dispatches", [1, 4])
def test_interrupted_and_resumed_is_bitwise_uninterrupted(
    tmp_path, frame, monkeypatch, num_dispatches
):
    # Two dispatches an epoch: the first stop is inside an epoch, the second at its end.
    config = settings(steps_per_dispatch=2, ema_decay=0.5)
    config["model"]["dropout"] = 0.3
    whole = train.train(config, tmp_path / "whole", frame=frame, log=quiet)
    with monkeypatch.context() as patch:
        stop_after(patch, num_dispatches)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train.train(config, tmp_path / "parts", frame=frame, log=quiet)
    assert not (tmp_path / "parts" / "result.json").exists()
    parts = train.train(config, tmp_path / "parts", frame=frame, log=quiet, resume=True)
    assert parts["test"] == whole["test"]
    assert parts["best_epoch"] == whole["best_epoch"]
    runs = [restored(tmp_path / name, config, frame) for name in ("whole", "parts")]
    assert_trees_equal(runs[0].state, runs[1].state)
    assert_trees_equal(runs[0].best, runs[1].best)
    losses = [
        [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    ]
    assert losses[0] == losses[1]


def test_same_seed_equal_and_another_seed_differs(tmp_path, frame):
    one, same, other = (
        train.train(
            settings(max_epochs=1, seed=seed), tmp_path / name, frame=frame, log=quiet
        )
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    ranks = [
        np.load(tmp_path / name / "ranks.npz")["test_filtered"]
        for name in ("one", "same", "other")
    ]
    np.testing.assert_array_equal(ranks[0], ranks[1])
    assert one["test"] == same["test"]
    assert (ranks[0] != ranks[2]).any()
    assert other["seed"] == 1


def test_patience_ends_a_run_that_cannot_improve(tmp_path, frame):
    config = settings(max_epochs=50, patience=2)
    config["optim"]["learning_rate"] = 1e-12
    result = train.train(config, tmp_path / "run", frame=frame, log=quiet)
    assert (result["best_epoch"], result["epochs"]) == (1, 3)


def test_overfits_32_users(tmp_path):
    config = settings(max_epochs=120, patience=120, batch_size=32)
    config["model"] |= {"width": 32, "dropout": 0.0}
    lines = []
    frame = log_frame(num_users=32, num_items=60)
    train.train(config, tmp_path / "run", frame=frame, log=lines.append)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    # A uniform guess over 60 items costs log 60 = 4.09 nats.
    assert losses[0] == pytest.approx(np.log(60), abs=0.1)
    assert losses[-1] < 0.5


@pytest.mark.parametrize(
    "model, loss",
    [
        ("sasrec", "sampled_ce"),
        ("sasrec", "bce"),
        ("sasrec", "gbce"),
        ("sasrec_pre_norm", "ce"),
        ("bert4rec", "ce"),
        ("bert4rec", "sampled_ce"),
        ("bert4rec", "bce"),
        ("gru4rec", "ce"),
    ],
)
def test_every_encoder_and_loss_learns(tmp_path, frame, model, loss):
    config = settings(model, loss, max_epochs=6)
    train.train(config, tmp_path / "run", frame=frame, log=quiet)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_an_epoch_may_hide_no_item(tmp_path, frame):
    config = settings("bert4rec", max_epochs=1)
    config["train"]["mask_probability"] = 1e-9
    train.train(config, tmp_path / "run", frame=frame, log=quiet)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == 0


def test_bfloat16_adamw_warm_up_clipping_and_average_learn(tmp_path, frame):
    config = settings(max_epochs=6, ema_decay=0.9)
    config["model"]["dtype"] = config["loss"]["dtype"] = "bfloat16"
    config["loss"]["score_dtype"] = "bfloat16"
    config["optim"] = {
        "name": "adamw",
        "learning_rate": 1e-2,
        "warmup_steps": 4,
        "decay": "cosine",
        "decay_steps": 24,
        "clip_norm": 1.0,
    }
    train.train(config, tmp_path / "run", frame=frame, log=quiet)
    run = restored(tmp_path / "run", config, frame)
    leaves = jax.tree.leaves(run.state.params) + jax.tree.leaves(run.state.ema)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.97 * losses[0]


def test_full_cross_entropy_beats_bce_with_one_negative(tmp_path):
    """The paper's claim in small: same encoder, same data, another loss."""
    frame = log_frame(num_users=500, num_items=200)
    result = {}
    for loss in ("ce", "bce"):
        config = settings("sasrec", loss, max_epochs=15)
        config["loss"] = {"name": loss}  # bce: one negative
        result[loss] = train.train(config, tmp_path / loss, frame=frame, log=quiet)
    assert result["ce"]["test"]["ndcg@10"] > 1.2 * result["bce"]["test"]["ndcg@10"]
    floor = result["ce"]["test_popularity"]["ndcg@10"]
    assert result["ce"]["test"]["ndcg@10"] > 2 * floor


def test_what_is_odd_about_the_log_is_remarked_on(tmp_path, frame):
    config = settings()
    config["eval"] = {"metrics": ("hr@79", "hr@80", "hr@100"), "monitor": "hr@79"}
    built = build(config, frame)
    num_items = built.split.dataset.num_items
    assert num_items == 80 and "remarks" not in data.statistics(built.split)
    shown = "remark   hr@80, hr@100: the log has 80 items, and a list of as many leaves"
    assert shown in train.describe(built, tmp_path)
    config["eval"] = {"metrics": ("hr@10",), "monitor": "hr@10"}
    assert "remark" not in train.describe(build(config, frame), tmp_path)
    built = build(config, frame.assign(timestamp=0))
    (remark,) = data.statistics(built.split)["remarks"]
    assert remark.startswith("100% of items have the same time as the user's item be")
    assert f"\nremark   {remark}\n" in train.describe(built, tmp_path)


def test_what_is_tested_is_said_with_what_is_cold(tmp_path, frame):
    """Items that the last user alone has, and a time point that cuts users apart."""
    built = build(settings(), frame)
    assert f"\ntested   {in_words(built.split)}\n" in train.describe(built, tmp_path)
    assert "older than some of the training" in train.describe(built, tmp_path)
    config = settings()
    config["data"] = {"split": "time_point", "test_from": 0.6}
    last = frame.sort_values("timestamp").index[-5:]
    cold = frame.assign(item=frame["item"].where(~frame.index.isin(last), "new"))
    built = build(config, cold)
    shown = train.describe(built, tmp_path)
    assert f"\ntested   {in_words(built.split)}\n" in shown
    assert "of items that are not trained on" in shown and "older than" not in shown


def in_words(split) -> str:
    items, offsets = split.dataset.items, split.dataset.offsets
    users, trained, times = range(split.dataset.num_users), set(), []
    for u in users:
        own = slice(offsets[u], split.train_end[u])
        trained |= set(items[own].tolist())
        times += split.dataset.timestamps[own].tolist()
    rows = list(zip(*split.test, strict=True))
    parts = [f"{len(rows)} rows of {len({u for u, _, _ in rows})} users"]
    if cold := sum(target not in trained for _, _, target in rows):
        parts.append(f"{cold} of items that are not trained on")
    if cold := sum(split.train_end[u] == offsets[u] for u, _, _ in rows):
        parts.append(f"{cold} of users that are not trained on")
    older = sum(split.dataset.timestamps[end] < max(times) for _, end, _ in rows)
    if older:
        share = f"{older / len(rows):.0%}"
        parts.append(f"{share} older than some of the training part")
    return "; ".join(parts)


def test_without_a_log_nothing_is_said(tmp_path, frame, capsys):
    config = settings(max_epochs=1, show_users=2)
    result = train.train(config, tmp_path / "run", frame=frame, log=None)
    assert capsys.readouterr() == ("", "")
    means = ", ".join(f"{name} {mean:.4f}" for name, mean in result["test"].items())
    first, second = repr(result).splitlines()
    assert first == f"tiny, sasrec_ce, seed 0: test {means}"
    assert second == f"keys: {', '.join([*result])}"
    again = train.train(
        config, tmp_path / "run", frame=frame, log=None, resume=True
    )  # read from the folder, it shows itself in the same way
    assert repr(again) == repr(result)


def test_a_workdir_is_never_overwritten(tmp_path, frame):
    workdir = tmp_path / "run"
    config = settings(max_epochs=1)
    first = train.train(config, workdir, frame=frame, log=quiet)
    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    with pytest.raises(InputError, match="holds a run already. Add --resume"):
        train.train(config, workdir, frame=frame, log=quiet)
    with pytest.raises(InputError, match="train.seed was 0, is 1"):
        train.train(
            settings(max_epochs=1, seed=1), workdir, frame=frame, log=quiet, resume=True
        )
    with pytest.raises(InputError, match="other data"):
        train.train(config, workdir, frame=log_frame(seed=5), log=quiet, resume=True)
    again = train.train(config, workdir, frame=frame, log=quiet, resume=True)
    assert again == json.loads(json.dumps(first))
    assert before == {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    # More epochs are no other run: it goes on where it ended.
    more = train.train(
        settings(max_epochs=2), workdir, frame=frame, log=quiet, resume=True
    )
    assert (first["epochs"], more["epochs"]) == (1, 2)


@pytest.mark.parametrize(
    ("section", "option", "was", "other"),
    [
        ("loss", "draw", "apart", "dealt"),  # as its default
        ("train", "stratify", False, True),  # not as its default
    ],
)
def test_an_option_newer_than_a_run_is_as_it_was(
    tmp_path, frame, section, option, was, other
):
    def chosen(value):
        found = settings(max_epochs=1)
        found["loss"] = {"name": "sampled_ce", "num_negatives": 4}
        return {**found, section: {**found[section], option: value}}

    workdir = tmp_path / "run"
    first = train.train(chosen(was), workdir, frame=frame, log=quiet)
    path = workdir / "config.json"
    older = json.loads(path.read_text())
    assert older[section].pop(option) == was
    path.write_text(json.dumps(older))
    again = train.train(chosen(was), workdir, frame=frame, log=quiet, resume=True)
    assert again == json.loads(json.dumps(first))
    words = f"{option} is not in its config.json, so was {was!r}, is {other!r}"
    with pytest.raises(InputError, match=words):
        train.train(chosen(other), workdir, frame=frame, log=quiet, resume=True)


def test_another_loss_is_told_by_its_name_alone(tmp_path, frame):
    workdir = tmp_path / "run"
    config = settings(max_epochs=1)
    train.train(config, workdir, frame=frame, log=quiet)
    other = {**config, "loss": {"name": "sampled_ce", "num_negatives": 4}}
    with pytest.raises(
        InputError, match="other options: loss.name was 'ce', is 'sampled_ce'. Give"
    ):
        train.train(other, workdir, frame=frame, log=quiet, resume=True)
    path = workdir / "config.json"
    older = json.loads(path.read_text())
    del older["loss"]["name"]
    path.write_text(json.dumps(older))
    with pytest.raises(InputError, match="loss.name was None, is 'ce'"):
        train.train(config, workdir, frame=frame, log=quiet, resume=True)
    path.unlink()
    with pytest.raises(InputError, match="its config.json.* is gone or empty. Choose"):
        train.train(config, workdir, frame=frame, log=quiet, resume=True)


def test_resume_needs_a_run_and_a_strange_folder_is_left_alone(tmp_path, frame):
    with pytest.raises(InputError, match="no run to resume"):
        train.train(settings(), tmp_path / "none", frame=frame, log=quiet, resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(InputError, match="cat.jpg"):
        train.train(settings(), tmp_path / "photos", frame=frame, log=quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="workdir .* cannot be used"):
        train.train(settings(), tmp_path / "file", frame=frame, log=quiet)


@pytest.mark.skipif(workdirs.fcntl is None, reason="the system has no such locks")
def test_one_process_at_a_time_trains_in_a_folder(tmp_path, frame):
    workdir = tmp_path / "run"
    with workdirs.held(workdir):
        with pytest.raises(InputError, match="another process trains in .*run"):
            train.train(settings(), workdir, frame=frame, log=quiet)
        assert workdir.is_dir()
    assert not workdir.exists()  # it had stayed empty
    train.train(settings(max_epochs=1), workdir, frame=frame, log=quiet)
    with workdirs.held(workdir), pytest.raises(InputError, match="another process"):
        train.train(
            settings(max_epochs=2), workdir, frame=frame, log=quiet, resume=True
        )
    assert (workdir / "result.json").exists()


def test_a_start_that_fails_leaves_nothing_behind(tmp_path, frame):
    config = settings("sasrec", "gbce")
    config["loss"]["num_negatives"] = 80  # as many as items: gbce needs fewer
    with pytest.raises(InputError, match="num_negatives"):
        train.train(config, tmp_path / "run", frame=frame, log=quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "section, option, value",
    [
        ("train", "batch_size", 0),
        ("train", "max_length", 0),
        ("train", "max_epochs", 0),
        ("train", "patience", 0),
        ("train", "steps_per_dispatch", 0),
        ("train", "mask_probability", 1.0),
        ("train", "ema_decay", 1.5),
        ("train", "seed", -1),
        ("eval", "batch_size", 0),
        ("eval", "max_valid_users", 0),
        ("eval", "monitor", "ncdg@20"),
        ("eval", "metrics", ("ndcg@10", "ncdg@10")),
        ("model", "dtype", "float31"),
        ("model", "width", 0),
        ("model", "num_layers", 0),
        ("model", "num_heads", 3),
        ("model", "dropout", 1.0),
        ("optim", "learning_rate", float("inf")),
        ("loss", "name", "math:sqrt"),
        ("loss", "name", "jaxrec.losses:ce"),
        ("loss", "name", "cee"),
    ],
)
def test_an_option_out_of_range_is_answered_before_the_data_is_read(
    section, option, value
):
    config = settings()
    config["data"] = {"path": "no/such/file.csv"}
    config[section][option] = value
    with pytest.raises(InputError) as caught:
        build(config)
    assert "file.csv" not in str(caught.value)
    wrong = value[-1] if isinstance(value, tuple) else value
    assert str(wrong).split(":")[0] in str(caught.value)


def test_a_diverged_loss_stops_training_and_names_the_step(tmp_path, frame):
    config = settings()
    config["optim"]["learning_rate"] = 1e30
    with pytest.raises(FloatingPointError, match="step"):
        train.train(config, tmp_path / "run", frame=frame, log=quiet)


def test_too_many_negatives_name_the_user_and_the_numbers(frame):
    config = settings("sasrec", "sampled_ce")
    config["loss"]["num_negatives"] = 79
    with pytest.raises(InputError, match=r"user.*79"):
        build(config, frame)


def test_check_negatives_counts_the_window_only():
    # One user with 6 items; windows of 2 + 1 leave the other 3 as candidates, less the
    # two that are held out and in nobody's training part.
    log = data.Dataset(
        np.array([1, 2, 3, 4, 5, 6], np.int32),
        np.array([0, 6]),
        np.array(["u"]),
        np.arange(1, 7),
    )
    split = data.leave_one_out(log)  # trains on 1, 2, 3, 4: the window is 2, 3, 4
    for num_negatives, is_enough in ((1, True), (2, False)):
        recipe = build_recipe(split, num_negatives)
        if is_enough:
            check_negatives(split, recipe)
        else:
            with pytest.raises(InputError, match="u"):
                check_negatives(split, recipe)


def build_recipe(split, num_negatives):
    from jaxrec import models, objectives, optim
    from jaxrec.steps import Recipe

    return Recipe(
        encoder=models.SASRec(num_items=split.dataset.num_items, width=8),
        objective=objectives.sampled_ce(num_negatives=num_negatives),
        optimiser=optim.adam(),
        max_length=2,
        history_length=4,
        seed=0,
    )


def test_windows_may_not_outgrow_the_position_table(frame):
    with pytest.raises(InputError, match="num_positions=200"):
        build(settings(max_length=201), frame)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 16, 17, 37, 48, 315])
@pytest.mark.parametrize("most", [1, 4, 16])
def test_dispatches_make_up_the_epoch_in_at_most_two_sizes(num_steps, most):
    sizes = loop.dispatch_sizes(num_steps, most)
    assert sum(sizes) == num_steps
    assert max(sizes) <= most
    assert len(set(sizes)) <= 2


@pytest.mark.parametrize(
    ("is_cpu", "work", "expected"),
    [
        # 6 x 10^4 x 10^6 for the matmuls and 10^3 x 10^6 for Adam: 6.1 x 10^10
        # operations, 24 times in 1.5 x 10^12.
        (True, loop.Work(10_000, 1_000_000, 800_000, 800_000), 24),
        # The table counts by the rows that compete: 6 x 10^4 x 2.5 x 10^5 + 10^9.
        (True, loop.Work(10_000, 1_000_000, 800_000, 50_000), 64),
        (True, loop.Work(10_000, 100_000_000, 99_800_000, 800_000), 9),
        (True, loop.Work(10_000, 100_000_000, 0, 0), 1),
        (True, loop.Work(10_000, 0, 0, 0), 64),
        # 6.1 x 10^12 operations, 16 times in 10^14.
        (False, loop.Work(10_000, 100_000_000, 0, 0), 16),
    ],
)
def test_a_dispatch_is_a_few_seconds_of_work(monkeypatch, is_cpu, work, expected):
    monkeypatch.setattr("jaxrec.backend.is_cpu", lambda: is_cpu)
    assert work.steps == expected


@pytest.mark.parametrize(("loss", "num_rows"), [("ce", None), ("sampled_ce", 8)])
def test_dispatches_go_by_the_work_where_the_config_does_not_say(
    frame, monkeypatch, loss, num_rows
):
    run = loop.Run(build(settings(loss=loss), frame), began=0.0)
    assert run.experiment.training.steps_per_dispatch is None
    num_parameters = sum(x.size for x in jax.tree.leaves(run.state.params))
    table_size = run.state.params["item_embedding"]["table"].size
    assert run.work == loop.Work(
        num_tokens=run.num_rows * 12,
        num_parameters=num_parameters,
        table_size=table_size,
        candidates_size=table_size if num_rows is None else num_rows * 16,
    )
    monkeypatch.setattr(loop.Work, "steps", property(lambda work: 3))
    assert run.dispatch_sizes(run.plan(0)) == [2, 2]  # of four steps, at most three


def test_an_epoch_goes_on_within_a_dispatch_that_is_cut_otherwise(frame, monkeypatch):
    """After two steps of eight: the two that are left of the first four, and four."""
    config = settings(steps_per_dispatch=2, batch_size=16)
    whole, stopped = (loop.Run(build(config, frame), began=0.0) for _ in range(2))
    whole.train_epoch([], [])
    plan = stopped.plan(0)
    assert len(plan.user_SB) == 8
    stopped.dispatch(plan.user_SB[:2], plan.slot_SB[:2], stopped.num_rows)
    stopped.progress.steps_done = 2
    monkeypatch.setattr(loop.Run, "dispatch_sizes", lambda self, plan: [4, 4])
    stopped.train_epoch([], [])
    assert {shape for shape, _ in stopped.compiled} == {2, 4}
    assert_trees_equal(stopped.state, whole.state)
    assert stopped.progress.weight_sum == whole.progress.weight_sum
    assert stopped.progress.loss_sum == pytest.approx(whole.progress.loss_sum, rel=1e-6)


def test_a_run_goes_on_with_dispatches_of_another_size(tmp_path, frame, monkeypatch):
    config = settings(steps_per_dispatch=2, batch_size=16)
    whole = train.train(config, tmp_path / "whole", frame=frame, log=quiet)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train.train(config, tmp_path / "run", frame=frame, log=quiet)
    config["train"]["steps_per_dispatch"] = 4
    resumed = train.train(config, tmp_path / "run", frame=frame, log=quiet, resume=True)
    assert resumed["test"] == whole["test"]


def test_compiling_needs_no_state(frame):
    run = loop.Run(build(settings(), frame), began=0.0)
    run.compile_epoch()
    assert "state" not in vars(run)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), run.state_shapes)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), run.state)


def test_validation_is_compiled_before_the_first_epoch(tmp_path, frame, monkeypatch):
    events = []
    original = jax.stages.Lowered.compile

    def compile_(self, *args, **kwargs):
        events.append("compile")
        return original(self, *args, **kwargs)

    validate = loop.Run.validate
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    monkeypatch.setattr(
        loop.Run, "validate", lambda self: events.append("validate") or validate(self)
    )
    train.train(settings(max_epochs=2), tmp_path / "run", frame=frame, log=quiet)
    assert events == ["compile", "compile", "validate", "validate"]


def test_a_state_is_not_made_within_an_epoch(tmp_path, frame, monkeypatch):
    """Nor after the folder is written: what cannot be made leaves nothing behind."""
    events = []

    def told(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            events.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    told(loop.Run, "start")
    told(workdirs, "begin")
    told(loop.Run, "train_epoch")
    train.train(settings(max_epochs=1), tmp_path / "run", frame=frame, log=quiet)
    assert events == ["start", "begin", "start", "train_epoch"]


def test_the_best_parameters_are_at_first_those_that_training_begins_with(frame):
    run = loop.Run(build(settings(), frame), began=0.0)
    run.start()
    first = jax.tree.map(np.asarray, run.state.params)
    run.train_epoch([], [])
    assert_trees_equal(run.best, first)


def test_shares_of_an_epoch_are_of_steps_that_are_done(frame):
    """One dispatch is always under way: the second of two tells of the first."""

    class Shares(list):
        def tick(self, share, tokens_per_s):
            self.append(share)

    shares = Shares()
    run = loop.Run(build(settings(steps_per_dispatch=1), frame), began=0.0)
    run.train_epoch([shares], [])
    assert shares == [0.25, 0.5, 0.75]


def test_a_run_that_is_stopped_while_it_is_compiled_saves_and_goes_on(
    tmp_path, frame, monkeypatch
):
    whole = train.train(settings(), tmp_path / "whole", frame=frame, log=quiet)
    compile_ = loop.Run.compile_validation

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        compile_(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "compile_validation", interrupted)
        with pytest.raises(KeyboardInterrupt, match="epoch 1 after step 0"):
            train.train(settings(), tmp_path / "run", frame=frame, log=quiet)
    resumed = train.train(
        settings(), tmp_path / "run", frame=frame, log=quiet, resume=True
    )
    assert resumed["test"] == whole["test"]


def test_compiling_within_an_epoch_is_not_in_its_time(frame, monkeypatch):
    """Of a dispatch of another size, while one is under way."""
    run = loop.Run(build(settings(steps_per_dispatch=1), frame), began=0.0)
    run.start()
    plan, events = run.plan(0), []
    original = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self: events.append(len(run.pending)) or original(self),
    )
    run.dispatch(plan.user_SB[:1], plan.slot_SB[:1], run.num_rows)
    assert len(run.pending) == 1
    run.dispatch(plan.user_SB[1:3], plan.slot_SB[1:3], run.num_rows)
    assert events == [0, 0]


def test_an_epoch_retraces_nothing(tmp_path, frame):
    """Three epochs of four steps: one program of train steps, one of ranks a part."""
    built = build(settings(steps_per_dispatch=2), frame)
    run = loop.Run(built, began=0.0)
    with Checkpoints(tmp_path) as checkpoints:
        run.restore(checkpoints)
        run.fit([], [])
    assert len(run.compiled) == 1
    (program,) = built.evaluator._programs.values()
    assert program._cache_size() == 1


def test_the_host_is_ahead_of_the_device_by_a_dispatch_and_a_plan(frame, monkeypatch):
    """No dispatch is waited for before the next, or the next epoch's plan, is made."""
    run = loop.Run(build(settings(steps_per_dispatch=1), frame), began=0.0)
    run.compile_epoch()
    events = []

    def told(event, fn):
        def call(*arguments):
            events.append(event)
            return fn(*arguments)

        return call

    program_of = run.compile
    monkeypatch.setattr(run, "compile", lambda *x: told("dispatch", program_of(*x)))
    monkeypatch.setattr(run, "plan", told("plan", run.plan))
    monkeypatch.setattr(jax, "device_get", told("wait", jax.device_get))
    run.train_epoch([], [])
    steps = ["dispatch", *["dispatch", "wait"] * 3]
    assert events == ["plan", *steps, "plan", "wait"]
    assert run.progress.epoch_s > 0


def test_training_is_a_callable_section():
    assert Training().seed == 0
    assert Experiment.__dataclass_fields__.keys() >= {"split", "recipe", "evaluator"}


def command(*arguments, cwd):
    root = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    return subprocess.run(
        [sys.executable, "-m", "jaxrec.train", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


def test_command_line_answers_a_wrong_option_in_one_line(tmp_path):
    quickstart = os.fspath(
        os.path.join(
            os.path.dirname(os.path.dirname(__file__)), "configs/quickstart.py"
        )
    )
    done = command("--config", quickstart, "--config.model.widht=8", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean model.width" in done.stderr
    assert not list(tmp_path.iterdir())


def test_unpacked_rows_train_the_same(frame):
    """With dropout off, packing changes no number of a step beyond rounding."""
    from jaxrec import steps

    config = settings()
    config["model"]["dropout"] = 0.0
    built = build(config, frame)
    users, lengths = loop.training_users(built)
    plan = batches.plan_batches(
        users, lengths, batch_size=32, row_length=built.recipe.max_length
    )
    apart = plan._replace(
        slot_SB=np.broadcast_to(
            np.arange(32, dtype=np.int32) * built.recipe.max_length, plan.slot_SB.shape
        ),
        num_rows=32,
    )
    assert plan.num_rows < apart.num_rows
    train_end_U = np.asarray(built.split.train_end, np.int32)
    state = jax.jit(lambda: steps.init_state(built.recipe))()
    step = jax.jit(
        functools.partial(steps.train_steps, recipe=built.recipe),
        static_argnames="num_rows",
    )
    results = [
        step(
            state,
            built.log,
            train_end_U,
            built.items,
            of.user_SB[:1],
            of.slot_SB[:1],
            num_rows=of.num_rows,
        )
        for of in (plan, apart)
    ]
    (loss_a, weight_a), (loss_b, weight_b) = (sums for _, sums in results)
    assert float(weight_a) == float(weight_b)
    np.testing.assert_allclose(float(loss_a), float(loss_b), rtol=1e-5)


def test_a_config_dict_is_a_config(frame):
    from ml_collections import ConfigDict

    assert (
        build(ConfigDict(settings()), frame).config == build(settings(), frame).config
    )


def test_another_model_does_not_keep_the_name_of_the_old(frame):
    changed = config.override(
        settings(),
        ["--config.model.name=gru4rec"],
        experiment.targets(),
        supplied=experiment.SUPPLIED,
    )
    assert changed["method"] == "gru4rec_ce"
    named = config.override(
        settings(),
        ["--config.model.name=gru4rec", "--config.method=mine"],
        experiment.targets(),
        supplied=experiment.SUPPLIED,
    )
    assert named["method"] == "mine"


def test_checkpoints_are_written_inside_an_epoch(tmp_path, frame, monkeypatch):
    """Killed without a word after two dispatches of an epoch: those two are kept."""
    whole = train.train(
        settings(steps_per_dispatch=1), tmp_path / "whole", frame=frame, log=quiet
    )
    original, count = loop.Run.dispatch, 0

    def dispatch(self, *args):
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError
        original(self, *args)

    config = settings(steps_per_dispatch=1, checkpoint_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "dispatch", dispatch)
        with pytest.raises(MemoryError):
            train.train(config, tmp_path / "killed", frame=frame, log=quiet)
    assert restored(tmp_path / "killed", config, frame).progress.steps_done == 2
    resumed = train.train(
        config, tmp_path / "killed", frame=frame, log=quiet, resume=True
    )
    assert resumed["test"] == whole["test"]


def test_compiled_programs_are_kept_where_the_config_asks(tmp_path, frame, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
        )
    }
    try:
        build(settings(compile_cache=True), frame)
        kept = tmp_path / "jaxrec" / "compiled"
        assert jax.config.jax_compilation_cache_dir == str(kept)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
