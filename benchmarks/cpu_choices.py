"""Which dropout draws, and how many positions a chunk of the softmax, on this device?

    python -m benchmarks.cpu_choices

Two choices of the library that were made by timing: how `models.dropout` draws its
mask, and how many scores `losses.ce` holds at a time. Each round times every variant
once, in turn, so that a machine whose speed drifts treats all alike; a row has the
median and the range over rounds.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrec import losses, models, record

ROUNDS = 7
SHAPE = (70, 1, 200, 200)  # attention of a packed batch of ML-1M
POSITIONS, ITEMS, WIDTH = 13_824, 3_416, 64  # its targets, its catalogue


def dropout_variants() -> dict[str, Callable[[], jax.Array]]:
    """The mask of one layer's attention, by generator."""
    x = jnp.ones(SHAPE)
    key, rbg = jax.random.key(0), jax.random.key(0, impl="rbg")

    @jax.jit
    def bernoulli(key):
        return jnp.where(jax.random.bernoulli(key, 0.9, SHAPE), x / 0.9, 0)

    shipped = jax.jit(lambda key: models.dropout(key, x, 0.1))
    return {
        "dropout: bernoulli, threefry": lambda: bernoulli(key),
        "dropout: bernoulli, rbg": lambda: bernoulli(rbg),
        "dropout: 16-bit, threefry (shipped)": lambda: shipped(key),
        "dropout: 16-bit, rbg": lambda: shipped(rbg),
    }


def ce_variants() -> dict[str, Callable[[], jax.Array]]:
    """Loss and both gradients of one batch, by the scores that a chunk holds."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_BLD = jax.random.normal(keys[0], (1, POSITIONS, WIDTH))
    table_VD = 0.02 * jax.random.normal(keys[1], (ITEMS + 1, WIDTH))
    target_BL = jax.random.randint(keys[2], (1, POSITIONS), 1, ITEMS + 1)
    weight_BL = jnp.ones((1, POSITIONS))
    candidates = losses.Catalogue(jnp.arange(ITEMS + 1) > 0)

    def variant(log2_scores: int) -> Callable[[], jax.Array]:
        def loss(hidden_BLD, table_VD):
            return losses.ce(hidden_BLD, table_VD, target_BL, weight_BL, candidates)[0]

        losses._CHUNK_SCORES = 2**log2_scores  # read while tracing
        step = jax.jit(jax.grad(loss, (0, 1)))
        jax.block_until_ready(step(hidden_BLD, table_VD))
        return lambda: step(hidden_BLD, table_VD)

    shipped = losses._CHUNK_SCORES
    variants = {
        f"ce: 2^{n} scores a chunk{' (shipped)' if 2**n == shipped else ''}": variant(n)
        for n in (18, 20, 21, 22, 23, 26)
    }
    losses._CHUNK_SCORES = shipped
    return variants


def interleaved(variants: dict[str, Callable[[], jax.Array]]) -> list[dict]:
    """Milliseconds of each variant: median and range over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(ROUNDS + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if round_ > 0:  # the first compiles
                times[name].append(1e3 * (time.perf_counter() - began))
    return [
        {
            "system": name,
            "ms": round(statistics.median(ms), 2),
            "spread": [round(min(ms), 2), round(max(ms), 2)],
        }
        for name, ms in times.items()
    ]


def main() -> None:
    rows = interleaved(dropout_variants()) + interleaved(ce_variants())
    for row in rows:
        low, high = row["spread"]
        print(f"{row['system']:<38}{row['ms']:8.1f} ms  ({low:.1f} to {high:.1f})")
    device = jax.devices()[0].platform
    folder = Path(__file__).parent / "results" / "cpu_choices"
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(
        folder / f"{device}-{record.date()}.json",
        {
            "question": "which dropout draws, and how many scores a chunk of ce",
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
