"""What a device does a second, measured, and how long some work takes at least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Variant


class Rates(NamedTuple):
    """A second's worth: matmul operations, exponentials and bytes; of float32.

    is_shared: one unit does all three, as in a CPU.
    """

    flops: float
    exps: float
    bytes: float
    is_shared: bool


class Work(NamedTuple):
    """What has to be done."""

    flops: float = 0.0
    exps: float = 0.0
    bytes: float = 0.0


def floor_ms(work: Work, rates: Rates) -> float:
    """Milliseconds that the work takes at the least.

    >>> rates = Rates(flops=1e9, exps=1e6, bytes=1e9, is_shared=True)
    >>> floor_ms(Work(flops=1e9, exps=1e6), rates)
    2000.0
    >>> floor_ms(Work(flops=1e9, exps=1e6), rates._replace(is_shared=False))
    1000.0
    """
    seconds = [
        work.flops / rates.flops,
        work.exps / rates.exps,
        work.bytes / rates.bytes,
    ]
    return 1e3 * (sum(seconds) if rates.is_shared else max(seconds))


def told(rates: Rates) -> str:
    """The rates for a reader."""
    return (
        f"{rates.flops / 1e9:,.0f} GFLOP/s in float32 matmuls at the default "
        f"precision, {rates.exps / 1e9:.3g} G exponentials/s, "
        f"{rates.bytes / 1e9:,.0f} GB/s read and written"
    )


# Exponentials of each float that is loaded, so that loading does not count.
_EXPS_A_LOAD = 16


def measured(*, matmul: int | None = None, floats: int | None = None) -> Rates:
    """The rates of this device, the best of a few tries.

    Args:
      matmul: rows of a square matrix; by the device if not given.
      floats: of an array that is far larger than the caches.
    """
    on_cpu = measure.on_cpu()
    matmul = matmul or (1536 if on_cpu else 8192)
    floats = floats or (2**26 if on_cpu else 2**29)
    keys = jax.random.split(jax.random.key(0), 3)
    square = jax.random.normal(keys[0], (matmul, matmul))
    long = jax.random.normal(keys[1], (floats,))
    # On a CPU it fits a cache, on a GPU it fills the chip.
    short = jax.random.uniform(keys[2], (min(floats, 2**18 if on_cpu else 2**26),))

    def exps(x):
        return sum(jnp.exp(x + i) for i in range(_EXPS_A_LOAD))

    times = 1 if on_cpu else 10
    variants = [
        Variant(
            {"name": name, "amount": amount},
            measure.repeated(measure.compiled(fn, x), (x,), times),
            times,
        )
        for name, fn, x, amount in (
            ("flops", lambda x: x @ x, square, 2.0 * matmul**3),
            ("exps", exps, short, float(_EXPS_A_LOAD * short.size)),
        )
    ]
    row = {"name": "bytes", "amount": 8.0 * floats}
    variants.append(Variant(row, _InPlace(long, times), times))
    found = {
        row["name"]: row["amount"] / (row["spread"][0] / 1e3)
        for row in measure.in_turn(variants, rounds=7, seconds=20)
    }
    return Rates(**found, is_shared=on_cpu)


class _InPlace:
    """Reads and writes an array where it is: new memory is slow to come by."""

    def __init__(self, x: jax.Array, times: int):
        self.x, self.times = x, times
        self.program = measure.compiled(lambda x: 0.5 * x + 1.0, x, donate_argnums=0)

    def __call__(self) -> jax.Array:
        for _ in range(self.times):
            self.x = self.program(self.x)
        return self.x
