"""A million items: what do the exact cross-entropy and the exact ranks take?

    python -m benchmarks.million_items

The loss of given hidden states against a table of a million rows of 128, with both
gradients, and the ranks of many users over the same table, a batch after another in one
program. The scores of 25,600 labels would be 95 GiB and are never stored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure, ranking_speed
from benchmarks.measure import Variant
from jaxrec import evaluator, losses, ranking
from jaxrec.command import run_command
from jaxrec.ranking import Seen

QUESTION = "what do the exact cross-entropy and ranks of a million items take"
# On one H200: MiB beside weights and gradients; milliseconds; of these, aims.
MEMORY_BAR_MB, LOSS_AIM_MS = 1024, 60
RANKS_BAR_MS, RANKS_AIM_MS = 300, 100
NOTES = (
    "temp is what the compiled program allocates beside its arguments (hidden states, "
    "table) and results (loss, both gradients; ranks).",
    "Hidden states are given: encoding is in neither row. Scores of ranks are float32 "
    "at the highest precision.",
)


class Scale(NamedTuple):
    """What is computed: labels of the loss, users to rank and how many at a time."""

    num_items: int
    width: int
    labels: int
    users: int
    batch_size: int
    rounds: int


SCALES = {
    "gpu": Scale(1_000_000, 128, 25_600, 100_000, 2_000, 5),
    "cpu": Scale(1_000_000, 128, 1_024, 1_024, 256, 3),
    "tiny": Scale(9_000, 8, 32, 16, 8, 1),
}


def loss_variant(scale: Scale) -> Variant:
    """The full cross-entropy of sequences of 128 labels, and its gradients."""
    keys = jax.random.split(jax.random.key(0), 3)
    num_rows = scale.num_items + 1
    shape = (max(1, scale.labels // 128), min(scale.labels, 128))
    hidden_BLD = jax.random.normal(keys[0], (*shape, scale.width))
    table_VD = 0.02 * jax.random.normal(keys[1], (num_rows, scale.width))
    target_BL = jax.random.randint(keys[2], shape, 1, num_rows)
    weight_BL = jnp.ones(shape)
    candidates = losses.Catalogue(ranking.item_mask(num_rows, scale.num_items))

    def total(hidden_BLD, table_VD, *rest):
        return losses.ce(hidden_BLD, table_VD, *rest)[0]

    arguments = (hidden_BLD, table_VD, target_BL, weight_BL, candidates)
    program = measure.compiled(jax.value_and_grad(total, (0, 1)), *arguments)
    flops = 6.0 * scale.labels * scale.num_items * scale.width
    row = {
        "program": "cross-entropy, forward and backward",
        "items": scale.num_items,
        "width": scale.width,
        "labels": scale.labels,
        "temp_mb": measure.temp_mb(program),
        "tflop": measure.shown(flops / 1e12),
    }
    return Variant(row, measure.repeated(program, arguments, 1))


def ranks_variant(scale: Scale) -> Variant:
    """Ranks of all users, `batch_size` at a time, in one program."""
    task = ranking_speed.make_task(scale.num_items, scale.users, scale.width)
    chunk = evaluator.item_chunk(scale.num_items + 1, scale.batch_size)
    num_batches = scale.users // scale.batch_size

    def batched(x: jax.Array) -> jax.Array:
        return x.reshape(num_batches, -1, *x.shape[1:])

    seen_item_BH = batched(task.seen.item_H)
    # Rows are numbered within their batch.
    row_H = task.seen.row_H[: seen_item_BH.shape[1]]
    is_valid_H = task.seen.is_valid_H[: len(row_H)]

    def program_of(table_VD, is_item_V, *per_batch):
        def one(batch):
            hidden_BD, target_B, item_H = batch
            seen = Seen(row_H, item_H, is_valid_H)
            found, _ = ranking.target_ranks(
                hidden_BD, table_VD, is_item_V, target_B, seen, item_chunk=chunk
            )
            return found

        return jax.lax.map(one, per_batch)

    arguments = (
        task.table_VD,
        task.is_item_V,
        batched(task.hidden_BD),
        batched(task.target_B),
        seen_item_BH,
    )
    program = measure.compiled(program_of, *arguments)
    row = {
        "program": "exact ranks",
        "items": scale.num_items,
        "width": scale.width,
        "users": scale.users,
        "temp_mb": measure.temp_mb(program),
        "tflop": measure.shown(2e-12 * scale.users * scale.num_items * scale.width),
    }
    return Variant(row, measure.repeated(program, arguments, 1))


def judged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the bars and aims, which were set for a GPU."""
    loss, ranks = rows
    is_met = loss["temp_mb"] <= MEMORY_BAR_MB
    loss = {**loss, "temp_bar_mb": MEMORY_BAR_MB, "temp_bar_met": is_met}
    loss |= {"aim_ms": LOSS_AIM_MS, "aim_met": loss["ms"] <= LOSS_AIM_MS}
    ranks = {**ranks, "bar_ms": RANKS_BAR_MS, "bar_met": ranks["ms"] <= RANKS_BAR_MS}
    ranks |= {"aim_ms": RANKS_AIM_MS, "aim_met": ranks["ms"] <= RANKS_AIM_MS}
    return [loss, ranks]


def run(*, scale: Scale | None = None, output: Path = measure.RESULTS) -> Path:
    """Measures and writes the record; `scale` is by the device if not given."""
    scale = scale or SCALES["cpu" if measure.on_cpu() else "gpu"]
    variants = [loss_variant(scale), ranks_variant(scale)]
    rows = measure.in_turn(variants, rounds=scale.rounds)
    for row in rows:
        row["tflop_per_s"] = measure.shown(1e3 * row["tflop"] / row["ms"])
    if scale == SCALES["gpu"]:
        rows = judged(rows)
    measure.tell(rows)
    return measure.save("million_items", QUESTION, rows, notes=NOTES, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.million_items")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
