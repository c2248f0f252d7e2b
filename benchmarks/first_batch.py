"""How long from a table in memory to the first training batch, here and in RecTools?

    python -m benchmarks.first_batch --rectools-python ../rectools/bin/python

Makes the logs of `data_preparation` (the shape of ML-20M), with integer ids and with
text, and prepares each in a new process, system after system, round after round. What
is imported, and reading the file into pandas, is not timed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data_preparation, measure, options
from benchmarks.drivers.bench import ROOT
from jaxrec.command import run_command
from jaxrec.errors import InputError

QUESTION = "how long from a table in memory to the first training batch"
BAR = 2.0
# Driver -> title, and the kinds of ids that it takes.
SYSTEMS = {
    "jaxrec": ("jaxrec", ("integers", "text")),
    "rectools": ("RecTools, SASRecModel", ("integers", "text")),
    "rectools_tensors": ("RecTools, build_sequences", ("integers",)),
}
NOTES = (
    "jaxrec: ids encoded, leave-one-out split with its counts, the log on the device, "
    "an epoch planned and packed; compiling what makes a batch is in the seconds.",
    "RecTools, SASRecModel: Dataset.construct, the model's data preparation and its "
    "loader, as in fit; it has no split of its own, and no validation is set aside.",
    "RecTools, build_sequences: what its fast_transformers offers for integer tensors; "
    "no split, ids of the caller's are not kept beside.",
    "time_ratio: of the system to jaxrec, the median over the rounds; memory is the "
    "peak of the whole process, the table in pandas included.",
)


def prepare(python: str, system: str, path: Path) -> dict[str, Any]:
    """What the driver prints."""
    command = [python, "-m", "benchmarks.drivers.first_batch", system, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()[-40:])
        raise InputError(
            f"the driver of {system} ended with status {done.returncode}: {said}. Its "
            "environment needs pandas and pyarrow, and rectools[torch] to measure it."
        )
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(
    kind: str, measured: dict[str, list[dict[str, Any]]], interactions: int
) -> list[dict[str, Any]]:
    """A row of each system.

    Args:
      measured: what each printed in each round; ours is the first.
    """
    ours = [one["seconds"] for one in next(iter(measured.values()))]
    rows = []
    for system, lines in measured.items():
        seconds = [one["seconds"] for one in lines]
        row = {
            "system": SYSTEMS[system][0],
            "table": data_preparation.KINDS[kind],
            "interactions": interactions,
            "seconds": statistics.median(seconds),
            "spread": measure.ends(seconds),
            "peak_mb": max(one["peak_mb"] for one in lines),
        }
        if system != "jaxrec":
            ratios = [a / b for a, b in zip(seconds, ours, strict=True)]
            ratio = statistics.median(ratios)
            row |= {
                "time_ratio": measure.shown(ratio),
                "time_ratio_range": measure.ends(ratios),
                "time_bar": BAR,
                "time_bar_met": ratio >= BAR,
            }
        rows.append(row | {"versions": lines[-1]["versions"]})
    return rows


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("first_batch", __doc__)
    data_preparation.add_interactions(parser)
    parser.add_argument(
        "--rectools-python",
        type=options.interpreter,
        required=True,
        help="of an environment with rectools[torch] and pyarrow",
    )
    parser.add_argument("--rounds", type=options.count, default=3)
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    rows = []
    for kind in ("integers", "text"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "log.parquet")
            size = ("--interactions", flags.interactions)
            data_preparation.in_new_process("--make", kind, "--path", path, *size)
            measured = {
                system: [] for system, (_, kinds) in SYSTEMS.items() if kind in kinds
            }
            for _ in range(flags.rounds):
                for system, lines in measured.items():
                    is_ours = system == "jaxrec"
                    python = sys.executable if is_ours else flags.rectools_python
                    lines.append(prepare(python, system, path))
                    print(kind, system, lines[-1], flush=True)
        rows += rows_of(kind, measured, flags.interactions)
    measure.save("first_batch", QUESTION, rows, notes=NOTES, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
