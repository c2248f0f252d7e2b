"""Where does the time of a step go, and how far is that from the device's limit?

    python -m benchmarks.profile_step --dataset ml-1m

A dispatch of each of the paper's methods is recorded by the profiler of JAX, and every
moment of it is given to the part of the step that the operation running then is of (in
equal shares where several run at once). What one part has to do at the least, in
operations of matmuls, in exponentials and in bytes, is divided by what the device does
a second, measured in the same command: that is the part's floor.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure, options, roofline, shapes, trace
from benchmarks.measure import Variant
from benchmarks.roofline import Rates, Work
from benchmarks.shapes import METHODS, NAMED, SHAPES
from benchmarks.trainer import Trainer
from jaxrec import data
from jaxrec.command import run_command
from jaxrec.objectives import TakesPacked
from jaxrec.steps import Recipe

QUESTION = "where does the time of a training step go, against the device's limit"
# What a name of an operation says about its part; the first that fits. The scopes in
# capitals are those of `named`, the others are the names of Flax modules.
PARTS = (
    ("OPTIMISER", "optimiser"),
    ("NEGATIVES", "negatives drawn"),
    ("LOSS", "loss"),
    (r"(query|key|value|output|inner|outer)/", "dense layers"),
    ("attention/", "attention"),
    (r"item_embedding/|\((SASRec|BERT4Rec)\)+/(gather|scatter)", "embedding"),
    (r"norm/|[dD]ropout|\((SASRec|BERT4Rec)\)", "norms, dropout, elementwise"),
)
OTHER, IDLE = "batch, packing, other", trace.IDLE
NOTES = (
    "floor_ms: matmul operations, exponentials and bytes that the part cannot do "
    "without, on real positions, each over the rate that was measured beside it; on a "
    "CPU, where one unit does all, their sum, on a GPU the largest. Norms, dropout, "
    "packing and the drawing of negatives have none: they could be fused into others. "
    "What stays in a cache can be faster than the floor of its bytes: no gap.",
    "A part's ms is its share of the profiled time, times the median of the step "
    "without the profiler.",
)


def named(recipe: Recipe) -> Recipe:
    """The recipe with names for the operations of its parts."""
    objective, optimiser = recipe.objective, recipe.optimiser
    return recipe._replace(
        objective=objective._replace(
            candidates=jax.named_scope("NEGATIVES")(objective.candidates),
            loss=named_loss(objective.loss),
        ),
        optimiser=optimiser._replace(
            update=jax.named_scope("OPTIMISER")(optimiser.update)
        ),
    )


def named_loss(loss: Any) -> Any:
    """The loss with the name; it takes what it took."""
    if isinstance(loss, TakesPacked):
        return TakesPacked(named_loss(loss.loss))
    return jax.named_scope("LOSS")(loss)


@contextmanager
def names_matter() -> Iterator[None]:
    """A cache of compiled programs has none of the same program with other names."""
    option = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, option)
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)


class Counts(NamedTuple):
    """What a step's work depends on, the mean over the steps of a dispatch.

    tokens: that the encoder sees; pairs: of a query and a key that it may see;
    targets: positions with a loss; candidates: that each of them competes with.
    """

    tokens: float
    pairs: float
    targets: float
    candidates: int


def count(trainer: Trainer, method: str) -> Counts:
    """The counts of the trainer's dispatch."""
    built = trainer.run.experiment
    is_cloze = built.encoder.objective == "cloze"
    user_SB = trainer.part[0]
    length_SB = built.split.train_lengths[user_SB] - (not is_cloze)
    length_SB = np.where(user_SB >= 0, length_SB, 0)
    length_SB = np.clip(length_SB, 0, built.recipe.max_length).astype(float)
    pairs_SB = length_SB**2 if is_cloze else length_SB * (length_SB + 1) / 2
    loss = METHODS[method][1]
    num_candidates = 1 + loss.get("num_negatives", built.encoder.num_items)
    return Counts(
        tokens=length_SB.sum(axis=1).mean(),
        pairs=pairs_SB.sum(axis=1).mean(),
        targets=trainer.tokens_per_step,
        candidates=num_candidates,
    )


def least_work(trainer: Trainer, counts: Counts) -> dict[str, Work]:
    """What each part has to do, forward and backward.

    A dense layer takes three matmuls: its output and two gradients. Attention takes two
    forward and four backward, over the pairs that see each other. The loss takes three
    over the candidates, reads their rows and adds to their gradients. Adam reads a
    parameter, its gradient and two moments, and writes all but the gradient. The
    embedding's rows are read and written, and so are their gradients.
    """
    params = trainer.run.state.params
    encoder = trainer.run.experiment.encoder
    width, num_heads = encoder.width, encoder.num_heads
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    pairs = counts.pairs * encoder.num_layers
    scores = counts.targets * counts.candidates
    rows = 4.0 * counts.tokens * width
    # Rows of the table that compete with any target of the batch.
    sets = trainer.part[0].shape[1] if counts.candidates <= encoder.num_items else 1
    table_rows = min(encoder.num_items, sets * counts.candidates)
    return {
        "dense layers": Work(flops=6.0 * counts.tokens * sum(kernels)),
        "attention": Work(flops=12.0 * pairs * width, exps=pairs * num_heads),
        "loss": Work(6.0 * scores * width, scores, 3 * 4.0 * table_rows * width),
        "optimiser": Work(bytes=7 * 4.0 * trainer.num_parameters),
        "embedding": Work(bytes=4 * rows),
    }


def profile(
    dataset: str, method: str, rates: Rates, *, num_steps: int, users: int
) -> list[dict[str, Any]]:
    """The rows of a method: its parts, the slowest first, and their sum."""
    shape = NAMED[dataset]
    split = data.leave_one_out(shapes.made_log(shape, num_users=users))
    changes = {"train": {"batch_size": min(128, users)}}
    chosen = shapes.settings(shape, method, **changes)
    with names_matter():
        trainer = Trainer(split, chosen, num_steps=num_steps, change=named)
    (whole,) = measure.in_turn([Variant({}, trainer, trainer.num_steps)], seconds=20)
    program = trace.Program(trainer.program.as_text() or "", PARTS, OTHER)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(trainer())
        found = trace.read(Path(folder), program)
    work = least_work(trainer, count(trainer, method))
    about = {"dataset": dataset, "method": method}
    rows = []
    for part, share in sorted(found.shares.items(), key=lambda item: -item[1]):
        ms = whole["ms"] * share
        row = {**about, "part": part, "ms": measure.shown(ms)}
        row["share"] = measure.shown(share)
        if part in work:
            floor_ms = roofline.floor_ms(work[part], rates)
            row["floor_ms"] = measure.shown(floor_ms)
            row["gap_ms"] = measure.shown(max(0.0, ms - floor_ms))
        row["slowest"] = found.slowest(part)
        rows.append(row)
    floor_ms = sum(roofline.floor_ms(each, rates) for each in work.values())
    total = {
        **about,
        "part": "the step",
        "ms": whole["ms"],
        "spread": whole["spread"],
        "floor_ms": measure.shown(floor_ms),
        "gap_ms": measure.shown(whole["ms"] - floor_ms),
        "of_floor": measure.shown(floor_ms / whole["ms"]),
    }
    return [*rows, total]


def gap(rows: Sequence[dict[str, Any]]) -> str:
    """A sentence that names a method's largest gaps.

    >>> rows = [{"part": p, "ms": m, "floor_ms": f, "slowest": "exp"}
    ...         for p, m, f in (("loss", 9.0, 1.0), ("attention", 5.0, 4.0))]
    >>> gap([{**row, "method": "x", "dataset": "d"} for row in rows])
    'd, x: above the floor are loss by 8 ms (of it exp), attention by 1 ms (of it exp).'
    """
    parts = [row for row in rows if row["part"] != "the step"]
    over = {row["part"]: row["ms"] - row.get("floor_ms", 0.0) for row in parts}
    slowest = {row["part"]: row["slowest"] for row in parts}
    largest = sorted(over, key=lambda part: -over[part])[:3]
    named = ", ".join(
        f"{part} by {over[part]:.3g} ms (of it {slowest[part]})" for part in largest
    )
    return f"{rows[0]['dataset']}, {rows[0]['method']}: above the floor are {named}."


def run(
    dataset: str,
    *,
    methods: Sequence[str] = tuple(METHODS),
    num_steps: int = 16,
    users: int | None = None,
    rates: Rates | None = None,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record of a data set.

    Args:
      num_steps: of a dispatch. Of two, on a CPU, a quarter would be the taking of
        memory, which every dispatch does anew.
      users: of the made log; enough for the dispatch if not given.
      rates: of the device; measured if not given.
    """
    rates = rates or roofline.measured()
    measured = partial(
        profile, num_steps=num_steps, users=users or 128 * num_steps, rates=rates
    )
    rows, notes = [], [f"Rates of the device: {roofline.told(rates)}."]
    for method in methods:
        found = measured(dataset, method)
        measure.tell(found)
        rows += found
        notes.append(gap(found))
    return measure.save(
        "profile_step",
        QUESTION,
        rows,
        subject=dataset,
        notes=[*notes, *NOTES],
        output=output,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("profile_step", __doc__)
    parser.add_argument("--dataset", default="ml-1m", choices=[*SHAPES])
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="with commas between"
    )
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    methods = options.names("--methods", flags.methods, METHODS)
    run(flags.dataset, methods=methods, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
