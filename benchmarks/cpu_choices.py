"""Which way of computing a step's parts is the fastest on this device?

    python -m benchmarks.cpu_choices

The choices of the library that were made by timing, each against what one would write
first: the mask of a dropout, attention and its backward pass, the gradient of a dense
layer, the tiles of the softmax, and windows that share the rows of the encoder, each of
them timed in turn with its rivals.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import measure, options, shapes
from benchmarks.gpu_suite import candidates
from benchmarks.gpu_suite.candidates import Tiling
from benchmarks.measure import Variant
from benchmarks.shapes import SHAPES
from benchmarks.trainer import Trainer
from jaxrec import attention, data, dropout, layers, softmax
from jaxrec.command import run_command

QUESTION = "which way of computing a step's parts is the fastest"
NOTES = (
    "ms and spread: median and range over rounds that time every way once, in turn. "
    "temp: what the compiled program allocates beside its arguments and results.",
    "The softmax has the slots of a batch and as many targets as a batch; a program "
    "computes it four times, each followed by a step of momentum.",
    "Rows of the encoder: whole steps of full cross-entropy on a made log; the loss is "
    "of the same positions in both. slots: places in the encoder's rows.",
)
ROUNDS = 7
PACKING_STEPS = 4
ROWS, LENGTH, WIDTH = 70, 200, 64  # a packed batch of ML-1M
# Losses in a dispatch, as in a training run, which keeps its memory over many steps.
REPEATS = 4


class Way(NamedTuple):
    """A way to compute something: what its row is called, and a call of it.

    repeats: of the work, in a call.
    """

    name: str
    fn: Callable
    arguments: tuple
    repeats: int = 1

    def variant(self) -> Variant:
        program = measure.compiled(self.fn, *self.arguments)
        row = {"system": self.name, "temp_mb": measure.temp_mb(program)}
        return Variant(row, partial(program, *self.arguments), self.repeats)


def dropout_ways() -> Iterator[Way]:
    """The mask of one layer's attention, by generator."""
    x = jnp.ones((ROWS, 1, LENGTH, LENGTH))

    def bernoulli(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)

    yield Way("dropout: bernoulli, threefry", bernoulli, (jax.random.key(0), x))
    rbg = jax.random.key(0, impl="rbg")
    yield Way("dropout: bernoulli, rbg", bernoulli, (rbg, x))
    shipped = partial(dropout.dropout, rate=0.1)
    yield Way("dropout: shipped", shipped, (jax.random.key(0), x))


def textbook_attention(query, key, value, segment_RT, dropout_key):
    """What autodiff makes of the formula."""
    score = jnp.einsum("rthk,rmhk->rhtm", query, key) / WIDTH**0.5
    mask = segment_RT[:, None, :, None] == segment_RT[:, None, None]
    mask &= jnp.tri(LENGTH, dtype=bool)
    share = jax.nn.softmax(jnp.where(mask, score, -1e30))
    share = dropout.dropout(dropout_key, share, 0.1)
    return jnp.einsum("rhtm,rmhk->rthk", share, value)


def shipped_attention(query, key, value, segment_RT, dropout_key):
    return attention.attend(
        query,
        key,
        value,
        segment_RT,
        is_causal=True,
        rate=0.1,
        dropout_key=dropout_key,
    )


def attention_ways() -> Iterator[Way]:
    """Forward and backward of causal attention over packed rows."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (ROWS, LENGTH, 1, WIDTH)
    *arrays, grad = (jax.random.normal(key, shape) for key in keys)
    segment_RT = jnp.ones((ROWS, LENGTH), jnp.int32)

    def both(attend: Callable, queries: int = LENGTH) -> Callable:
        def step(query, key, value, grad, dropout_key):
            with mock.patch.object(attention, "_QUERIES", queries):
                out, vjp = jax.vjp(
                    lambda *arrays: attend(*arrays, segment_RT, dropout_key),
                    *(query, key, value),
                )
            return out, vjp(grad)

        return step

    arguments = (*arrays, grad, jax.random.key(1))
    yield Way("attention: autodiff", both(textbook_attention), arguments)
    shipped = attention._QUERIES
    for queries in (LENGTH, 100, shipped, 50, 40):
        with mock.patch.object(attention, "_QUERIES", queries):
            blocks = len(attention.query_blocks(LENGTH, is_causal=True))
        name = f"attention: {blocks} block{'s' if blocks > 1 else ''} of queries"
        mark = " (shipped)" if queries == shipped else ""
        yield Way(name + mark, both(shipped_attention, queries), arguments)


def dense_ways() -> Iterator[Way]:
    """Forward and backward of drop(W2 relu(drop(W1 x)))."""
    x_RTD, grad_RTD = (
        jax.random.normal(key, (ROWS, LENGTH, WIDTH))
        for key in jax.random.split(jax.random.key(0))
    )

    def feed_forward(name: str, dense: Callable) -> Way:
        first, second = dense(), dense()
        params = first.init(jax.random.key(1), x_RTD)

        def fn(params, x, key):
            key_1, key_2 = jax.random.split(key)
            y = nn.relu(dropout.dropout(key_1, first.apply(params, x), 0.1))
            return dropout.dropout(key_2, second.apply(params, y), 0.1)

        def step(params, x, grad, key):
            out, vjp = jax.vjp(lambda params, x: fn(params, x, key), params, x)
            return out, vjp(grad)

        return Way(f"dense: {name}", step, (params, x_RTD, grad_RTD, jax.random.key(2)))

    yield feed_forward("nn.Dense", lambda: nn.Dense(WIDTH))
    yield feed_forward("shipped", lambda: layers.Dense(WIDTH, jnp.float32))


# Tiles to try: positions and rows.
TILES = {
    "ml-1m": (
        (608, 3_417),
        *((n, 3_424) for n in (160, 304, 608, 1_216, 2_448, 13_776)),
    ),
    "beauty": (
        *((192, rows) for rows in (2_048, 7_792, 13_648, 27_280, 54_544)),
        *((size, 13_648) for size in (48, 96, 384, 720)),
    ),
}


def softmax_ways(case: candidates.Case) -> Iterator[Way]:
    """Tiles in float32; the first and the shipped one in bfloat16 too; and the shipped
    one without keeping exponentials."""
    *arguments, _ = candidates.softmax_arguments(case)
    shipped = candidates.shipped_tiling(case)
    tilings = [Tiling(*tile, is_kept=True) for tile in TILES[case.name]]
    for tiling in tilings:
        mark = " (shipped)" if tiling == shipped else ""
        yield softmax_way(case, tiling, mark, arguments)
    for tiling in (tilings[0], shipped):
        yield softmax_way(case, tiling, ", bfloat16", arguments, dtype="bfloat16")
    yield softmax_way(case, shipped._replace(is_kept=False), ", twice", arguments)


def softmax_way(
    case: candidates.Case, tiling: Tiling, mark: str, arguments: Sequence, **options
) -> Way:
    """`REPEATS` losses with both gradients, each followed by a step of momentum."""

    def step(_, tables, others):
        table_VD, mean_VD = tables
        hidden_ND, positions, allowed_V = others
        total, (hidden_grad_ND, table_grad_VD) = jax.value_and_grad(
            softmax.loss_sum, (0, 1)
        )(hidden_ND, table_VD, positions, allowed_V, None, **options)
        # Nothing may be left out, nor done once for all.
        mean_VD = 0.9 * mean_VD + 1e-9 * total * table_grad_VD
        return table_VD - mean_VD, mean_VD + 1e-9 * hidden_grad_ND.sum()

    def fn(hidden_ND, table_VD, *others):
        start = table_VD, jnp.zeros_like(table_VD)
        body = partial(step, others=(hidden_ND, *others))
        with tiling.setting():
            return jax.lax.fori_loop(0, REPEATS, body, start)

    name = f"softmax {case.name}: tile {tuple(tiling[:2])}{mark}"
    return Way(name, fn, tuple(arguments), REPEATS)


def packing_variants(name: str) -> Iterator[Variant]:
    """Steps of full cross-entropy, windows packed or each in a row of its own."""
    shape, batch_size = SHAPES[name], 128
    split = data.leave_one_out(
        shapes.made_log(shape, num_users=PACKING_STEPS * batch_size)
    )
    chosen = shapes.settings(shape, "sasrec_ce")
    for way in ("packed", "a window a row"):
        trainer = Trainer(split, chosen, num_steps=PACKING_STEPS)
        row_length = trainer.run.experiment.recipe.max_length
        if way != "packed":
            trainer.place(np.arange(batch_size) * row_length, num_rows=batch_size)
        trainer()  # so that it can tell its targets
        slots = trainer.run.num_rows * row_length
        row = {
            "system": f"rows of the encoder, {name}: {way}",
            "temp_mb": measure.temp_mb(trainer.program),
            "slots_per_target": measure.shown(slots / trainer.tokens_per_step),
        }
        yield Variant(row, trainer, trainer.num_steps)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("cpu_choices", __doc__)
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    ways = [dropout_ways(), attention_ways(), dense_ways()]
    ways += [softmax_ways(one) for one in candidates.CASES if one.name in TILES]
    rows = []
    for variants in [
        *((way.variant() for way in group) for group in ways),
        *(packing_variants(name) for name in SHAPES),
    ]:
        found = measure.in_turn(list(variants), rounds=ROUNDS)
        measure.tell(found)
        rows += found
    measure.save("cpu_choices", QUESTION, rows, notes=NOTES, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
