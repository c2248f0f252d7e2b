"""What does training cost here, and in the libraries that one would use instead?

    python -m benchmarks.peers --dataset ml-1m --paper-repo ../sasrec-bert4rec-recsys23
        --rectools-python ../rectools/bin/python

RecTools, RePlay and the paper's own code train the paper's methods at the paper's
shapes on the same file beside us, on the CPU, each by its driver in drivers/ and in its
own environment; a system that is not named is left out. Each runs in float32, and in
bfloat16 as far as it has it. A round measures every system once, in a new process, for
a few steps after a warm-up, so that a machine whose speed drifts treats all alike, and
a ratio is of two times of one round. Of all settings (drivers/bench.py) the fastest in
float32 is set beside our float32, and the fastest of any beside our fastest of any.

What was measured is kept in .cache/peers/ until the record is written: a command that
was stopped, or that --minutes ended, goes on when it is given again.
"""

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, options, page
from benchmarks.drivers.bench import (
    AS_INSTALLED,
    OURS,
    ROOT,
    SETTINGS,
    TITLES,
    Bench,
    Kept,
    Measured,
    measure_all,
    tasks,
)
from benchmarks.drivers.protocol import METHODS
from benchmarks.published import PUBLISHED
from jaxrec import config, datasets, record
from jaxrec.command import run_command
from jaxrec.errors import InputError

# Times as long as ours, and times the memory, that a peer is to take at the least.
TIME_BARS = {
    ("ml-1m", "sasrec_ce", "rectools"): 5.0,
    ("ml-1m", "sasrec_ce", "paper"): 3.0,
    ("ml-1m", "sasrec_sampled_ce", "paper"): 3.0,
    ("ml-1m", "bert4rec", "rectools"): 3.0,
    ("ml-1m", "bert4rec", "paper"): 3.0,
    ("beauty", "sasrec_ce", "rectools"): 10.0,
    ("beauty", "sasrec_ce", "paper"): 10.0,
}
MEMORY_BARS = {
    ("beauty", "sasrec_ce", "rectools"): 3.0,
    ("beauty", "sasrec_ce", "paper"): 3.0,
}
NOTES = [
    "An epoch is the median step times the steps of an epoch, a short last batch "
    "counted as the part that it is, but in ours as a whole one, since its encoder "
    "computes all rows; waiting for the next batch is in it, reading the data and "
    "validation are not. Compiling is apart. Seconds and ratios are medians over the "
    "rounds.",
    "Memory is the peak of the process that trains, from its start on, with the data "
    "read and the program compiled, and nothing validated or saved: the least of the "
    "settings.",
    "Settings: 'memory kept' tells the C library to keep freed memory and PyTorch to "
    "use huge pages; '2 loaders' are processes that prepare batches; 'buckets of 32' "
    "is RePlay's encoder for windows of like length; 'bf16-mixed' is Lightning's; "
    "'torch.compile', of the training step, is no option of theirs: a callback of "
    "ours does it, and 'not compiled' is the least without. We run as installed, with "
    "loss.dtype=bfloat16, and with loss.score_dtype=bfloat16 besides ('scores too'); "
    "'huge pages' tells the C library to use them.",
    "dtype: 'float32' is the fastest setting of float32 beside ours, 'any' the fastest "
    "of all beside the fastest of ours, and bars are judged in both. bf16-mixed is of "
    "the whole of a peer's model; ours is of the softmax: of the gradients' matmuls, "
    "and of scores as three products of bfloat16 halves, or as one ('scores too').",
    "RecBole 1.2.1 is not measured: what pip installs in November 2026 cannot be "
    "imported (ray wants pkg_resources, RecBole wants numpy.bool8, and both are gone); "
    "and its SASRec encodes a window for every target, so that its epoch is another.",
]


def ratios(theirs: Iterable[Measured], ours: Iterable[Measured]) -> list[float]:
    """Times as long as ours, round by round."""
    by_round = {one.task.round: one.seconds_per_epoch for one in ours}
    return [one.seconds_per_epoch / by_round[one.task.round] for one in theirs]


def median_and_range(values: Sequence[float], digits: int) -> tuple[float, list[float]]:
    low, high = min(values), max(values)
    return (
        round(statistics.median(values), digits),
        [round(low, digits), round(high, digits)],
    )


def by_setting(system: str, runs: Iterable[Measured]) -> dict[str, list[Measured]]:
    """The runs of each setting that has any."""
    found: dict[str, list[Measured]] = {one.name: [] for one in SETTINGS[system]}
    for run in runs:
        found[run.task.setting.name].append(run)
    return {name: runs for name, runs in found.items() if runs}


def fastest(settings: dict[str, list[Measured]]) -> str:
    """The setting whose epochs take the least, by the median."""
    return min(
        settings,
        key=lambda name: statistics.median(
            one.seconds_per_epoch for one in settings[name]
        ),
    )


def row(
    dataset: str, method: str, system: str, theirs: list[Measured], ours: list[Measured]
) -> dict[str, Any]:
    """A row of the record: a system's fastest setting, beside our fastest.

    Args:
      theirs, ours: the measurements of the method that ran, of all settings that may
        be chosen and of all rounds.
    """
    of_ours, settings = by_setting(OURS, ours), by_setting(system, theirs)
    beside, best = of_ours[fastest(of_ours)], fastest(settings)
    times = {name: ratios(runs, beside) for name, runs in settings.items()}
    runs = settings[best]
    seconds, spread = median_and_range([one.seconds_per_epoch for one in runs], 2)

    def peak(runs: Iterable[Measured]) -> float:
        return statistics.median(one.line["peak_mb"] for one in runs)

    peaks = {name: round(peak(runs)) for name, runs in settings.items()}
    peak_mb = min(peaks.values())
    found = {
        "dataset": dataset,
        "method": method,
        "system": f"{TITLES[system]} {runs[0].line['version']}",
        "setting": best,
        "rounds": len(runs),
        "seconds_per_epoch": seconds,
        "spread": spread,
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in runs)),
        "peak_mb": peak_mb,
        "compile_s": round(statistics.median(one.line["compile_s"] for one in runs), 1),
    }
    if system == OURS:
        epochs = {
            name: median_and_range([one.seconds_per_epoch for one in runs], 2)[0]
            for name, runs in settings.items()
        }
        return {**found, "seconds_of_settings": epochs, "peak_mb_of_settings": peaks}
    of_settings = {
        name: round(statistics.median(values), 2) for name, values in times.items()
    }
    found["time_ratio"], found["time_ratio_range"] = median_and_range(times[best], 2)
    found["time_ratio_as_installed"] = of_settings.get(AS_INSTALLED.name)
    found["time_ratio_not_compiled"] = min(
        (
            of_settings[name]
            for name, (one, *_) in settings.items()
            if not one.task.setting.is_compiled
        ),
        default=None,
    )
    # Bars are for what was measured, not for what it is rounded to.
    exact = {"time": statistics.median(times[best]), "memory": peak_mb / peak(beside)}
    found["memory_ratio"] = round(exact["memory"], 2)
    place = (dataset, method, system)
    for name, bars in (("time", TIME_BARS), ("memory", MEMORY_BARS)):
        if place in bars:
            found[f"{name}_bar"] = bars[place]
            found[f"{name}_bar_met"] = exact[name] >= bars[place]
    return found | {
        "time_ratio_of_settings": of_settings,
        "peak_mb_of_settings": peaks,
    }


def rows_of(
    dataset: str, method: str, system: str, theirs: list[Measured], ours: list[Measured]
) -> list[dict[str, Any]]:
    """A row in float32, and one in which each system is at its best."""

    def in_float32(runs: list[Measured]) -> list[Measured]:
        return [one for one in runs if one.task.setting.is_float32]

    compared = {"float32": (in_float32(theirs), in_float32(ours))}
    if compared["float32"] != (theirs, ours):
        compared["any"] = (theirs, ours)
    return [
        {"dtype": dtype} | row(dataset, method, system, *runs)
        for dtype, runs in compared.items()
        if all(runs)
    ]


def summary(dataset: str, done: Sequence[Measured]) -> dict[str, Any]:
    """Rows, notes and versions of a record."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in done:
        groups.setdefault((one.task.method, one.task.system), []).append(one)
    rows, versions = [], {}
    said: dict[str, dict[str, None]] = {}  # by system, an ordered set
    not_run: dict[tuple[str, str], list[str]] = {}  # methods, by system and reason
    for (method, system), of_all in groups.items():
        ran = [one for one in of_all if one.has_run]
        for one in of_all:
            if not one.has_run:
                setting = f", {one.task.setting.name}" if ran else ""
                key = (f"{TITLES[system]}{setting}", one.line["not_run"])
                if method not in not_run.setdefault(key, []):
                    not_run[key].append(method)
        if ran:
            ours = [one for one in groups[method, OURS] if one.has_run]
            rows += rows_of(dataset, method, system, ran, ours)
            versions[system] = ran[0].line["versions"]
            said.setdefault(system, {}).update(dict.fromkeys(ran[0].line["settings"]))
    threads = {one.line["threads"] for one in done if one.has_run}
    notes = [
        *NOTES,
        f"Threads of every system: {', '.join(map(str, sorted(threads)))}.",
        *pauses(done),
        *(f"{TITLES[name]}: {'; '.join(texts)}." for name, texts in said.items()),
        *(
            f"Not run: {name}, {', '.join(methods)}: {reason}."
            for (name, reason), methods in not_run.items()
        ),
    ]
    return {"versions": versions, "rows": rows, "notes": notes}


def pauses(done: Sequence[Measured]) -> list[str]:
    """A note of when it was measured: a ratio is of two times that are close together.

    >>> from benchmarks.drivers.bench import Task
    >>> clocks = [[0.0, 60.0], [61.0, 120.0], [420.0, 480.0]]
    >>> pauses([Measured(Task(i, "m", "s", AS_INSTALLED), {"clock_s": clock})
    ...         for i, clock in enumerate(clocks)])
    ['Measured in 8 minutes; the longest pause between two measurements was 5 minutes.']
    """
    clocks = sorted(one.line["clock_s"] for one in done if "clock_s" in one.line)
    if not clocks:
        return []
    span = clocks[-1][1] - clocks[0][0]
    longest = max(
        (
            after[0] - before[1]
            for before, after in zip(clocks, clocks[1:], strict=False)
        ),
        default=0,
    )
    return [
        f"Measured in {span / 60:.0f} minutes; the longest pause between two "
        f"measurements was {longest / 60:.0f} minutes."
    ]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = options.parser(
        "peers", "Train beside the libraries that one would use instead."
    )
    add = parser.add_argument
    add("--dataset", default="ml-1m", choices=[*PUBLISHED])
    add("--methods", default=",".join(METHODS), help="with commas between")
    add("--paper-repo", type=Path, help="a checkout of the paper's code")
    python: dict[str, Any] = {"type": options.interpreter}
    add("--paper-python", **python, help="has its packages (--rectools-python)")
    add("--rectools-python", **python, help="of an environment with rectools[torch]")
    add("--replay-python", **python, help="of an environment with replay-rec[torch]")
    count, amount = options.count, options.amount
    add("--rounds", type=count, default=3)
    add("--once", default="", help="methods of the first round alone")
    add("--steps", type=count, default=6, help="of a measurement, at the least")
    add("--seconds", type=amount, default=10, help="of a measurement, at the least")
    add("--minutes", type=amount, help="begin no measurement after so many")
    add("--subject", help="ends the record's name, in place of the data set")
    options.add_output(parser, ROOT / "benchmarks" / "results")
    flags = parser.parse_args(argv)
    if flags.subject is None:
        flags.subject = flags.dataset
    # Another data set's name would be another's record.
    if not re.fullmatch(rf"{flags.dataset}(-[a-z0-9]+)*", flags.subject):
        raise InputError(
            f"--subject must be {flags.dataset}, or that, a dash and more letters a-z "
            f"and digits: got {flags.subject!r}."
        )
    flags.methods = options.names("--methods", flags.methods, METHODS)
    flags.once = (
        options.names("--once", flags.once, flags.methods) if flags.once else []
    )
    if not (flags.paper_repo or flags.rectools_python or flags.replay_python):
        raise InputError(
            "no peer is named: give --rectools-python, --replay-python or "
            "--paper-repo. (jaxrec alone is what benchmarks.pace measures.)"
        )
    if flags.paper_repo and not (flags.paper_repo / "src" / "modules.py").is_file():
        raise InputError(
            f"--paper-repo must be a checkout of antklen/sasrec-bert4rec-recsys23: "
            f"{flags.paper_repo}/src/modules.py is not there."
        )
    return flags


def make_bench(flags: argparse.Namespace) -> Bench:
    """The systems that the flags name, and the shapes of the data set's configs."""
    python = {OURS: sys.executable}
    for system in ("rectools", "replay"):
        if given := getattr(flags, f"{system}_python"):
            # Not resolved: an environment is told by the path of its link.
            python[system] = os.path.abspath(given)
    arguments = []
    if flags.paper_repo:
        given = flags.paper_python or flags.rectools_python or sys.executable
        python["paper"] = os.path.abspath(given)
        arguments = ["--repo", str(flags.paper_repo.resolve())]
    file = f"configs/{flags.dataset.replace('-', '')}_{METHODS[0]}.py"
    settings = config.read(ROOT / file)
    arguments += ["--dataset", flags.dataset]
    arguments += ["--data", str(datasets.locate(flags.dataset).resolve())]
    arguments += ["--max-length", str(settings["train"]["max_length"])]
    arguments += ["--width", str(settings["model"]["width"])]
    arguments += ["--steps", str(flags.steps), "--seconds", str(flags.seconds)]
    return Bench(python, arguments)


def main(argv: Sequence[str]) -> int:
    """The command."""
    flags = parse(argv)
    bench = make_bench(flags)
    about = {"commit": record.commit(), "arguments": bench.arguments}
    kept = Kept(ROOT / ".cache" / "peers" / f"{flags.subject}.jsonl", about)
    minutes = float("inf") if flags.minutes is None else flags.minutes
    todo = tasks(bench.python, flags.methods, flags.rounds, flags.once)
    done = measure_all(todo, bench.measure, kept, time.monotonic() + 60 * minutes)
    if done is None:
        print("not finished: give the same command again")
        return 0
    device = measure.file_name(record.device())
    name = f"{device}-{record.date()}-{flags.subject}.json"
    path = flags.output / "peers" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "question": "what does training cost here, and in the libraries that one would "
        "use instead",
        # In parts or at once, the record is the same.
        "command": options.without(record.command(), "--minutes"),
        "commit": record.commit(),
        "date": record.date(),
        "device": record.device(),
        **summary(flags.dataset, done),
    }
    record.write_json(path, found)
    kept.path.unlink(missing_ok=True)
    print(page.tables(found["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
