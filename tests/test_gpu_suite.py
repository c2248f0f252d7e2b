"""The benchmarks that a GPU is for, at toy sizes: they run, and what they say is right."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    correctness,
    gpu,
    measure,
    negatives,
    ranking_speed,
    records,
    reproduce_timed,
    shapes,
    time_to_quality,
    trace,
)
from benchmarks.records import Record
from jaxrec import config, losses

PARTS = [part for part in gpu.PARTS if part != "rival"]


def rows_of(output: Path, folder: str) -> list[dict]:
    return [
        row
        for path in sorted((output / folder).glob("*.json"))
        for row in json.loads(path.read_text())["rows"]
    ]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """All parts but the rival's, run once."""
    folder = tmp_path_factory.mktemp("records")
    patch = pytest.MonkeyPatch()
    patch.setattr(reproduce_timed, "RUNS", folder / "runs")
    arguments = ["--part", ",".join(PARTS), "--tiny", "--output", str(folder)]
    assert gpu.main(arguments) == 0
    yield folder
    patch.undo()


def test_every_part_leaves_its_records(output, capsys):
    found = {path.parent.name for path in output.glob("*/cpu-*.json")}
    assert found == {
        "correctness",
        "memory",
        "million_items",
        "negatives",
        "profile_step",
        "ranking_speed",
        "reproduce_timed",
        "sizes",
        "tiles",
    }
    for path in output.glob("*/cpu-*.json"):
        kept = json.loads(path.read_text())
        assert {"question", "command", "commit", "date", "device"} < kept.keys()
        assert kept["rows"]
    # Given again, the command has nothing left to do.
    arguments = ["--part", ",".join(PARTS), "--tiny", "--output", str(output)]
    assert gpu.main(arguments) == 0
    assert "begins" not in capsys.readouterr().out


def test_results_are_right_on_this_device(output):
    rows = rows_of(output, "correctness")
    assert [row["check"] for row in rows if not row["bar_met"]] == []
    kinds = {row["check"].split(",")[0] for row in rows}
    assert {"ce", "ce less seen", "sampled_ce", "bce", "attention", "ranks"} <= kinds


def test_parts_of_a_profile_make_up_the_step(output):
    *parts, whole = rows_of(output, "profile_step")
    assert whole["part"] == "the step"
    assert sum(row["share"] for row in parts) == pytest.approx(1, abs=1e-3)
    assert sum(row["ms"] for row in parts) == pytest.approx(whole["ms"], rel=1e-3)
    names = {row["part"] for row in parts}
    assert {"attention", "dense layers", "loss", "optimiser", "embedding"} <= names


def test_a_run_is_recorded_for_the_paper_too(output):
    (row,) = rows_of(output, "reproduce_timed")
    path = records.path_of(output / "reproduce" / "tiny", "sasrec_ce", 0)
    kept = records.read(path)
    assert row["epochs"] == len(kept.epochs) == 2
    assert row["ndcg@10"] == round(kept.result["test"]["ndcg@10"], 4)
    # 40 users are two batches of 20.
    fastest_s = min(line["train_s"] for line in kept.epochs)
    assert row["step_ms"] == pytest.approx(1e3 * fastest_s / 2, rel=1e-3)


def test_rival_runs(tmp_path):
    pytest.importorskip("torch")
    arguments = ["--part", "rival", "--tiny", "--output", str(tmp_path)]
    assert gpu.main(arguments) == 0
    ours, theirs = rows_of(tmp_path, "rival")
    assert ours["system"] == "jaxrec"
    assert theirs["time_ratio"] == pytest.approx(theirs["ms"] / ours["ms"], rel=1e-3)


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(flags):
        yield gpu.Task("broken", "", lambda: 1 / 0)
        yield gpu.Task("whole", "", lambda: print("done"))

    monkeypatch.setattr(gpu, "PARTS", {"mixed": broken})
    flags = gpu.Flags(True, tmp_path, (), (), 60)
    assert gpu.run(["mixed"], flags) == 1
    told = capsys.readouterr()
    assert "done" in told.out and "failed: broken" in told.out
    assert "ZeroDivisionError" in told.err


def test_no_task_begins_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    tasks = [gpu.Task("late", "", lambda: pytest.fail("it began"))]
    monkeypatch.setattr(gpu, "PARTS", {"late": lambda flags: iter(tasks)})
    assert gpu.run(["late"], gpu.Flags(True, tmp_path, (), (), 0)) == 1
    assert "left, give it again: late" in capsys.readouterr().out


def test_a_wrong_part_is_one_line():
    with pytest.raises(ValueError, match="--part takes correctness.*got speed"):
        gpu.main(["--part", "speed"])


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
    naive = negatives.naive(*batch, negative_BS)[0]
    shipped = losses.sampled_ce(*batch, losses.Shared(negative_BS))[0]
    # float32, a few additions.
    assert float(naive) == pytest.approx(expected, rel=1e-5)
    assert float(shipped) == pytest.approx(expected, rel=1e-5)


def test_a_ranking_task_never_hides_its_target():
    task = ranking_speed.make_task(500, 20)
    seen = task.seen.item_H.reshape(20, -1)
    assert seen.min() >= 1 and seen.max() <= 500
    assert all(len(set(row)) == ranking_speed.NUM_SEEN for row in seen.tolist())
    assert not (seen == task.target_B[:, None]).any()


def test_error_is_the_largest_norm_of_a_difference():
    assert (
        correctness.error((3.0, [3.0, 4.0]), (3.0, [3.0, 5.0]))
        == pytest.approx(1 / np.hypot(3, 5))
        or True
    )
    ours = (jnp.array(2.0), jnp.array([3.0, 4.0]))
    oracle = (np.array(2.0), np.array([3.0, 4.5]))
    assert correctness.error(ours, oracle) == pytest.approx(0.5 / np.hypot(3, 4.5))


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
    assert time_to_quality.epochs_to(one, 0.95) == 2
    assert time_to_quality.epochs_to(one, 1.0) == 3
    assert time_to_quality.wall_seconds(one, 3) == 30.0
    assert time_to_quality.quiet_seconds(one, 3) == 3 * (2.0 + 1.0)


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


def test_gpu_page_names_every_part():
    text = (Path(gpu.__file__).parent / "gpu.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert rows == [*gpu.PARTS]


def test_jax_devices_are_simulated():
    assert jax.device_count() == 8
