"""How much memory does the softmax over a whole catalogue need?

    python -m benchmarks.memory

A training step (encoder, full cross-entropy, Adam) as it is shipped, on packed rows and
with the scores of some positions at a time, against what one writes first: padded
windows, and the scores of every position and item stored; and against the textbook's
way out of that, the packed step with its loss in chunks by lax.scan and jax.checkpoint.
Then a step on a catalogue of a million items in a process of its own, by its peak of
resident memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure, options, shapes
from benchmarks.drivers import protocol
from benchmarks.measure import Variant
from benchmarks.shapes import NAMED, Shape
from benchmarks.trainer import Trainer
from jaxrec import data, losses, steps
from jaxrec.command import run_command
from jaxrec.objectives import Items, TakesPacked
from jaxrec.random import stream

Array = jax.Array

QUESTION = "how much memory does the softmax over a whole catalogue need"
# Times the memory of our step that the padded one is to need at the least.
BARS = {("beauty", "sasrec_ce"): 10.0}
LARGE_BAR_MB = 8 * 2**10
# Positions that the textbook's loss has at a time.
CHUNKS = (64, 256, 1024)
# 64 windows of 16 targets: 1,024 labels.
LARGE = Shape("1m-items", 64, 1_000_000, ((0, 19), (1, 19)), 0.8, 16, width=128)
NOTES = (
    "temp is what the compiled step allocates beside its arguments (state, log) and "
    "results; both programs update the state in place.",
    "The padded step differs in two things: a window is a row of the encoder, and the "
    "scores [B, L, V] are stored for optax's cross-entropy and its autodiff. Ratios "
    "are to it.",
    "The step with lax.scan and jax.checkpoint is ours but for the loss: so many "
    "positions at a time against the whole table, optax's cross-entropy, and autodiff, "
    "which computes the scores a second time. A scan's length is known before, so it "
    "goes over all places of the packed rows: a few more than have a target, and five "
    "times as many in BERT4Rec.",
    "The large step is SASRec at d = 128 with Adam, 64 windows of 16 targets; its "
    "peak is the resident memory of a fresh process over its whole life, imports, "
    "compiling and the 1.5 GiB of parameters and optimiser state included.",
)


def padded_step(
    state: Any, log: Any, start_B: Array, end_B: Array, items: Items, *, recipe
):
    """`steps.train_step` with padded rows and stored scores."""
    batch = steps.training_batch(recipe, log, start_B, end_B, state.step)
    encoder = recipe.encoder
    dropout_key = jax.random.fold_in(stream(recipe.seed, "dropout"), state.step)

    def mean_loss(params):
        tokens_BL = batch.tokens_BL
        position_1L = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
        hidden_BLD = encoder.apply(
            {"params": params},
            tokens_BL,
            jnp.broadcast_to(position_1L, tokens_BL.shape),
            (tokens_BL > 0).astype(jnp.int32),
            train=True,
            rngs={"dropout": dropout_key},
        )
        table_VD = encoder.apply({"params": params}, method="table")
        score_BLV = jnp.einsum("bld,vd->blv", hidden_BLD, table_VD)
        score_BLV = jnp.where(items.is_item_V[None, None], score_BLV, -jnp.inf)
        target_BL = jnp.maximum(batch.target_BL, 1)
        loss_BL = optax.softmax_cross_entropy_with_integer_labels(score_BLV, target_BL)
        loss_sum = jnp.where(batch.weight_BL > 0, loss_BL, 0).sum()
        return loss_sum / jnp.maximum(batch.weight_BL.sum(), 1)

    gradients = jax.grad(mean_loss)(state.params)
    updates, opt_state = recipe.optimiser.update(
        gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


class PaddedTrainer:
    """Steps of `padded_step` on the same users as a Trainer's."""

    def __init__(self, trainer: Trainer):
        run = trainer.run
        built = run.experiment
        user_B = trainer.plan.user_SB[0]
        # A copy: the trainer's own state is donated to its steps.
        self.state = jax.tree.map(jnp.copy, run.state)
        self.arguments = (
            built.log,
            built.log.offset_U1[user_B],
            run.train_end_U[user_B],
            built.items,
        )
        self.program = measure.compiled(
            partial(padded_step, recipe=built.recipe),
            self.state,
            *self.arguments,
            donate_argnums=0,
        )

    def __call__(self) -> Any:
        self.state = self.program(self.state, *self.arguments)
        return self.state.step


def checkpointed_ce(
    hidden: losses.Packed,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: losses.Catalogue,
    *,
    size: int,
) -> tuple[Array, Array]:
    """`losses.ce` as JAX has it ready: chunks of positions, scores computed twice.

    Args:
      size: positions of a chunk.
    """
    index_N, count = losses.compact(weight_BL, hidden.most)
    del count  # a scan's length is known before
    fillers = -len(index_N) % size
    index_N = jnp.pad(index_N, (0, fillers), constant_values=weight_BL.size)

    def chunks(x_BL: Array) -> Array:
        x_N = x_BL.reshape(-1).at[index_N].get(mode="fill", fill_value=0)
        return x_N.reshape(-1, size)

    hidden_ND = hidden.states(index_N)
    hidden_KnD = hidden_ND.reshape(-1, size, hidden_ND.shape[-1])

    @jax.checkpoint
    def body(total: Array, chunk: tuple[Array, Array, Array]):
        hidden_nD, target_n, weight_n = chunk
        score_nV = hidden_nD @ table_VD.T
        score_nV = jnp.where(candidates.allowed_V[None], score_nV, -jnp.inf)
        loss_n = optax.softmax_cross_entropy_with_integer_labels(
            score_nV, jnp.maximum(target_n, 1)
        )
        return total + (weight_n * loss_n).sum(), None

    start = jnp.zeros((), jnp.float32)
    chunked = hidden_KnD, chunks(target_BL), chunks(weight_BL)
    return jax.lax.scan(body, start, chunked)[0], weight_BL.sum()


def with_checkpoints(recipe: steps.Recipe, size: int) -> steps.Recipe:
    loss = TakesPacked(partial(checkpointed_ce, size=size))
    return recipe._replace(objective=recipe.objective._replace(loss=loss))


def compare(
    shape: Shape, method: str, *, batch_size: int, seconds: float
) -> list[dict[str, Any]]:
    """The padded step, the textbook's chunks, and ours."""
    changes = {"train": {"batch_size": batch_size}}
    split = data.leave_one_out(shapes.made_log(shape, num_users=2 * batch_size))
    chosen = shapes.settings(shape, method, **changes)
    trainer = Trainer(split, chosen, num_steps=1)
    padded = PaddedTrainer(trainer)
    calls: dict[str, Trainer | PaddedTrainer] = {"padded, scores stored": padded}
    for size in CHUNKS:
        change = partial(with_checkpoints, size=size)
        name = f"packed, lax.scan and jax.checkpoint, {size} positions at a time"
        calls[name] = Trainer(split, chosen, num_steps=1, change=change)
    calls["shipped"] = trainer
    variants = []
    for name, call in calls.items():
        row = {"dataset": shape.name, "method": method, "program": name}
        row |= {"batch": batch_size, "temp_mb": measure.temp_mb(call.program)}
        variants.append(Variant(row, call))
    rows = measure.in_turn(variants, rounds=5, seconds=seconds, untimed_calls=1)
    for row in rows[1:]:
        row["memory_ratio"] = measure.shown(rows[0]["temp_mb"] / row["temp_mb"])
        row["time_ratio"] = measure.shown(rows[0]["ms"] / row["ms"])
    ours = rows[-1]
    bar = BARS.get((shape.name, method))
    if bar is not None:
        ours |= {"memory_bar": bar, "memory_bar_met": ours["memory_ratio"] >= bar}
    return rows


def large(shape: Shape = LARGE) -> dict[str, Any]:
    """A step on the large catalogue: what it took this process."""
    changes = {"train": {"batch_size": shape.num_users}, "model": {"num_positions": 16}}
    chosen = shapes.settings(shape, "sasrec_ce", **changes)
    began = time.perf_counter()
    trainer = Trainer(data.leave_one_out(shapes.made_log(shape)), chosen, num_steps=1)
    jax.block_until_ready(trainer.run.state)
    ready_s = time.perf_counter() - began
    labels = trainer.run.experiment.split.train_lengths - 1
    (row,) = measure.in_turn([Variant({}, trainer)], rounds=3)
    return {
        "dataset": f"{shape.num_items:,} items, made",
        "method": "sasrec_ce",
        "program": "shipped, a process of its own",
        "labels": int(labels.sum()),
        "width": shape.width,
        "temp_mb": measure.temp_mb(trainer.program),
        "peak_mb": protocol.peak_mb(),
        "ready_s": measure.shown(ready_s),
        **row,
    }


def large_in_new_process() -> dict[str, Any]:
    """`large`, with its bar."""
    command = [sys.executable, "-m", "benchmarks.memory", "--large"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    bar = {"peak_bar_mb": LARGE_BAR_MB, "peak_bar_met": row["peak_mb"] < LARGE_BAR_MB}
    return {**row, **bar}


def run(
    *,
    pairs: Sequence[tuple[str, str]] = (
        ("beauty", "sasrec_ce"),
        ("beauty", "bert4rec"),
        ("ml-1m", "sasrec_ce"),
        ("ml-1m", "bert4rec"),
    ),
    batch_size: int = 128,
    with_large: bool = True,
    seconds: float = 60,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record."""
    rows = []
    for name, method in pairs:
        shape = NAMED[name]
        found = compare(shape, method, batch_size=batch_size, seconds=seconds)
        measure.tell(found)
        rows += found
    if with_large:
        rows.append(large_in_new_process())
    return measure.save("memory", QUESTION, rows, notes=NOTES, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("memory", __doc__)
    options.add_output(parser, measure.RESULTS)
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.large:
        print(json.dumps(large()))
    else:
        run(output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
