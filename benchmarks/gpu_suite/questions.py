"""The questions that a CPU is asked too, at a GPU's sizes: parts of other scripts."""

import functools
from collections.abc import Iterator
from functools import partial
from unittest import mock

from benchmarks import (
    measure,
    memory,
    negatives,
    profile_step,
    ranking_speed,
    roofline,
    sizes,
)
from benchmarks.gpu_suite.part import Flags, Row, Task
from benchmarks.shapes import METHODS, NAMED, SHAPES, TINY

SMALL = ("tiny",)


def sizes_tasks(axis: str, flags: Flags) -> Iterator[Task]:
    """A step against one of its sizes."""
    if flags.is_tiny:
        yield Task(axis, partial(small_sizes_rows, axis))
    else:
        yield Task(axis, partial(sizes.measured, axis, sizes.SCALES["gpu"], 60))


def small_sizes_rows(axis: str) -> list[Row]:
    """The axis on a shape that is compiled at once; the axes name their own shapes."""
    with mock.patch.dict(SHAPES, {"beauty": TINY}, clear=True):
        return sizes.measured(axis, sizes.SCALES["tiny"], 1)


def ranking_tasks(flags: Flags) -> Iterator[Task]:
    """Ranks and the ten best against the size of the catalogue."""
    scale = ranking_speed.SCALES["tiny" if flags.is_tiny else "gpu"]
    for num_items in scale.num_items:
        one = scale._replace(num_items=(num_items,))
        yield Task(f"{num_items:,} items", partial(ranking_rows, one))


def ranking_rows(scale: ranking_speed.Scale) -> list[Row]:
    rows = measure.in_turn(list(ranking_speed.variants(scale)), seconds=30)
    for row in rows:
        row["users_per_s"] = round(1e3 * row["users"] / row["ms"])
    return rows


def memory_tasks(flags: Flags) -> Iterator[Task]:
    """A step with the scores stored, and as it is shipped."""
    batch_size = 2 if flags.is_tiny else 128
    for name in SMALL if flags.is_tiny else SHAPES:
        for method in ("sasrec_ce",) if flags.is_tiny else ("sasrec_ce", "bert4rec"):
            rows = partial(
                memory.compare,
                *(NAMED[name], method),
                batch_size=batch_size,
                seconds=25,
            )
            yield Task(f"{name}, {method}", rows)


def negatives_tasks(flags: Flags) -> Iterator[Task]:
    """Negatives of each sequence's own, by their number."""
    batch_size = 2 if flags.is_tiny else 128
    for name in SMALL if flags.is_tiny else SHAPES:
        for number in negatives.NUM_NEGATIVES[name]:
            rows = partial(negatives_rows, name, number, batch_size)
            yield Task(f"{name}, {number:,} negatives", rows)


def negatives_rows(name: str, number: int, batch_size: int) -> list[Row]:
    arguments = negatives.make_arguments(NAMED[name], batch_size)
    times = 1 if measure.on_cpu() else 20
    return negatives.compare(NAMED[name], number, arguments, times, 20)


@functools.cache
def rates(is_tiny: bool) -> roofline.Rates:
    """Of this device; measured once by a process."""
    if is_tiny:
        return roofline.measured(matmul=64, floats=2**12)
    return roofline.measured()


def profile_tasks(dataset: str, flags: Flags) -> Iterator[Task]:
    """The parts of a step of each method against the rates of the device."""
    dataset = "tiny" if flags.is_tiny else dataset
    for method in ("sasrec_ce",) if flags.is_tiny else METHODS:
        yield Task(method, partial(profile_rows, dataset, method, flags.is_tiny))


def profile_rows(dataset: str, method: str, is_tiny: bool) -> list[Row]:
    num_steps, users = (1, 2) if is_tiny else (16, 16 * 128)
    rows = profile_step.profile(
        dataset, method, rates(is_tiny), num_steps=num_steps, users=users
    )
    told = f"Rates of the device: {roofline.told(rates(is_tiny))}."
    return [*rows, {"note": told}, {"note": profile_step.gap(rows)}]
