"""What does an epoch of each method cost, the methods in turn at one commit?

    python -m benchmarks.pace --dataset ml-1m

The runs of results/reproduce/ were made at different commits, on a machine that had
other work too: their seconds cannot be set side by side. Every epoch of a method is the
same work, and so is its validation: a run's epochs times the pace of both that is
measured here can.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, options, page, reproduce
from benchmarks.measure import Variant
from benchmarks.published import PUBLISHED, TITLES
from benchmarks.trainer import Trainer
from jaxrec import experiment
from jaxrec.command import run_command

QUESTION = "what does an epoch of each method cost, the methods in turn at one commit"
NOTES = (
    "Seconds of an epoch's training steps: the median step of a dispatch, times the "
    "steps. Compiling and validation are apart.",
    "valid: seconds of ranking the validation users once, the median of rounds in "
    "turn.",
)


def run(
    dataset: str,
    methods: Sequence[str],
    *,
    num_steps: int | None = None,
    seconds: float = 300,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures the methods' own dispatches in turn, and writes the record.

    Args:
      num_steps: of a dispatch; the training loop's own if not given.
      seconds: after which no round begins.
    """
    chosen = {name: reproduce.settings_of(dataset, name, 0) for name in methods}
    split = experiment.build(chosen[methods[0]]).split
    variants, validations = [], []
    for name in methods:
        trainer = Trainer(split, chosen[name], num_steps=num_steps)
        row = {"dataset": dataset, "method": name, "steps": trainer.steps_per_epoch}
        variants.append(Variant(row, trainer, trainer.num_steps))
        validations.append(Variant({}, trainer.run.validate))
    rows = measure.in_turn(variants, seconds=seconds)
    valid_rows = measure.in_turn(validations, rounds=5, seconds=seconds)
    for row, valid in zip(rows, valid_rows, strict=True):
        row["seconds_per_epoch"] = measure.shown(1e-3 * row["ms"] * row["steps"])
        row["valid_s"] = measure.shown(1e-3 * valid["ms"])
    measure.tell(rows)
    return measure.save(
        "pace", QUESTION, rows, subject=dataset, notes=NOTES, output=output
    )


def read(
    dataset: str, results: Path = measure.RESULTS
) -> dict[str, Mapping[str, float]]:
    """By device, the seconds of an epoch of each method, from the latest record."""
    folder = results / "pace"
    found: list[Any] = page.latest(folder) if folder.is_dir() else []
    return {
        one.found["device"]: {
            row["method"]: row["seconds_per_epoch"] for row in one.found["rows"]
        }
        for one in found
        if one.subject == dataset
    }


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("pace", __doc__)
    parser.add_argument("--dataset", default="ml-1m", help=", ".join(PUBLISHED))
    parser.add_argument(
        "--methods", default=",".join(TITLES), help="with commas between"
    )
    parser.add_argument(
        "--seconds", type=options.amount, default=300, help="of timing, about"
    )
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    methods = options.listed("--methods", flags.methods)
    run(flags.dataset, methods, seconds=flags.seconds, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
