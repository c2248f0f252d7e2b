"""The page of measurements is what its records give; the arithmetic of the peers."""

import doctest
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from benchmarks import (
    data_preparation,
    defaults,
    first_batch,
    measure,
    negatives,
    pace,
    page,
    parity,
    peers,
    profile_step,
    shapes,
    size_figures,
    sizes,
    time_to_quality,
    variants,
)
from benchmarks.drivers import bench, protocol
from benchmarks.drivers import jaxrec as our_driver
from benchmarks.drivers.bench import (
    AS_INSTALLED,
    KEEPS_MEMORY,
    LOADERS,
    OURS,
    Measured,
    Task,
)
from benchmarks.trainer import Trainer
from jaxrec import data, objectives, record, steps
from jaxrec.errors import InputError
from jaxrec.loop import Run
from jaxrec.objectives import TakesPacked

ROOT = Path(page.__file__).parents[1]
RECORD = {
    "question": "how long does it take",
    "command": "python -m benchmarks.made_up",
    "commit": "0123456789abcdef",
    "date": "2026-01-02",
    "device": "cpu: made up, 2 cores",
    "versions": {"python": "3.11"},
    "rows": [{"system": "a", "seconds": 1.5}],
}


def write(folder, name, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(folder / name, RECORD | changes)
    return folder / name


@pytest.mark.parametrize(
    "name",
    [
        path.stem
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        if ">>> " in path.read_text()
    ],
)
def test_examples_in_docstrings(name):
    assert not doctest.testmod(importlib.import_module(f"benchmarks.{name}")).failed


# The page.


def test_committed_page_is_what_the_records_give():
    assert page.PAGE.read_text() == page.render(), "run python -m benchmarks.page"


@pytest.mark.parametrize(
    "path", sorted(page.RESULTS.glob("*/*.json")), ids=lambda path: path.parent.name
)
def test_committed_record_is_whole(path):
    found = page.read(path).found
    assert found["date"] in path.name


def test_only_the_latest_of_each_device_and_subject_is_shown(tmp_path):
    folder = tmp_path / "results" / "speed"
    names = {
        "cpu-2026-01-02.json": ("old cpu", RECORD["device"]),
        "cpu-2026-01-03.json": ("new cpu", RECORD["device"]),
        "cpu-2026-01-04.json": ("another cpu", "cpu: another, 2 cores"),
        "NVIDIA H200-2026-01-01.json": ("gpu", "1 x NVIDIA H200"),
        "cpu-2026-01-02-ml-1m.json": ("cpu on ml-1m", RECORD["device"]),
    }
    for name, (system, device) in names.items():
        date = name.partition("-")[2][:10]
        write(folder, name, date=date, device=device, rows=[{"system": system}])
    text = page.render(tmp_path / "results")
    counts = [text.count(f"| {system} |") for system, _ in names.values()]
    assert counts == [0, 1, 1, 1, 1]
    assert "**ml-1m** on cpu: made up, 2 cores, 2026-01-02, 0123456 " in text
    assert "([record](results/speed/cpu-2026-01-03.json))" in text
    assert text.count("## How long does it take?") == 1
    assert "```\npython -m benchmarks.made_up\n```" in text


def test_known_questions_come_first(tmp_path):
    for name in ("aaa", "peers"):
        write(tmp_path / name, "cpu-2026-01-02.json", question=f"what of {name}")
    text = page.render(tmp_path)
    assert text.index("## What of peers?") < text.index("## What of aaa?")


def test_bars_and_contents_come_before_the_sections(tmp_path):
    folder = tmp_path / "results" / "speed"
    row = {"system": "a", "time_ratio": 2.5, "time_bar": 3.0, "time_bar_met": False}
    write(folder, "cpu-2026-01-02.json", rows=[row])
    text = page.render(tmp_path / "results")
    contents = [line for line in text.splitlines() if line.startswith("- [")]
    assert contents == [
        "- [Which bars are met?](#which-bars-are-met)",
        "- [How long does it take?](#how-long-does-it-take)",
    ]
    link = "[speed](results/speed/cpu-2026-01-02.json)"
    assert f"| {link} | a: time ratio | 2.5 |  | 3 | **no** |" in text
    assert text.index("## Which bars") < text.index("## How long")


def test_what_all_records_note_is_said_once(tmp_path):
    for subject, own in (("x", "of x"), ("y", "of y")):
        write(tmp_path / "a", f"cpu-2026-01-02-{subject}.json", notes=["of both", own])
    text = page.render(tmp_path)
    assert [text.count(f"- {note}") for note in ("of both", "of x", "of y")] == [1] * 3
    assert text.index("- of y") < text.index("Of all of these:\n\n- of both")


def test_nested_folders_are_not_records_of_the_page(tmp_path):
    write(tmp_path / "reproduce" / "ml-1m", "sasrec_ce-seed0.json")
    assert "How long" not in page.render(tmp_path)


@pytest.mark.parametrize("key", page.REQUIRED)
def test_record_that_lacks_a_key(tmp_path, key):
    path = write(tmp_path, "cpu-2026-01-02.json")
    path.write_text(json.dumps({k: v for k, v in RECORD.items() if k != key}))
    with pytest.raises(InputError, match=f"lacks {key}"):
        page.read(path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cpu.json", {}, "is named <device>-<date>"),
        ("cpu-2026-01-02.json", {"rows": []}, "no rows"),
    ],
)
def test_record_that_is_none(tmp_path, name, changes, message):
    with pytest.raises(InputError, match=message):
        page.read(write(tmp_path, name, **changes))


def test_table():
    rows = [
        {"system": "a|b", "ms": 12.345, "spread": [1.0, 2500.0], "rounds": [1, 2, 3]},
        {"system": "c", "ms": None, "spread": [0.5, 2.0], "is_met": True},
        {"weights": "none", "bar": 1e-5},
    ]
    assert page.tables(rows).splitlines() == [
        "| system | ms | spread | is met |",
        "| --- | ---: | ---: | --- |",
        r"| a\|b | 12.3 | 1 to 2,500 |  |",
        "| c |  | 0.5 to 2 | yes |",
        "",
        "| weights | bar |",
        "| --- | ---: |",
        "| none | 1e-05 |",
    ]


def test_long_table_is_folded():
    rows = [{"system": "a", "number": n} for n in range(page.MOST_ROWS + 1)]
    assert page.tables(rows[:-1]).startswith("| system |")
    text = page.tables(rows)
    assert text.startswith(f"<details><summary>{len(rows)} rows</summary>\n\n| system")
    assert text.endswith("|\n\n</details>")


def test_check_tells_a_page_that_is_not_up_to_date(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    assert page.main(["--check"]) == 1
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    page.PAGE.write_text(page.PAGE.read_text() + "by hand\n")
    assert page.main(["--check"]) == 1
    assert "python -m benchmarks.page" in capsys.readouterr().out


# Peers: what is measured, in which order, and what is made of it.


def line(step_s, *, peak_mb=100, steps_per_epoch=10.0, version="1.0"):
    return {
        "version": version,
        "versions": {"python": "3.11"},
        "steps_per_epoch": steps_per_epoch,
        "step_seconds": [step_s, 99.0, step_s / 2],  # the median is step_s
        "tokens_per_step": 60.0,
        "compile_s": 4.0,
        "peak_mb": peak_mb,
        "threads": 2,
        "settings": ["it is made up"],
    }


def test_compared_systems_are_measured_close_together():
    order = [task.key for task in bench.tasks([OURS, "paper"], ["x", "y"], 2)]
    names = [setting.name for setting in bench.SETTINGS["paper"]]
    group = [
        [OURS, "as installed"],
        [OURS, "huge pages"],
        [OURS, "bfloat16"],
        [OURS, "bfloat16, scores too"],
        [OURS, "huge pages, bfloat16, scores too"],
        *(["paper", name] for name in names),
    ]
    assert order == [[r, m, *one] for r in (0, 1) for m in ("x", "y") for one in group]


def test_a_method_may_be_measured_once():
    order = [*bench.tasks([OURS], ["x", "y"], 3, once=["y"])]
    found = dict.fromkeys((task.round, task.method) for task in order)
    assert [*found] == [(0, "x"), (0, "y"), (1, "x"), (2, "x")]


@pytest.mark.parametrize("method", ["sasrec_ce", "sasrec_bce"])
@pytest.mark.parametrize("setting", bench.SETTINGS[OURS], ids=lambda one: one.name)
def test_our_driver_has_the_loss_of_the_setting(setting, method):
    arguments = ["--dataset", "ml-1m", "--data", "x.txt", "--method", method]
    arguments += ["--max-length", "200", "--width", "64", "--steps", "3"]
    task = protocol.parse([*arguments, "--seconds", "1", *setting.arguments])
    settings = our_driver.settings_of(task)
    if method == "sasrec_bce" and not setting.is_float32:
        assert settings is None
        return
    found = [settings["loss"].get(name) for name in ("dtype", "score_dtype")]
    dtypes = {
        AS_INSTALLED.arguments: [None, None],
        bench.OUR_BFLOAT16.arguments: ["bfloat16", "float32"],
        bench.OUR_SCORES.arguments: ["bfloat16", "bfloat16"],
    }
    assert found == dtypes[setting.arguments]
    assert settings["data"]["name"] == "ml-1m"


def test_variants_may_have_several_options():
    found = variants.variant("sasrec_ce_bfloat16_scores")
    options = "--config.loss.dtype=bfloat16", "--config.loss.score_dtype=bfloat16"
    assert (found.base, found.options) == ("sasrec_ce", options)


def test_row():
    """Medians by hand: 2 rounds of 10 steps, the machine half as fast in the second."""
    method = "sasrec_ce"
    ours = [
        Measured(
            Task(r, method, OURS, AS_INSTALLED), line(s, peak_mb=50, version="0.1")
        )
        for r, s in enumerate((1.0, 2.0))
    ]
    theirs = [
        Measured(Task(r, method, "paper", setting), line(s, peak_mb=mb))
        for setting, mb, times in (
            (AS_INSTALLED, 150, (8.0, 16.0)),
            (KEEPS_MEMORY, 300, (4.0, 6.0)),
            (bench.COMPILED, 400, (3.0, 5.0)),
        )
        for r, s in enumerate(times)
    ]
    assert peers.row("beauty", method, OURS, ours, ours) == {
        "dataset": "beauty",
        "method": method,
        "system": "jaxrec 0.1",
        "setting": "as installed",
        "rounds": 2,
        "seconds_per_epoch": 15.0,
        "spread": [10.0, 20.0],
        "tokens_per_s": 45,  # the median of 60 / 1 and 60 / 2
        "peak_mb": 50,
        "compile_s": 4.0,
        "seconds_of_settings": {"as installed": 15.0},
        "peak_mb_of_settings": {"as installed": 50},
    }
    found = peers.row("beauty", method, "paper", theirs, ours)
    assert found["setting"] == "memory kept, torch.compile"
    assert found["seconds_per_epoch"] == 40.0
    assert found["time_ratio"] == 2.75  # 3 / 1 and 5 / 2
    assert found["time_ratio_range"] == [2.5, 3.0]
    assert found["time_ratio_as_installed"] == 8.0
    assert found["time_ratio_not_compiled"] == 3.5  # 4 / 1 and 6 / 2
    assert found["peak_mb"] == 150 and found["memory_ratio"] == 3.0
    assert found["time_bar"] == 10.0 and not found["time_bar_met"]
    assert found["memory_bar"] == 3.0 and found["memory_bar_met"]
    assert found["time_ratio_of_settings"] == {
        "as installed": 8.0,
        "memory kept": 3.5,
        "memory kept, torch.compile": 2.75,
    }
    assert found["peak_mb_of_settings"] == {
        "as installed": 150,
        "memory kept": 300,
        "memory kept, torch.compile": 400,
    }
    compiled = peers.row("beauty", method, "paper", theirs[4:], ours)
    assert compiled["time_ratio_not_compiled"] is None


@pytest.mark.parametrize("system", bench.SETTINGS)
def test_settings_are_what_they_are_called(system):
    task = "--dataset x --data x --method bert4rec --max-length 9 --width 8"
    needed = [*task.split(), "--steps", "1", "--seconds", "1"]
    for setting in bench.SETTINGS[system]:
        flags = protocol.parse([*needed, *setting.arguments])
        assert flags.compile == setting.is_compiled == ("compile" in setting.name)
        is_bfloat16 = flags.dtype == "bfloat16"
        assert is_bfloat16 == (not setting.is_float32) == ("bf" in setting.name)
        assert (flags.workers == 2) == ("2 loaders" in setting.name)
        is_of_memory = "memory kept" in setting.name or "huge pages" in setting.name
        assert bool(setting.variables) == is_of_memory


def test_a_bar_is_not_met_by_rounding():
    ours = [Measured(Task(0, "sasrec_ce", OURS, AS_INSTALLED), line(1.0))]
    theirs = [Measured(Task(0, "sasrec_ce", "paper", KEEPS_MEMORY), line(2.996))]
    found = peers.row("ml-1m", "sasrec_ce", "paper", theirs, ours)
    assert found["time_ratio"] == found["time_bar"] == 3.0
    assert not found["time_bar_met"]


def test_rows_in_float32_and_of_each_at_its_best():
    def measured(system, setting, step_s):
        return Measured(Task(0, "sasrec_ce", system, setting), line(step_s))

    kept, mixed = bench.KEEPS_MEMORY, bench.MIXED
    ours = [
        measured(OURS, bench.AS_INSTALLED, 1.0),
        measured(OURS, bench.OUR_BFLOAT16, 0.5),
    ]

    def shown(theirs, ours=ours, system="paper"):
        found = peers.rows_of("ml-1m", "sasrec_ce", system, theirs, ours)
        return [(x["dtype"], x["setting"], x.get("time_ratio")) for x in found]

    first = ("float32", "memory kept", 4.0)
    theirs = [measured("paper", kept, 4.0), measured("paper", mixed, 3.0)]
    assert shown(theirs) == [first, ("any", mixed.name, 6.0)]
    assert shown(theirs, ours[:1]) == [first, ("any", mixed.name, 3.0)]
    # Where mixed precision is slower, float32 is their best.
    theirs = [measured("paper", kept, 4.0), measured("paper", mixed, 9.0)]
    assert shown(theirs) == [first, ("any", "memory kept", 8.0)]
    of_ours = [("float32", "as installed", None), ("any", "bfloat16", None)]
    assert shown(ours, system=OURS) == of_ours


def test_short_last_batch_counts_as_a_part():
    one = Measured(
        Task(0, "bert4rec", "paper", AS_INSTALLED), line(2.0, steps_per_epoch=2.5)
    )
    assert one.seconds_per_epoch == 5.0


def test_summary_tells_what_did_not_run_and_why():
    done = [
        Measured(Task(0, "bert4rec", OURS, AS_INSTALLED), line(1.0)),
        Measured(Task(0, "bert4rec", "paper", AS_INSTALLED), line(2.0)),
        Measured(Task(0, "bert4rec", "paper", LOADERS), {"not_run": "no memory"}),
        Measured(Task(0, "bert4rec", "replay", AS_INSTALLED), {"not_run": "no such"}),
        Measured(Task(0, "sasrec_bce", "replay", AS_INSTALLED), {"not_run": "no such"}),
    ]
    found = peers.summary("ml-1m", done)
    assert [row["system"] for row in found["rows"]] == [
        "jaxrec 1.0",
        "the paper's code 1.0",
    ]
    assert [*found["versions"]] == [OURS, "paper"]
    notes = "\n".join(found["notes"])
    assert "Not run: RePlay, bert4rec, sasrec_bce: no such." in notes
    assert (
        "Not run: the paper's code, memory kept, 2 loaders, bert4rec: no memory."
        in notes
    )
    assert "the paper's code: it is made up." in notes
    assert "Threads of every system: 2." in notes


class FakeBench:
    """Measures in no time, and remembers what."""

    def __init__(self, cannot=()):
        self.cannot, self.measured = cannot, []

    def measure(self, task):
        self.measured.append(task.key)
        return Measured(
            task, {"not_run": "no"} if task.system in self.cannot else line(1.0)
        )


def test_measuring_goes_on_where_it_stopped(tmp_path):
    path, about = tmp_path / "x" / "kept.jsonl", {"commit": "c"}
    todo = [*bench.tasks([OURS, "paper"], ["bert4rec"], 2)]
    fake = FakeBench()
    assert (
        bench.measure_all(todo, fake.measure, bench.Kept(path, about), -math.inf)
        is None
    )
    assert fake.measured == []
    half = todo[:3]
    assert bench.measure_all(half, fake.measure, bench.Kept(path, about), math.inf)
    done = bench.measure_all(todo, fake.measure, bench.Kept(path, about), math.inf)
    assert fake.measured == [task.key for task in todo]
    assert done is not None and [one.task for one in done] == todo
    other = FakeBench()  # at another commit nothing may be used again
    bench.measure_all(half, other.measure, bench.Kept(path, {"commit": "d"}), math.inf)
    assert other.measured == [task.key for task in half]


def test_what_cannot_run_is_tried_once(tmp_path):
    fake = FakeBench(cannot=("paper",))
    todo = [*bench.tasks([OURS, "paper"], ["bert4rec"], 3)]
    done = bench.measure_all(
        todo, fake.measure, bench.Kept(tmp_path / "k", {}), math.inf
    )
    tried = [key for key in fake.measured if key[2] == "paper"]
    assert len(tried) == len(bench.SETTINGS["paper"])
    assert done is not None
    assert sum(not one.has_run for one in done) == 3 * len(tried)


def as_python(tmp_path, *lines):
    """A file that stands in for a system's interpreter."""
    path = tmp_path / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


TASK = Task(0, "sasrec_ce", "paper", LOADERS)


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["echo noise", """echo '{"peak_mb": 7}'"""], {"peak_mb": 7}),
        (
            ["kill -9 $$"],
            {"not_run": "it was killed, as Linux does where memory runs out"},
        ),
    ],
)
def test_driver_answers_in_its_last_line(tmp_path, lines, expected):
    drivers = bench.Bench({"paper": as_python(tmp_path, *lines)}, [])
    assert drivers.measure(TASK).line == expected


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_driver_is_told_the_task_and_its_setting(tmp_path):
    said = """printf '["%s", "%s"]' "$*" "$THP_MEM_ALLOC_ENABLE$JAX_PLATFORMS" """
    drivers = bench.Bench({"paper": as_python(tmp_path, said)}, ["--steps", "3"])
    assert drivers.measure(TASK).line == [
        "-m benchmarks.drivers.paper --steps 3 --method sasrec_ce --workers 2",
        "1cpu",
    ]


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_driver_that_fails_is_an_error(tmp_path):
    python = as_python(tmp_path, "echo no module rectools >&2", "exit 3")
    with pytest.raises(InputError, match="status 3: no module rectools"):
        bench.Bench({"paper": python}, []).measure(TASK)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "sasrec_ce,nonsense"], "got nonsense"),
        (["--rounds", "0"], "--rounds: must be a whole number from 1: got 0"),
        (["--seconds", "nan"], "--seconds: must be a number above 0: got nan"),
        (["--rectools-python", "nowhere"], "nowhere is no program"),
        (["--paper-repo", "nowhere"], "modules.py is not there"),
        ([], "no peer is named"),
        (["--subject", "../x"], "must be ml-1m, or that, a dash.*got '../x'"),
        (["--subject", "beauty"], "must be ml-1m, or that, a dash.*got 'beauty'"),
        (["--subject="], "must be ml-1m, or that, a dash.*got ''"),
    ],
)
def test_bad_options(argv, message):
    with pytest.raises(InputError, match=message):
        peers.parse(argv)


@pytest.mark.parametrize(
    ("command", "argv", "message"),
    [
        (profile_step, "--methods sasrec_ce,nonsense", "bert4rec: got nonsense"),
        (sizes, "--vary nonsense", "got nonsense"),
        (first_batch, "--rectools-python nowhere", "nowhere is no program"),
        (data_preparation, "--interactions 739", "must be 740 at the least"),
        (negatives, "--batch-size 0", "must be a whole number from 1: got 0"),
        (pace, "--seconds -1", "must be a number above 0: got -1"),
        (
            pace,
            "--methods sasrec_cee",
            "no method 'sasrec_cee'; did you mean sasrec_ce",
        ),
        (pace, "--output setup.cfg/x", "'setup.cfg/x' cannot be written to"),
        (pace, "--output=", "'' cannot be written to"),
        (pace, "--methods bert4rec,bert4rec", "names bert4rec twice"),
        (defaults, "--only nonsense", "no change 'nonsense'"),
        (time_to_quality, "--dataset nonsense", "invalid choice: 'nonsense'"),
        (parity, "--paper-repo x --output=", "'' is no file"),
        (parity, "--paper-repo x --output=.", "'.' is no file"),
        (pace, f"--output {'x' * 300}", "cannot be written to"),
        (pace, "--output dangling", "'dangling' cannot be written to"),
    ],
)
def test_bad_options_end_a_command_before_it_measures(
    command, argv, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("setup.cfg").touch()
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match=message):
        command.main([*argv.split()])


def test_a_record_in_place_of_another_is_of_the_same_tree(tmp_path, monkeypatch):
    """The first one changes the tree that the second is asked about."""
    commits = iter(["c" * 40, "c" * 40 + "+"])
    monkeypatch.setattr(measure.record, "commit", lambda: next(commits))
    measure.commit.cache_clear()
    paths = [measure.save("q", "q", [], subject=x, output=tmp_path) for x in "ab"]
    measure.commit.cache_clear()
    assert [measure.read(path)["commit"] for path in paths] == 2 * ["c" * 40]


@pytest.mark.parametrize("axis", sizes.AXES)
def test_steps_of_a_dry_run_of_sizes_can_be_traced(axis, monkeypatch):
    monkeypatch.setattr(sizes, "SHAPES", {"beauty": shapes.TINY})
    split = data.leave_one_out(shapes.made_log(shapes.TINY))
    cases = list(sizes.AXES[axis](sizes.SCALES["tiny"]))
    assert cases
    for case in cases:
        chosen = shapes.settings(case.shape, case.method, **case.changes)
        run = Run(shapes.on_split(split, chosen), time.monotonic())
        built, plan = run.experiment, run.plan(0)
        jax.eval_shape(
            partial(steps.train_steps, recipe=built.recipe, num_rows=run.num_rows),
            *(run.state, built.log, run.train_end_U, built.items),
            *(plan.user_SB[:1], plan.slot_SB[:1]),
        )


def test_windows_in_rows_of_their_own_train_the_same():
    """TINY has no dropout."""
    split, batch_size = data.leave_one_out(shapes.made_log(shapes.TINY)), 30
    chosen = shapes.settings(shapes.TINY, "sasrec_ce", train={"batch_size": batch_size})
    packed, apart = (Trainer(split, chosen, num_steps=2) for _ in range(2))
    row_length = packed.run.experiment.recipe.max_length
    apart.place(np.arange(batch_size) * row_length, num_rows=batch_size)
    assert packed.run.num_rows < apart.run.num_rows == batch_size
    assert float(packed()) == pytest.approx(float(apart()), rel=1e-5)
    assert packed.tokens_per_step == apart.tokens_per_step > 0


def test_what_one_figure_draws_is_of_one_commit():
    """Of each device the latest records of all sizes: their panels are compared."""
    folder = ROOT / "benchmarks" / "results" / "sizes"
    found = [one.found for one in page.latest(folder)]
    commits = {(one["device"], one["commit"]) for one in found}
    assert len(commits) == len({device for device, _ in commits})


def test_every_figure_of_sizes_is_on_the_page():
    drawn = {path.name for path in size_figures.FIGURES.glob("sizes-*.svg")}
    assert drawn == {*re.findall(r"figures/(sizes-[\w-]+\.svg)", page.PAGE.read_text())}


def test_a_profile_is_of_the_program_that_trains():
    """Names are given to a loss; whether it takes packed states is as before."""
    ours, own = objectives.ce(), objectives.Objective(None, lambda *_: None)
    update = optax.sgd(1.0)
    for objective in (ours, own):
        recipe = steps.Recipe(None, objective, update, 1, 1, seed=0)
        loss = profile_step.named(recipe).objective.loss
        assert isinstance(loss, TakesPacked) == (objective is ours)


def test_shapes_are_those_of_the_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.datasets, "locate", lambda name: tmp_path / name)
    python = tmp_path / "python"
    python.symlink_to(sys.executable)  # stays one: its path tells the environment
    argv = ["--dataset", "beauty", "--rectools-python", str(python)]
    drivers = peers.make_bench(peers.parse(argv))
    assert drivers.python == {OURS: sys.executable, "rectools": str(python)}
    words = " ".join(drivers.arguments)
    assert "--max-length 50 --width 64 --steps 6 --seconds 10" in words
    assert f"--data {tmp_path / 'beauty'}" in words


def run(*words):
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_is_of_the_process_itself():
    code = (
        "from benchmarks.drivers.protocol import peak_mb; a = peak_mb(); import mmap; "
        "never_touched = mmap.mmap(-1, 500 << 20); "
        "x = bytearray(200 << 20); del x; print(a, peak_mb() - a)"
    )
    ballast = bytearray(300 << 20)  # a child's getrusage would begin with it
    first, grown = map(int, run("-c", code).split())
    del ballast
    assert first < 150 and 195 <= grown <= 230


def test_our_driver_takes_real_steps(tmp_path):
    rng = np.random.default_rng(0)
    length_U = rng.integers(5, 90, 140)
    rows = [
        f"{u + 1} {i + 1}"
        for u, length in enumerate(length_U)
        for i in rng.permutation(100)[:length]
    ]
    path = tmp_path / "log.txt"
    path.write_text("\n".join(rows) + "\n")
    task = ["--dataset", "beauty", "--data", str(path), "--method", "sasrec_bce"]
    task += ["--max-length", "50", "--width", "64", "--steps", "3"]
    task += ["--seconds", "0"]
    said = json.loads(run("-m", "benchmarks.drivers.jaxrec", *task).splitlines()[-1])
    assert said["steps_per_epoch"] == 2  # of 140 users: a short batch is a whole one
    # An epoch is one dispatch: one warms up, and two are the 3 steps or more.
    assert len(said["step_seconds"]) == 2 and min(said["step_seconds"]) > 0
    targets_U = np.minimum(length_U - 3, 50)
    assert said["tokens_per_step"] == targets_U.sum() / 2
    assert said["compile_s"] > 0 and said["threads"] == protocol.num_cores()
