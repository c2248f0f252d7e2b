"""A different set of negatives for each user of a batch: what does that cost?

    python -m benchmarks.negatives

The loss of SASRec+ (softmax over the target and S negatives that a sequence's positions
share), forward and backward, at the shapes of a batch of ML-1M and of Beauty. Naive is
what one writes first: the negatives' rows gathered as [B, S, D], scores [B, L, S] of
every position, autodiff. Shipped is what `objectives.sampled_ce` gives: a few sequences
at a time or, where the negatives are most of the catalogue, the whole catalogue less
the items that were not drawn. Dealt is the same with sets from one shuffle (loss.draw),
where that is another program. Drawing the negatives is a row of its own.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure, options, shapes
from benchmarks.measure import Variant
from benchmarks.shapes import NAMED, SHAPES, Shape
from jaxrec import batches, data, losses, negatives, objectives
from jaxrec.batches import Batch
from jaxrec.command import run_command
from jaxrec.hands import Hands
from jaxrec.objectives import Items, TakesPacked
from jaxrec.ranking import item_mask

Array = jax.Array

QUESTION = "what do negatives of each sequence's own cost, in memory and time"
NUM_NEGATIVES = {
    "ml-1m": (100, 1000, 3000),
    "beauty": (100, 1000, 3000, 10_000),
    "tiny": (5, 40),
}
# Times the memory of the shipped loss that the naive one is to need at the least.
BARS = {("ml-1m", 3000): 4.0}
# Of each loss: how it goes about its candidates, and what drawing these is called.
HOW = {
    losses.Shared: "a few sequences at a time",
    losses.Catalogue: "the catalogue less the rest",
    Hands: "several sequences from one gather",
}
DRAWS = {"shipped": "drawing them", "dealt": "dealing them"}
# A naive program that needs more is compiled for its bytes, and not run.
MOST_RUN_MB = 8 * 2**10
NOTES = (
    "temp is what the compiled program allocates beside its arguments (hidden states, "
    "table, windows and the ids of the negatives) and results (loss and gradients).",
    "The naive program scores padding too, as the paper's code does. Its ids are those "
    "that the shipped one would draw; drawing is not part of any time. Of dealt "
    "negatives the shuffle is an argument, and the ids of the unions are not.",
    "They are drawn from the whole catalogue, of a made log.",
)


class Arguments(NamedTuple):
    """What a loss is a function of, but its candidates.

    hidden_BLD: of every position, padding included, for the naive loss.
    packed: the same, as a training step hands them to the shipped one.
    """

    hidden_BLD: Array
    packed: losses.Packed
    table_VD: Array
    batch: Batch


def naive(
    hidden_BLD: Array,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    negative_BS: Array,
) -> tuple[Array, Array]:
    """`losses.sampled_ce` as the formula reads."""
    negative_BSD = table_VD[negative_BS]
    own_BL1 = (hidden_BLD * table_VD[target_BL]).sum(axis=-1, keepdims=True)
    score_BLS = jnp.einsum("bld,bsd->bls", hidden_BLD, negative_BSD)
    score_BLM = jnp.concatenate([own_BL1, score_BLS], axis=-1)
    loss_BL = jax.nn.logsumexp(score_BLM, axis=-1) - own_BL1[..., 0]
    return (weight_BL * loss_BL).sum(), weight_BL.sum()


def make_arguments(shape: Shape, batch_size: int) -> Arguments:
    """The windows of a batch of the shape's users, and states and a table at random."""
    split = data.leave_one_out(shapes.made_log(shape, num_users=batch_size))
    windows = batches.windows(
        batches.log_on_device(split.dataset),
        jnp.asarray(split.dataset.offsets[:-1], jnp.int32),
        jnp.asarray(split.train_end, jnp.int32),
        length=shape.max_length + 1,
    )
    batch = batches.next_item(windows)
    length_1B = jax.device_get((batch.tokens_BL > 0).sum(axis=1))[None]
    slot_1B, (num_rows,) = batches.assign_slots(length_1B, shape.max_length)
    packing = batches.place(
        batch.tokens_BL,
        jnp.asarray(slot_1B[0]),
        num_rows=int(num_rows),
        row_length=shape.max_length,
    )
    keys = jax.random.split(jax.random.key(0))
    rows = (packing.num_rows, packing.row_length, shape.width)
    hidden_RTD = jax.random.normal(keys[0], rows)
    table_VD = 0.02 * jax.random.normal(keys[1], (shape.num_items + 1, shape.width))
    return Arguments(
        batches.unpack(hidden_RTD, packing),
        losses.Packed(hidden_RTD, packing.place_BL, is_dense=True),
        table_VD,
        batch,
    )


def with_gradients(loss: Any) -> Any:
    """(arguments, candidates) -> the sum of the loss and both gradients."""

    def program(arguments: Arguments, candidates: Any):
        hidden = arguments.packed.hidden_RTD
        batch, takes_packed = arguments.batch, isinstance(loss, TakesPacked)

        def total(hidden, table_VD):
            states = hidden
            if takes_packed:
                states = dataclasses.replace(arguments.packed, hidden_RTD=hidden)
            rest = batch.target_BL, batch.weight_BL, candidates
            return loss(states, table_VD, *rest)[0]

        if not takes_packed:
            hidden = arguments.hidden_BLD
        return jax.value_and_grad(total, (0, 1))(hidden, arguments.table_VD)

    return program


class Case(NamedTuple):
    """What is compared for a data set and S.

    programs: name -> (loss and gradients, candidates); the first is the naive one.
    draws: name -> the draw of the negatives.
    draw_arguments: of every draw.
    """

    programs: dict[str, tuple[Any, Any]]
    draws: dict[str, Any]
    draw_arguments: tuple


def make_case(shape: Shape, num_negatives: int, arguments: Arguments) -> Case:
    """Draws the negatives once for each loss."""
    is_item_V = item_mask(len(arguments.table_VD), shape.num_items)
    items = Items(is_item_V, negatives.make_pool(jax.device_get(is_item_V)))
    seen_BX = arguments.batch.seen_BX
    draw_arguments = (jax.random.key(1), arguments.batch.target_BL, seen_BX, items)
    one_set = partial(
        negatives.uniform_without_replacement,
        pool=items.pool,
        num_negatives=num_negatives,
    )
    keys_B = jax.random.split(jax.random.key(1), len(seen_BX))
    negative_BS = jax.vmap(one_set)(keys_B, seen_BX)
    case = Case({"naive": (with_gradients(naive), negative_BS)}, {}, draw_arguments)
    for name, draw in (("shipped", "apart"), ("dealt", "dealt")):
        objective = objectives.sampled_ce(num_negatives=num_negatives, draw=draw)
        drawn = jax.jit(objective.candidates)(*draw_arguments)
        if name == "dealt" and isinstance(drawn, losses.Catalogue):
            continue  # as apart
        how = HOW[type(drawn)]
        case.programs[f"{name}: {how}"] = with_gradients(objective.loss), drawn
        case.draws[DRAWS[name]] = objective.candidates
    return case


def compare(
    shape: Shape, num_negatives: int, arguments: Arguments, times: int, seconds: float
) -> list[dict[str, Any]]:
    """The rows of one data set and S."""
    case = make_case(shape, num_negatives, arguments)
    about = {"dataset": shape.name, "negatives": num_negatives}
    rows, variants = [], []
    for name, (function, candidates) in case.programs.items():
        program = measure.compiled(function, arguments, candidates)
        row = {**about, "program": name, "temp_mb": measure.temp_mb(program)}
        if row["temp_mb"] > MOST_RUN_MB:
            rows.append(row)
            continue
        call = measure.repeated(program, (arguments, candidates), times)
        variants.append(Variant(row, call, times))
    for name, function in case.draws.items():
        draw = measure.compiled(function, *case.draw_arguments)
        row = {**about, "program": name, "temp_mb": measure.temp_mb(draw)}
        call = measure.repeated(draw, case.draw_arguments, times)
        variants.append(Variant(row, call, times))
    rows += measure.in_turn(variants, seconds=seconds, untimed_calls=1)
    return judge(rows)


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times the memory and time of each loss the naive one takes.

    >>> rows = [{"program": "naive", "temp_mb": 8.0, "ms": 9.0, "dataset": "ml-1m",
    ...          "negatives": 3000}]
    >>> rows += [{**rows[0], "program": "shipped: x", "temp_mb": 2.0, "ms": 3.0}]
    >>> rows += [{**rows[0], "program": "dealt: y", "temp_mb": 4.0, "ms": 2.0}]
    >>> found = judge(rows)[1]
    >>> found["memory_ratio"], found["time_ratio"], found["memory_bar_met"]
    (4.0, 3.0, True)
    >>> rows[2]["time_ratio"], "memory_bar" in rows[2]
    (4.5, False)
    """
    first = rows[0]
    for row in rows:
        if row["program"] != "naive" and row["program"] not in DRAWS.values():
            row["memory_ratio"] = measure.shown(first["temp_mb"] / row["temp_mb"])
            if "ms" in first:
                row["time_ratio"] = measure.shown(first["ms"] / row["ms"])
            bar = BARS.get((row["dataset"], row["negatives"]))
            if bar is not None and row["program"].startswith("shipped"):
                row["memory_bar"] = bar
                row["memory_bar_met"] = row["memory_ratio"] >= bar
    return rows


def run(
    *,
    names: Sequence[str] = tuple(SHAPES),
    batch_size: int = 128,
    seconds: float = 20,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record.

    Args:
      names: of shapes.
      seconds: of timing for one data set and S, about.
    """
    times = 1 if measure.on_cpu() else 20
    rows = []
    for name in names:
        shape = NAMED[name]
        arguments = make_arguments(shape, batch_size)
        for num_negatives in NUM_NEGATIVES[name]:
            found = compare(shape, num_negatives, arguments, times, seconds)
            measure.tell(found)
            rows += found
    return measure.save("negatives", QUESTION, rows, notes=NOTES, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("negatives", __doc__)
    parser.add_argument("--batch-size", type=options.count, default=128)
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    run(batch_size=flags.batch_size, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
