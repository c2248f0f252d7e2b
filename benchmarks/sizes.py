"""What does a training step cost against the sizes that one can choose?

    python -m benchmarks.sizes --vary catalogue

One size at a time, the rest as in the paper: items of the catalogue, negatives, window,
batch, width, layers. A row is a compiled dispatch of the training loop at one size; the
rows of a command are timed in turn, round by round. `--vary window` takes the epoch of
Beauty at windows of 50, 100 and 200: the same users and batches at each, and a bar for
what the longest costs of the shortest, round by round.
benchmarks.size_figures draws the records.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure, options, shapes
from benchmarks.measure import Variant
from benchmarks.shapes import NAMED, SHAPES, Shape
from benchmarks.trainer import Trainer
from jaxrec import data
from jaxrec.command import run_command
from jaxrec.data import Split

QUESTION = "what does a training step cost against the sizes that one can choose"
# Growth of the epoch of Beauty from the first window to the last, at the most.
WINDOW_BAR = 1.10
WINDOW_METHODS = ("sasrec_ce", "sasrec_sampled_ce")
MOST_USERS = 2**15  # of a made log; a dispatch has fewer steps where they run out


class Scale(NamedTuple):
    """The sizes tried, and how they are timed.

    num_steps: of a dispatch, and 32 times as many where epochs are compared; None for
      as many as the training loop has.
    """

    catalogue: tuple[int, ...]
    negatives: dict[str, tuple[int, ...]]
    window: tuple[int, ...]
    batch: tuple[int, ...]
    width: tuple[int, ...]
    layers: tuple[int, ...]
    num_steps: int | None
    rounds: int


CATALOGUE = (3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
NEGATIVES = {"ml-1m": (30, 300, 1000, 3000), "beauty": (30, 300, 1000, 3000, 10_000)}
SCALES = {
    "cpu": Scale(
        CATALOGUE,
        NEGATIVES,
        window=(50, 100, 200),
        batch=(32, 64, 128, 256, 512),
        width=(32, 64, 128, 256),
        layers=(1, 2, 4, 8),
        num_steps=None,
        rounds=5,
    ),
    "gpu": Scale(
        CATALOGUE,
        NEGATIVES,
        window=(50, 100, 200),
        batch=(32, 128, 512, 2048),
        width=(64, 128, 256, 512),
        layers=(1, 2, 4, 8, 16),
        num_steps=48,
        rounds=9,
    ),
    "tiny": Scale(
        catalogue=(50,),
        negatives={"tiny": (5,)},
        window=(4, 8),
        batch=(2,),
        width=(8,),
        layers=(1,),
        num_steps=1,
        rounds=1,
    ),
}


class Case(NamedTuple):
    """One size: the row's columns, and what is trained."""

    row: dict[str, Any]
    shape: Shape
    method: str
    changes: dict[str, dict[str, Any]]


def catalogue(scale: Scale) -> Iterator[Case]:
    """Items; with the full softmax and with 1,000 negatives."""
    for num_items in scale.catalogue:
        shape = SHAPES["beauty"]._replace(num_items=num_items)
        row = {"dataset": "lengths of beauty", "items": num_items}
        yield Case({**row, "method": "sasrec_ce"}, shape, "sasrec_ce", {})
        number = min(1000, num_items // 2)
        row |= {"method": "sasrec_sampled_ce", "negatives": number}
        changes = {"loss": {"num_negatives": number}}
        yield Case(row, shape, "sasrec_sampled_ce", changes)


def negatives(scale: Scale) -> Iterator[Case]:
    """Negatives of the sampled softmax, drawn apart and, if not too many, dealt."""
    for name, numbers in scale.negatives.items():
        shape, method = NAMED[name], "sasrec_sampled_ce"
        for number in numbers:
            for draw, ending in (("apart", ""), ("dealt", "_dealt")):
                if draw == "dealt" and 2 * number > shape.num_items:
                    continue  # as apart
                row = {"dataset": name, "method": method + ending, "negatives": number}
                changes = {"loss": {"num_negatives": number, "draw": draw}}
                yield Case(row, shape, method, changes)


def section(
    axis: str, column: str, section: str, option: str, scale: Scale
) -> Iterator[Case]:
    """An option of a config, on both data sets."""
    for name in SHAPES:
        for size in getattr(scale, axis):
            row = {"dataset": name, "method": "sasrec_ce", column: size}
            yield Case(row, SHAPES[name], "sasrec_ce", {section: {option: size}})


def window(scale: Scale) -> Iterator[Case]:
    """The window, on Beauty: whole epochs of the same users in the same order."""
    for method in WINDOW_METHODS:
        for length in scale.window:
            row = {"dataset": "beauty", "method": method, "window": length}
            shape = SHAPES["beauty"]
            changes: dict[str, dict[str, Any]] = {"train": {"max_length": length}}
            if method == "sasrec_sampled_ce":
                number = min(3000, shape.num_items // 2)
                changes["loss"] = {"num_negatives": number}
            yield Case(row, shape, method, changes)


AXES: dict[str, Callable[[Scale], Iterator[Case]]] = {
    "catalogue": catalogue,
    "negatives": negatives,
    "window": window,
    "batch": partial(section, "batch", "batch", "train", "batch_size"),
    "width": partial(section, "width", "width", "model", "width"),
    "layers": partial(section, "layers", "layers", "model", "num_layers"),
}


def split_of(case: Case, num_steps: int | None, is_epoch: bool) -> Split:
    """Users enough for a dispatch; for an epoch all, from the file if it is there."""
    if is_epoch:
        return shapes.find_split(case.shape)[0]
    batch_size = case.changes.get("train", {}).get("batch_size", 128)
    num_users = min(num_steps * batch_size, MOST_USERS) if num_steps else MOST_USERS
    made = shapes.made_log(case.shape, num_users=num_users)
    return data.leave_one_out(made)


def trained(case: Case, num_steps: int | None, split: Split) -> Variant:
    """A size, compiled."""
    chosen = shapes.settings(case.shape, case.method, **case.changes)
    trainer = Trainer(split, chosen, num_steps=num_steps)
    row = {
        **case.row,
        "steps": trainer.num_steps,
        "parameters": trainer.num_parameters,
        "steps_per_epoch": trainer.steps_per_epoch,
        "compile_s": measure.shown(trainer.run.progress.compile_s),
        "temp_mb": measure.temp_mb(trainer.program),
    }
    trainer()  # so that it can tell its tokens
    row["targets_per_step"] = round(trainer.tokens_per_step)
    return Variant(row, trainer, trainer.num_steps)


def measured(axis: str, scale: Scale, seconds: float) -> list[dict[str, Any]]:
    """The rows of an axis."""
    is_epoch = axis == "window"
    # Of an epoch many: its batches are less alike the longer the windows are.
    num_steps = scale.num_steps
    if num_steps and is_epoch:
        num_steps *= 32
    variants = []
    for case in AXES[axis](scale):
        split = split_of(case, num_steps, is_epoch)
        variants.append(trained(case, num_steps, split))
    times = measure.times_in_turn(variants, rounds=scale.rounds, seconds=seconds)
    rows = list(map(measure.timed, variants, times))
    for row in rows:
        row["targets_per_s"] = round(1e3 * row["targets_per_step"] / row["ms"])
        steps = row.pop("steps_per_epoch")
        if is_epoch:
            row["seconds_per_epoch"] = measure.shown(row["ms"] * steps / 1e3)
    if is_epoch:
        longest = len(scale.window)
        for last in range(longest - 1, len(rows), longest):
            rows[last] |= growth(times[last], times[last - longest + 1])
    return rows


def growth(longest_ms: Sequence[float], shortest_ms: Sequence[float]) -> dict[str, Any]:
    """Of an epoch from the first window to the last: the median ratio of a round."""
    ratios = [a / b for a, b in zip(longest_ms, shortest_ms, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "growth": measure.shown(ratio),
        "growth_range": measure.ends(ratios),
        "growth_bar": WINDOW_BAR,
        "growth_bar_met": ratio <= WINDOW_BAR,
    }


def run(
    axis: str,
    *,
    scale: Scale | None = None,
    seconds: float = 60,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures an axis and writes its record.

    Args:
      scale: by the device, if not given.
      seconds: of timing, about; compiling is not counted.
    """
    scale = scale or SCALES["cpu" if measure.on_cpu() else "gpu"]
    rows = measured(axis, scale, seconds)
    measure.tell(rows)
    return measure.save("sizes", QUESTION, rows, subject=axis, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("sizes", __doc__)
    parser.add_argument("--vary", default=",".join(AXES), help="with commas between")
    parser.add_argument(
        "--seconds", type=options.amount, default=60, help="of timing, about"
    )
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    for axis in options.names("--vary", flags.vary, AXES):
        run(axis, seconds=flags.seconds, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
