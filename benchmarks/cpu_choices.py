"""Which way of computing a step's parts is the fastest on this device?

    python -m benchmarks.cpu_choices

The choices of the library that were made by timing, each against what one would write
first: the mask of a dropout, attention and its backward pass, the gradient of a dense
layer, and the tiles of the softmax. Each round times every variant once, in turn, so
that a machine whose speed drifts treats all alike; a row has the median and the range
over rounds, and the bytes that the compiled program needs beside its arguments.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec import attention, dropout, layers, record, softmax

ROUNDS = 7
ROWS, LENGTH, WIDTH = 80, 200, 64  # a packed batch of ML-1M
# Losses in a dispatch, as in a training run, which keeps its memory over many steps.
REPEATS = 4
Variant = tuple[str, Callable, tuple]


@contextmanager
def setting(module: Any, **values: Any) -> Iterator[None]:
    """Constants of a module, which are read while a program is traced."""
    shipped = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in shipped.items():
            setattr(module, name, value)


def dropout_variants() -> Iterator[Variant]:
    """The mask of one layer's attention, by generator."""
    x = jnp.ones((ROWS, 1, LENGTH, LENGTH))

    def bernoulli(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)

    yield "dropout: bernoulli, threefry", bernoulli, (jax.random.key(0), x)
    rbg = jax.random.key(0, impl="rbg")
    yield "dropout: bernoulli, rbg", bernoulli, (rbg, x)
    shipped = lambda key, x: dropout.dropout(key, x, 0.1)  # noqa: E731
    yield "dropout: shipped", shipped, (jax.random.key(0), x)


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


def attention_variants() -> Iterator[Variant]:
    """Forward and backward of causal attention over packed rows."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (ROWS, LENGTH, 1, WIDTH)
    *arrays, grad = (jax.random.normal(key, shape) for key in keys)
    segment_RT = jnp.ones((ROWS, LENGTH), jnp.int32)

    def both(attend: Callable, queries: int = LENGTH) -> Callable:
        def step(query, key, value, grad, dropout_key):
            with setting(attention, _QUERIES=queries):
                out, vjp = jax.vjp(
                    lambda *arrays: attend(*arrays, segment_RT, dropout_key),
                    *(query, key, value),
                )
            return out, vjp(grad)

        return step

    arguments = (*arrays, grad, jax.random.key(1))
    yield "attention: autodiff", both(textbook_attention), arguments
    shipped = attention._QUERIES
    for queries in (LENGTH, 100, shipped, 50, 40):
        with setting(attention, _QUERIES=queries):
            blocks = len(attention.query_blocks(LENGTH, is_causal=True))
        name = f"attention: {blocks} block{'s' if blocks > 1 else ''} of queries"
        mark = " (shipped)" if queries == shipped else ""
        yield name + mark, both(shipped_attention, queries), arguments


def dense_variants() -> Iterator[Variant]:
    """Forward and backward of drop(W2 relu(drop(W1 x)))."""
    x_RTD, grad_RTD = (
        jax.random.normal(key, (ROWS, LENGTH, WIDTH))
        for key in jax.random.split(jax.random.key(0))
    )

    def feed_forward(dense: Callable) -> Variant:
        first, second = dense(), dense()
        params = first.init(jax.random.key(1), x_RTD)

        def fn(params, x, key):
            key_1, key_2 = jax.random.split(key)
            y = nn.relu(dropout.dropout(key_1, first.apply(params, x), 0.1))
            return dropout.dropout(key_2, second.apply(params, y), 0.1)

        def step(params, x, grad, key):
            out, vjp = jax.vjp(lambda params, x: fn(params, x, key), params, x)
            return out, vjp(grad)

        arguments = (params, x_RTD, grad_RTD, jax.random.key(2))
        return "", step, arguments

    yield "dense: nn.Dense", *feed_forward(lambda: nn.Dense(WIDTH))[1:]
    shipped = feed_forward(lambda: layers.Dense(WIDTH, jnp.float32))
    yield "dense: shipped", *shipped[1:]


def softmax_variants() -> Iterator[Variant]:
    """Loss and both gradients of one batch of ML-1M and of Beauty, by tile."""
    whole, items = 3_424, 54_544
    yield from softmax_of(
        "ml-1m",
        3_417,
        10_200,
        [(608, 3_417), *((n, whole) for n in (160, 304, 608, 1_216, 2_448, 10_208))],
    )
    yield from softmax_of(
        "beauty",
        54_543,
        720,
        [(192, rows) for rows in (2_048, 7_792, 13_648, 27_280, items)]
        + [(size, 13_648) for size in (48, 96, 384, 720)],
    )


def softmax_of(
    name: str, num_rows: int, num_positions: int, tiles: list[tuple[int, int]]
) -> Iterator[Variant]:
    """Tiles in float32; the first and the shipped one in bfloat16 too; and the shipped
    one without keeping exponentials.

    A program computes the loss `REPEATS` times, each followed by a step of momentum.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    positions = softmax.Positions(
        jax.random.randint(keys[2], (num_positions,), 1, num_rows),
        jnp.ones((num_positions,)),
        jnp.zeros((num_positions,), jnp.int32),
        jnp.int32(num_positions),
    )
    arguments = (
        jax.random.normal(keys[0], (num_positions, WIDTH)),
        0.02 * jax.random.normal(keys[1], (num_rows, WIDTH)),
        positions,
        jnp.arange(num_rows) > 0,
    )

    def descent(tile: tuple[int, int], *, most_kept=10**6, dtype="float32") -> Callable:
        sizes = softmax._sizes()._replace(most_kept=most_kept)

        def step(_, tables, others):
            table_VD, mean_VD = tables
            hidden_ND, positions, allowed_V = others
            total, (hidden_grad_ND, table_grad_VD) = jax.value_and_grad(
                softmax.loss_sum, (0, 1)
            )(hidden_ND, table_VD, positions, allowed_V, None, dtype=dtype)
            # Nothing may be left out, nor done once for all.
            mean_VD = 0.9 * mean_VD + 1e-9 * total * table_grad_VD
            return table_VD - mean_VD, mean_VD + 1e-9 * hidden_grad_ND.sum()

        def fn(hidden_ND, table_VD, *others):
            start = table_VD, jnp.zeros_like(table_VD)
            body = partial(step, others=(hidden_ND, *others))
            with setting(softmax, tile_shape=lambda *_: tile, _sizes=lambda: sizes):
                return jax.lax.fori_loop(0, REPEATS, body, start)

        return fn

    shipped = softmax.tile_shape(num_rows, num_positions)
    for tile in tiles:
        mark = " (shipped)" if tile == shipped else ""
        yield f"softmax {name}: tile {tile}{mark}", descent(tile), arguments
    for tile in (tiles[0], shipped):
        fn = descent(tile, dtype="bfloat16")
        yield f"softmax {name}: tile {tile}, bfloat16", fn, arguments
    twice = descent(shipped, most_kept=0)
    yield f"softmax {name}: tile {shipped}, twice", twice, arguments


def interleaved(variants: list[Variant]) -> list[dict]:
    """Milliseconds of each variant: median and range over the rounds."""
    programs = {
        name: (jax.jit(fn).lower(*arguments).compile(), arguments)
        for name, fn, arguments in variants
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(ROUNDS + 1):
        for name, (program, arguments) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if round_ > 0:  # the first warms up
                repeats = REPEATS if name.startswith("softmax") else 1
                times[name].append(1e3 * (time.perf_counter() - began) / repeats)
    return [
        {
            "system": name,
            "ms": round(statistics.median(ms), 2),
            "spread": [round(min(ms), 2), round(max(ms), 2)],
            "temp_mb": round(temp_bytes(programs[name][0]) / 2**20, 1),
        }
        for name, ms in times.items()
    ]


def temp_bytes(program: jax.stages.Compiled) -> int:
    """What the program allocates beside its arguments and results."""
    memory = program.memory_analysis()
    assert memory is not None, "this backend does not tell"
    return memory.temp_size_in_bytes


def main() -> None:
    rows = []
    for variants in (
        dropout_variants,
        attention_variants,
        dense_variants,
        softmax_variants,
    ):
        for row in interleaved(list(variants())):
            low, high = row["spread"]
            print(
                f"{row['system']:<48}{row['ms']:8.1f} ms  ({low:.1f} to {high:.1f})"
                f"{row['temp_mb']:8.0f} MB",
                flush=True,
            )
            rows.append(row)
    device = jax.devices()[0].platform
    folder = Path(__file__).parent / "results" / "cpu_choices"
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(
        folder / f"{device}-{record.date()}.json",
        {
            "question": "which way of computing a step's parts is the fastest",
            "command": record.command(),
            "commit": record.commit(),
            "date": record.date(),
            "device": record.device(),
            "versions": record.versions(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
