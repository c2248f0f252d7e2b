"""The GPU suite at toy sizes: it runs, goes on, and tells what is wrong."""

import json
import math
import os
import re
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    gpu,
    measure,
    negatives,
    page,
    ranking_speed,
    records,
    shapes,
    time_to_quality,
    trace,
)
from benchmarks.gpu_suite import (
    beside_torch,
    correctness,
    million,
    oracles,
    reproduction,
    torch_sasrec,
)
from benchmarks.gpu_suite.journal import UNFINISHED, Journal
from benchmarks.gpu_suite.part import Flags, Part, Task
from benchmarks.gpu_suite.parts import PARTS
from benchmarks.records import Record
from benchmarks.shapes import TINY
from jaxrec import config, losses, record
from jaxrec.errors import InputError

ABOUT = {
    "question": "how long does it take",
    "command": "python -m benchmarks.gpu --parts made-up",
    "commit": "c" * 40,
    "date": "2026-01-02",
    "device": "1 x Made Up",
    "versions": {},
    "notes": ["a note"],
}


@pytest.fixture
def flags(tmp_path):
    return Flags(
        output=tmp_path,
        seeds=(0,),
        paper_repo=None,
        torch_python=sys.executable,
        commit="c" * 40,
        is_tiny=True,
    )


def read(path: Path) -> dict:
    return json.loads(path.read_text())


# The record of a part.


def test_a_record_is_gone_on_with(tmp_path):
    first = Journal(tmp_path, "part", ABOUT)
    first.begin(["a", "b"])
    first.put("a", [{"ms": 1.0}, {"note": "of a"}])
    # The same device and commit, another day.
    second = Journal(tmp_path, "part", ABOUT | {"date": "2026-01-03"})
    assert second.path == first.path == tmp_path / "made-up-2026-01-02-part.json"
    assert second.is_done("a") and not second.is_done("b")
    assert not second.is_done("c")
    second.put("b", [{"ms": 2.0}])
    found = read(second.path)
    assert found["rows"] == [{"task": "a", "ms": 1.0}, {"task": "b", "ms": 2.0}]
    assert found["notes"] == ["a note", "of a"]
    assert found["date"] == "2026-01-02"


@pytest.mark.parametrize(
    "part, changes, again",
    [
        ("part", {"commit": "d" * 40}, False),
        ("part", {"device": "2 x Made Up"}, False),
        ("part", {}, True),
        ("other-part", {}, False),
    ],
)
def test_a_record_of_something_else_is_not(tmp_path, part, changes, again):
    Journal(tmp_path, "part", ABOUT).put("a", [{"ms": 1.0}])
    assert not Journal(tmp_path, part, ABOUT | changes, again=again).is_done("a")


def test_what_has_not_been_done_says_so_from_the_beginning(tmp_path):
    journal = Journal(tmp_path, "part", ABOUT)
    journal.begin(["a"])
    (row,) = read(journal.path)["rows"]
    assert row == {"task": "a", "failed": UNFINISHED}
    assert page.read(journal.path).subject == "part"


# Parts.


def made_up(calls: list[str]) -> Part:
    def rows(name):
        calls.append(name)
        if name == "broken" and calls.count(name) == 1:
            raise ZeroDivisionError("a reason\nand more")
        return [{"ms": 1.0}]

    def tasks(flags):
        for name in ("first", "broken", "last"):
            yield Task(name, lambda name=name: rows(name))

    return Part("what is made up", tasks, 1)


def test_a_task_that_fails_is_recorded_and_alone_done_again(flags, capsys):
    calls: list[str] = []
    part = made_up(calls)
    assert gpu.run_part("part", part, flags) == gpu.NOT_DONE
    (path,) = flags.folder.glob("cpu-*-part.json")
    assert [row.get("failed") for row in read(path)["rows"]] == [
        *(None, "ZeroDivisionError: a reason", None)
    ]
    assert "FAILED: broken" in capsys.readouterr().out
    assert gpu.run_part("part", part, flags) == gpu.DONE
    assert gpu.run_part("part", part, flags) == gpu.DONE
    assert calls == ["first", "broken", "last", "broken"]
    assert "has its record" in capsys.readouterr().out
    gpu.run_part("part", part, flags._replace(again=True))
    assert calls[4:] == ["first", "broken", "last"]


def test_an_interrupted_task_is_not_done(flags):
    def interrupted():
        raise KeyboardInterrupt

    part = Part("what", lambda flags: [Task("a", interrupted)], 1)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_part("part", part, flags)
    (path,) = flags.folder.glob("*.json")
    assert [row["failed"] for row in read(path)["rows"]] == [UNFINISHED]


def test_full_sizes_are_not_for_a_cpu(flags):
    with pytest.raises(InputError, match="needs a GPU"):
        gpu.run_part("part", made_up([]), flags._replace(is_tiny=False))


@pytest.mark.parametrize("name", PARTS)
def test_tasks_of_a_part_have_names_of_their_own(name, flags):
    for one in (flags, flags._replace(is_tiny=False, seeds=(0, 1, 2))):
        names = [task.name for task in PARTS[name].tasks(one)]
        assert names and len(set(names)) == len(names)


def test_rivals_of_the_paper_come_with_its_checkout(flags):
    both = flags._replace(is_tiny=False, paper_repo=Path("somewhere"))
    plain = [task.name for task in PARTS["step"].tasks(both._replace(paper_repo=None))]
    assert [task.name for task in PARTS["step"].tasks(both)] == [
        *plain,
        *(f"{name} beside the paper's model" for name in plain),
    ]


def test_page_of_the_suite_names_every_part():
    text = (Path(gpu.__file__).parent / "gpu.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (\d+) \|$", text, re.M)
    assert rows == [(name, f"{part.minutes:g}") for name, part in PARTS.items()]


def test_listing_names_every_part(capsys):
    assert gpu.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PARTS]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--parts", "speed"], "--parts takes correctness.*got speed"),
        (["--seeds", "one"], "numbers such as 0,1,2: got 'one'"),
        (["--paper-repo", "nowhere"], "nowhere/src/models.py is not there"),
    ],
)
def test_a_wrong_option_is_one_line(argv, message):
    with pytest.raises(InputError, match=message):
        gpu.parse(argv)


def test_records_of_a_dry_run_are_not_among_the_others():
    _, _, tiny = gpu.parse(["--tiny"])
    _, _, full = gpu.parse([])
    assert full.output == page.RESULTS and page.RESULTS not in tiny.output.parents
    assert tiny.again and not full.again


def test_parts_that_need_little_run(tmp_path, capsys):
    names = ["million-ranks", "tiles", "ranking"]
    argv = ["--tiny", "--parts", ",".join(names), "--output", str(tmp_path)]
    assert gpu.main(argv) == 0
    paths = sorted((tmp_path / "gpu").glob("*.json"))
    assert [page.read(path).subject for path in paths] == sorted(names)
    assert "python -m benchmarks.page" in capsys.readouterr().out
    text = page.render(tmp_path)
    assert "## What does all of this take on one GPU?" in text
    for name in names:
        question = page.asked(PARTS[name].question)
        assert re.search(rf"\*\*{name}\*\* on .*json\)\): {re.escape(question)}", text)
    rows = read(paths[-1])["rows"]  # of tiles
    assert sum(row["is_fastest"] for row in rows) >= 1
    fastest = min(row["ms"] for row in rows)
    assert all(row["is_fastest"] == (row["ms"] == fastest) for row in rows)


# Processes of parts.


def as_python(tmp_path, *lines) -> str:
    """A file that stands in for the interpreter."""
    path = tmp_path / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


posix = pytest.mark.skipif(os.name != "posix", reason="runs a shell script")


@posix
def test_a_part_is_told_what_to_do(tmp_path, monkeypatch):
    lines = ('echo "$@ $XLA_PYTHON_CLIENT_PREALLOCATE" > "$0.told"', "exit 7")
    monkeypatch.setattr(sys, "executable", as_python(tmp_path, *lines))
    assert gpu.run_apart("step", ["--again"], 60) == 7
    told = (tmp_path / "python.told").read_text().split()
    expected = "-m benchmarks.gpu --again --parts step --here false"
    assert told == expected.split()


@posix
@pytest.mark.parametrize("obeys", [True, False])
def test_a_part_that_takes_too_long_is_stopped(tmp_path, monkeypatch, obeys):
    monkeypatch.setattr(gpu, "GRACE_S", 0.5)
    # A shell that minds no interrupt has to be killed, and its child with it.
    lines = ["exec sleep 20"] if obeys else ["trap '' INT", "exec sleep 20"]
    monkeypatch.setattr(sys, "executable", as_python(tmp_path, *lines))
    assert gpu.run_apart("step", [], 1.0) == gpu.NOT_DONE


def test_parts_are_done_in_turn_until_the_time_is_over(flags, monkeypatch, capsys):
    began = []

    def run_apart(name, argv, seconds):
        began.append((name, argv, round(seconds)))
        return {"b": 1, "c": 2}.get(name, 0)

    monkeypatch.setattr(gpu, "run_apart", run_apart)
    assert gpu.run(["a", "b"], flags, ["--x"], math.inf) == 1
    assert began == [("a", ["--x"], 540), ("b", ["--x"], 540)]
    assert "not done: b; the same command goes on" in capsys.readouterr().out
    began.clear()
    assert gpu.run(["a"], flags, [], 2) == 0
    assert began == [("a", [], 120)]
    began.clear()
    assert gpu.run(["a"], flags, [], gpu.GRACE_S / 60) == 1 and not began
    # What cannot run at all is told once.
    assert gpu.run(["c", "a"], flags, [], math.inf) == 2
    assert [name for name, *_ in began] == ["c"]


# Correctness: what is right passes, and what is wrong does not.

SCALE = correctness.SMALL


def test_losses_and_attention_are_right_on_this_device():
    checks = [
        *correctness.loss_checks(SCALE, 61),
        *correctness.attention_checks(SCALE),
    ]
    rows = [*correctness.checked(lambda: iter(checks))]
    assert len(rows) == 6
    assert [row for row in rows if "failed" in row] == []


def test_a_wrong_loss_fails(monkeypatch):
    def slightly_wrong(hidden_BLD, *rest):
        loss_sum, weight = losses.gbce(1.001 * hidden_BLD, *rest, beta=1.0)
        return loss_sum, weight

    monkeypatch.setattr(losses, "bce", slightly_wrong)
    *_, check = correctness.loss_checks(SCALE, 61)
    (row,) = correctness.checked(lambda: iter([check]))
    assert check.name == "bce" and row["failed"]


def test_ranks_are_right_on_this_device():
    rows = [*correctness.rank_rows(SCALE)]
    assert [row["error"] for row in rows] == [0.0] * 4


def test_a_rank_that_is_wrong_fails(monkeypatch):
    ranks = oracles.ranks
    monkeypatch.setattr(oracles, "ranks", lambda *arrays: ranks(*arrays) + [[0], [1]])
    assert all("failed" in row for row in correctness.rank_rows(SCALE))


def test_oracle_of_ranks():
    """Scores 9 (PAD), 1, 3, 3, 2 by hand: 3 has another 3 beside it, 2 two above it."""
    table_VD = np.array([[9.0], [1.0], [3.0], [3.0], [2.0]])
    found_2B = oracles.ranks(
        np.ones((2, 1)), table_VD, np.array([2, 4]), np.array([1, 1]), np.array([1, 3])
    )
    assert found_2B.tolist() == [[2, 2], [2, 3]]


@pytest.mark.parametrize("found, is_wrong", [(1e-5, False), (2e-5, True), (None, True)])
def test_an_error_above_its_bar_fails(found, is_wrong):
    row = correctness.judged("x", "highest", math.nan if found is None else found, 1e-5)
    assert ("failed" in row) == is_wrong


def test_error_is_the_largest_norm_of_a_difference():
    ours = (jnp.array(2.0), jnp.array([3.0, 4.0]))
    oracle = (np.array(2.0), np.array([3.0, 4.5]))
    assert correctness.error(ours, oracle) == pytest.approx(0.5 / np.hypot(3, 4.5))


# Runs to their early stop.


def test_a_run_is_recorded_with_its_table(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduction, "RUNS", tmp_path / "runs")
    (row,) = reproduction.rows("sasrec_ce", 0, flags)
    folder = flags.folder / measure.file_name(record.device()) / "tiny"
    kept = records.read(records.path_of(folder, "sasrec_ce", 0))
    assert row["epochs"] == len(kept.epochs) == 2
    assert row["ndcg@10"] == round(kept.result["test"]["ndcg@10"], 4)
    # 60 users are two batches of 30.
    median_s = statistics.median(line["train_s"] for line in kept.epochs)
    assert row["step_ms"] == pytest.approx(1e3 * median_s / 2, rel=1e-3)
    assert read(folder / "table.json")["users"] == 60
    assert "| SASRec+ (full CE) | 0 |" in (folder / "table.md").read_text()
    # A run that has ended is not trained again.
    monkeypatch.setattr(reproduction, "row", lambda one: one.result["seconds"])
    assert reproduction.rows("sasrec_ce", 0, flags) == [kept.result["seconds"]]


# Million items.


def test_bars_of_a_million_items():
    loss = million.judged({"labels": 1, "temp_mb": 953.0, "ms": 61.0})
    assert loss["temp_bar_met"] and not loss["aim_met"]
    ranks = million.judged({"users": 1, "ms": 200.0})
    assert ranks["bar_met"] and not ranks["aim_met"]


# The rival.


def test_targets_come_first_and_as_many_for_every_batch():
    target_SBL = np.array([[[0, 5], [6, 0]], [[7, 8], [0, 9]]])
    place_SM, target_SM = torch_sasrec.targets_first(target_SBL)
    assert target_SM.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert place_SM.tolist() == [[1, 2, 0], [0, 1, 3]]


def test_rival_trains_on_the_batches_that_it_is_given(flags, tmp_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    tokens_SBL = rng.integers(1, 51, (2, 4, 8))
    target_SBL = np.roll(tokens_SBL, -1, axis=2)
    target_SBL[:, :, 5:] = 0
    path = tmp_path / "batches.npz"
    np.savez(path, tokens_SBL=tokens_SBL, target_SBL=target_SBL)
    with beside_torch.TorchProcess(path, TINY, "plain", flags) as rival:
        assert [row["setting"] for row in rival.settings] == [
            "as written",
            "scores of targets alone",
            "scores of targets alone, bfloat16",
        ]
        for setting in (0, 1, 2):
            # It begins near the log of the number of classes, and learns by heart.
            assert rival.run(setting) == pytest.approx(math.log(51), rel=0.05)
            told = [rival.run(setting) for _ in range(20)]
            assert told[-1] < 0.9 * math.log(51)


@posix
@pytest.mark.parametrize(
    "lines, message",
    [
        (["exit 3"], "ended with status 3"),
        (["""echo '{"failed": "no memory"}'"""], "PyTorch: no memory"),
    ],
)
def test_rival_that_fails_is_an_error(flags, tmp_path, lines, message):
    python = as_python(tmp_path, *lines)
    with pytest.raises(RuntimeError, match=message):
        with beside_torch.TorchProcess(
            tmp_path, TINY, "plain", flags._replace(torch_python=python)
        ):
            pass


# What the parts are made of.


@pytest.mark.parametrize("dataset", shapes.SHAPES)
@pytest.mark.parametrize("method", shapes.METHODS)
def test_settings_are_those_of_the_configs(dataset, method):
    file = f"configs/{dataset.replace('-', '')}_{method}.py"
    path = Path(__file__).parents[1] / file
    targets = shapes.experiment.targets()
    ours, theirs = (
        config.complete(found, targets, supplied=shapes.experiment.SUPPLIED)
        for found in (
            shapes.settings(shapes.SHAPES[dataset], method),
            config.read(path),
        )
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "name, mean, over_window", [("ml-1m", 165.5, 0.27), ("beauty", 8.80, 0.0064)]
)
def test_made_logs_are_as_long_as_the_files(name, mean, over_window):
    """The means and shares were counted in the files."""
    shape = shapes.SHAPES[name]
    log = shapes.made_log(shape)
    assert (log.num_users, log.num_items) == (shape.num_users, shape.num_items)
    assert log.lengths.mean() == pytest.approx(mean, rel=0.02)
    share = (log.lengths - 3 > shape.max_length).mean()
    assert share == pytest.approx(over_window, rel=0.2)


def test_naive_negatives_are_the_same_loss():
    rng = np.random.default_rng(0)
    hidden_BLD = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    table_VD = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    target_BL, negative_BS = (
        jnp.array([[1, 2, 3], [4, 5, 0]]),
        jnp.array([[7, 8], [9, 11]]),
    )
    weight_BL = jnp.array([[1.0, 1, 1], [1, 1, 0]])
    batch = (hidden_BLD, table_VD, target_BL, weight_BL)
    expected = 0.0
    for b in range(2):
        for position in range(3):
            rows = [int(target_BL[b, position]), *negative_BS[b].tolist()]
            score = np.asarray(table_VD)[rows] @ np.asarray(hidden_BLD)[b, position]
            lost = np.log(np.exp(score).sum()) - score[0]
            expected += float(weight_BL[b, position]) * lost
    naive = jax.jit(negatives.naive)(*batch, negative_BS)[0]
    shipped = jax.jit(losses.sampled_ce)(*batch, losses.Shared(negative_BS))[0]
    # float32, a few additions.
    assert float(naive) == pytest.approx(expected, rel=1e-5)
    assert float(shipped) == pytest.approx(expected, rel=1e-5)


def test_a_ranking_task_never_hides_its_target():
    task = jax.jit(ranking_speed.make_task, static_argnums=(0, 1))(500, 20)
    seen = task.seen.item_H.reshape(20, -1)
    assert seen.min() >= 1 and seen.max() <= 500
    assert all(len(set(row)) == ranking_speed.NUM_SEEN for row in seen.tolist())
    assert not (seen == task.target_B[:, None]).any()


HLO = """\
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %exp.1 = f32[2]{0} exponential(%p), metadata={op_name="jit(f)/LOSS/exp"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0), metadata={op_name="x"}
  %dot.1 = f32[2]{0} dot(%x, %x), metadata={op_name="jit(f)/attention/dot_general"}
  %copy.1 = f32[2]{0} copy(%dot.1), metadata={stack_frame_id=3}
  %fusion.1 = f32[2]{0} fusion(%copy.1), kind=kLoop, calls=%fused
  ROOT %while.1 = f32[2]{0} while(%fusion.1), condition=%c, body=%b
}
"""


@pytest.fixture
def program():
    parts = (("LOSS", "loss"), ("attention/", "attention"))
    return trace.Program(HLO, parts, "other")


def test_an_operation_is_of_the_part_that_made_it(program):
    found = {name: program.part(name) for name in ("dot.1", "copy.1", "fusion.1", "x")}
    assert found == {
        "dot.1": "attention",
        "copy.1": "attention",  # it has no name: it is of what feeds it
        "fusion.1": "loss",  # by what it fuses
        "x": "other",
    }
    assert program.is_container("while.1") and not program.is_container("dot.1")
    assert program.label("dot.1") == "attention/dot_general"


def test_every_moment_is_given_to_what_is_at_work(program):
    """dot alone for 4, with the fusion for 2 (half each), nothing for 2, fusion 2."""
    found = trace.shares(
        [
            trace.Event("dot.1", 10, 16),
            trace.Event("fusion.1", 14, 16),
            trace.Event("fusion.1", 18, 20),
        ],
        program,
    )
    assert found.shares == {"attention": 0.5, "loss": 0.3, trace.IDLE: 0.2}
    assert found.slowest("attention") == "attention/dot_general"


def test_epochs_and_seconds_to_a_share_of_the_best():
    lines = [
        {
            "epoch": e,
            "valid/ndcg@10": v,
            "train_s": t,
            "valid_s": 1.0,
            "total_s": 10.0 * e,
        }
        for e, (v, t) in enumerate(
            [(0.10, 4.0), (0.19, 2.0), (0.20, 3.0), (0.15, 3.0)], 1
        )
    ]
    outcome = type("Outcome", (), {"result": {}})()
    one = Record(outcome, lines)
    best = time_to_quality.best(one)
    found = [time_to_quality.epochs_to(one, x * best) for x in (0.95, 1.0, 1.01)]
    assert found == [2, 3, None]
    assert time_to_quality.wall_seconds(one, 3) == 30.0


def test_variants_take_turns_and_the_first_round_warms_up():
    calls = []

    def variant(name, units):
        def call():
            calls.append(name)
            return jnp.zeros(())

        return measure.Variant({"system": name}, call, units)

    rows = measure.in_turn([variant("a", 1), variant("b", 2)], rounds=2)
    assert calls == ["a", "b"] * 3
    assert [row["system"] for row in rows] == ["a", "b"]
    assert all(row["spread"][0] <= row["ms"] <= row["spread"][1] for row in rows)


def test_memory_of_a_program_is_the_compilers():
    program = measure.compiled(lambda x: jnp.sort(x) @ x, jnp.ones((2**18,)))
    memory = program.memory_analysis()
    assert memory is not None
    assert measure.temp_mb(program) * 2**20 == pytest.approx(
        memory.temp_size_in_bytes, rel=1e-3
    )
    assert measure.temp_mb(program) >= 1.0  # the sorted copy: 2^18 floats
