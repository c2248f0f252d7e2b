"""Which tiles of the softmax are the fastest on this device?

    python -m benchmarks.tiles

`softmax.loss_sum` with both gradients at the shapes of a batch of ML-1M and of Beauty
and of a million items, over tiles of many positions by the whole table, and of some
positions by some of its rows. What is fastest here is what `softmax.tile_shape` should
give on this device; a row says which it gives now.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Variant
from jaxrec import softmax
from jaxrec.command import run_command
from jaxrec.ranking import item_mask

QUESTION = "which tiles of the softmax are the fastest on this device"


class Case(NamedTuple):
    """Sizes of a loss, and the tiles tried: (positions, rows of the table)."""

    name: str
    rows: int
    positions: int
    width: int
    tiles: tuple[tuple[int, int], ...]


def case(name: str, rows: int, positions: int, width: int) -> Case:
    """Tiles of a sixteenth of the positions to all of them, by some rows to all."""
    sizes = sorted({-(-positions // n // 8) * 8 for n in (16, 4, 1)})
    widths = sorted({min(rows, 8_192), min(rows, 65_536), min(rows, 2**18)})
    tiles = tuple((n, v) for n in sizes for v in widths if n * v <= MOST_SCORES)
    return Case(name, rows, positions, width, tiles)


MOST_SCORES = 2**28  # of a tile: 1 GiB
SCALES = {
    "gpu": (
        case("ml-1m", 3_417, 13_488, 64),
        case("beauty", 54_543, 720, 64),
        case("1m items", 1_000_001, 25_600, 128),
    ),
    "cpu": (case("ml-1m", 3_417, 13_488, 64), case("beauty", 54_543, 720, 64)),
    "tiny": (Case("tiny", 300, 40, 8, ((16, 300), (16, 128))),),
}


def variants(one: Case) -> Iterator[Variant]:
    """A program for each tile, the shipped one among them."""
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(keys[0], (one.positions, one.width)),
        0.02 * jax.random.normal(keys[1], (one.rows, one.width)),
        softmax.Positions(
            jax.random.randint(keys[2], (one.positions,), 1, one.rows),
            jnp.ones((one.positions,)),
            jnp.zeros((one.positions,), jnp.int32),
            jnp.int32(one.positions),
        ),
        item_mask(one.rows, one.rows - 1),
        None,
    )
    shipped = softmax.tile_shape(one.rows, one.positions)
    for tile in dict.fromkeys([shipped, *one.tiles]):
        with mock.patch.object(softmax, "tile_shape", lambda *sizes, t=tile: t):
            program = measure.compiled(
                # A function of its own, or the first tile's trace would be found again.
                lambda *arguments: jax.value_and_grad(softmax.loss_sum, (0, 1))(
                    *arguments
                ),
                *arguments,
            )
        row: dict[str, Any] = {
            "loss": one.name,
            "tile_positions": tile[0],
            "tile_rows": tile[1],
            "is_shipped": tile == shipped,
            "temp_mb": measure.temp_mb(program),
        }
        times = 1 if measure.on_cpu() else 3
        yield Variant(row, measure.repeated(program, arguments, times), times)


def run(
    *,
    cases: Sequence[Case] | None = None,
    seconds: float = 60,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record; `cases` are by the device if not given."""
    rows = []
    for one in cases or SCALES["cpu" if measure.on_cpu() else "gpu"]:
        found = measure.in_turn(list(variants(one)), seconds=seconds)
        measure.tell(found)
        rows += found
    return measure.save("tiles", QUESTION, rows, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.tiles")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
