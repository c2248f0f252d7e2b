"""How many users a second are ranked exactly, against the size of the catalogue?

    python -m benchmarks.ranking_speed

Hidden states of B users against a table of V items: the exact rank of one target for
each (`ranking.target_ranks`, which counts) and the ten best items (`topk.top_items`,
which merges), both some users and items at a time and both with the users' seen items
left out. Beside the latter what one writes first: all scores, and one top-k over them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure, options
from benchmarks.measure import Variant
from jaxrec import evaluator, ranking, topk
from jaxrec.command import run_command
from jaxrec.ranking import Seen

Array = jax.Array

QUESTION = "how many users a second are ranked exactly"
WIDTH, NUM_SEEN, K = 64, 100, 10
NOTES = (
    f"Encoding is not in it: hidden states of {WIDTH} floats are given, as are the "
    f"{NUM_SEEN} seen items of each user. Scores are float32 at the highest precision.",
    "temp is what the compiled program allocates beside its arguments and results.",
)


class Scale(NamedTuple):
    """What is measured.

    num_items: catalogues; batch_size: users of a program; times: calls of one timing.
    """

    num_items: tuple[int, ...]
    batch_size: int
    times: int


CATALOGUE = (3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
SCALES = {
    "cpu": Scale(CATALOGUE, 256, 1),
    "gpu": Scale(CATALOGUE, 1024, 10),
    "tiny": Scale((300,), 8, 1),
}


class Task(NamedTuple):
    """B users to be ranked."""

    hidden_BD: Array
    table_VD: Array
    is_item_V: Array
    target_B: Array
    seen: Seen


def make_task(num_items: int, batch_size: int, width: int = WIDTH) -> Task:
    """States, table, targets and seen items at random; a target is never seen."""
    keys = jax.random.split(jax.random.key(0), 4)
    target_B = jax.random.randint(keys[2], (batch_size,), 1, num_items + 1)
    # One of each stretch of the other items: distinct, and as many for every user.
    stretch = (num_items - 1) // NUM_SEEN or 1
    num_seen = min(NUM_SEEN, num_items - 1)
    offset_BH = jax.random.randint(keys[3], (batch_size, num_seen), 0, stretch)
    first_1H = jnp.arange(num_seen, dtype=jnp.int32)[None] * stretch
    item_BH = (target_B[:, None] + first_1H + offset_BH) % num_items + 1
    size = batch_size * num_seen
    row_H = jnp.repeat(jnp.arange(batch_size, dtype=jnp.int32), num_seen)
    seen = Seen(row_H, item_BH.reshape(size), jnp.ones((size,), bool))
    return Task(
        jax.random.normal(keys[0], (batch_size, width)),
        jax.random.normal(keys[1], (num_items + 1, width)),
        ranking.item_mask(num_items + 1, num_items),
        target_B,
        seen,
    )


def ranks(task: Task) -> Any:
    cuts = evaluator.rank_cuts(len(task.table_VD), len(task.target_B))
    return ranking.target_ranks(*task, **cuts)


def best_items(task: Task) -> Any:
    return topk.top_items(
        task.hidden_BD,
        task.table_VD,
        task.is_item_V,
        task.seen,
        k=K,
        **evaluator.top_cuts(len(task.table_VD), len(task.target_B)),
    )


def stored_best_items(task: Task) -> Any:
    """All scores, and one top-k."""
    score_BV = jnp.dot(task.hidden_BD, task.table_VD.T, precision="highest")
    score_BV = jnp.where(task.is_item_V[None], score_BV, -jnp.inf)
    score_BV = score_BV.at[task.seen.row_H, task.seen.item_H].set(-jnp.inf)
    return jax.lax.top_k(score_BV, K)


def variants(scale: Scale) -> Iterator[Variant]:
    """Programs and their rows, smallest catalogue first."""
    for num_items in scale.num_items:
        task = make_task(num_items, scale.batch_size)
        programs: dict[str, Callable] = {
            "rank of the target": ranks,
            f"top {K}": best_items,
            f"top {K}, all scores stored": stored_best_items,
        }
        for name, fn in programs.items():
            program = measure.compiled(fn, task)
            row = {"items": num_items, "program": name, "users": scale.batch_size}
            row["temp_mb"] = measure.temp_mb(program)
            call = measure.repeated(program, (task,), scale.times)
            yield Variant(row, call, scale.times)


def run(
    *,
    scale: Scale | None = None,
    seconds: float = 60,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record; `scale` is by the device if not given."""
    scale = scale or SCALES["cpu" if measure.on_cpu() else "gpu"]
    rows = measure.in_turn(list(variants(scale)), seconds=seconds)
    for row in rows:
        row["users_per_s"] = round(1e3 * row["users"] / row["ms"])
    measure.tell(rows)
    return measure.save("ranking_speed", QUESTION, rows, notes=NOTES, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("ranking_speed", __doc__)
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    run(output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
