"""Timing in turn, compiled memory, and records: what the benchmarks share."""

import functools
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrec import backend, record

RESULTS = Path(__file__).parent / "results"
MIB = 2**20


class Variant(NamedTuple):
    """One of the things that are compared.

    row: what its row of the record says beside the measurement.
    call: does the work once and returns arrays, which are waited for.
    units: what is counted, such as steps, in one call.
    """

    row: dict[str, Any]
    call: Callable[[], Any]
    units: int = 1


def times_in_turn(
    variants: Sequence[Variant],
    *,
    rounds: int = 5,
    seconds: float = 60,
    untimed_calls: int = 0,
) -> list[list[float]]:
    """Milliseconds of a unit of each variant, in each round.

    A round calls every variant once, so that a machine whose speed drifts treats all
    alike; the first warms up.

    Args:
      rounds: that count.
      seconds: after which no round begins but the first that counts.
      untimed_calls: before each timed one, where a variant leaves gigabytes behind it
        that the system is still freeing while the next one runs.
    """
    began = time.perf_counter()
    times_ms: list[list[float]] = [[] for _ in variants]
    for round_ in range(rounds + 1):
        if round_ > 1 and time.perf_counter() - began > seconds:
            break
        for variant, of_one in zip(variants, times_ms, strict=True):
            for _ in range(untimed_calls):
                jax.block_until_ready(variant.call())
            start = time.perf_counter()
            jax.block_until_ready(variant.call())
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            if round_ > 0:
                of_one.append(elapsed_ms / variant.units)
    return times_ms


def timed(variant: Variant, ms: Sequence[float]) -> dict[str, Any]:
    """The variant's row, with `ms`, the median of the rounds, and `spread`."""
    return {**variant.row, "ms": shown(statistics.median(ms)), "spread": ends(ms)}


def in_turn(variants: Sequence[Variant], **options: Any) -> list[dict[str, Any]]:
    """The rows of `times_in_turn`, which has the options."""
    return list(map(timed, variants, times_in_turn(variants, **options)))


def shown(x: float) -> float:
    """Four significant digits: no timing has more.

    >>> shown(1234.56), shown(0.0123456)
    (1235.0, 0.01235)
    """
    return float(f"{x:.4g}")


def ends(values: Sequence[float]) -> list[float]:
    """The range of the values, as a row's `spread`."""
    return [shown(min(values)), shown(max(values))]


def compiled(fn: Callable, *arguments: Any, **options: Any) -> jax.stages.Compiled:
    """The program of fn for arguments of these shapes; options are jax.jit's."""
    return jax.jit(fn, **options).lower(*arguments).compile()


def repeated(program: Callable, arguments: tuple, times: int) -> Callable[[], Any]:
    """A call of the program `times` over; only the last result is waited for."""

    def call() -> Any:
        for _ in range(times - 1):
            program(*arguments)
        return program(*arguments)

    return call


def tell(rows: Iterable[dict[str, Any]]) -> None:
    """Prints rows as lines, for whoever waits."""
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def temp_mb(program: jax.stages.Compiled) -> float:
    """MiB that the program allocates beside its arguments and results."""
    memory = program.memory_analysis()
    assert memory is not None, "this backend does not tell"
    return shown(memory.temp_size_in_bytes / MIB)


def program_mb(program: jax.stages.Compiled) -> float:
    """MiB of a program's arguments, results and temporaries; what it updates, once."""
    memory = program.memory_analysis()
    assert memory is not None, "this backend does not tell"
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return shown(held / MIB)


def read(path: Path) -> dict[str, Any]:
    """A record that `save` wrote."""
    return record.read_json(path)


def on_cpu() -> bool:
    return backend.is_cpu()


def file_name(device: str) -> str:
    """A device, as `record.device` tells it, in the name of a file.

    >>> file_name("cpu: Intel(R) Xeon(R), 2 cores"), file_name("1 x NVIDIA H100 80GB")
    ('cpu-intel-xeon-2-cores', 'nvidia-h100-80gb')
    """
    kind = re.sub(r"^\d+ x |\((R|TM)\)", "", device)
    if not device.startswith("cpu"):
        kind = kind.partition(":")[0]  # what follows is no part of its name
    return re.sub("[^a-z0-9]+", "-", kind.lower()).strip("-")


@functools.cache
def commit() -> str | None:
    """Of the tree, when first asked for: a record in place of another changes it."""
    return record.commit()


def save(
    name: str,
    question: str,
    rows: Sequence[dict[str, Any]],
    *,
    subject: str = "",
    notes: Iterable[str] = (),
    output: Path = RESULTS,
    device: str | None = None,
) -> Path:
    """Writes output/<name>/<device>-<date>[-<subject>].json.

    Args:
      device: that the rows are of, if it is not this one.
    """
    device = device or record.device()
    stem = "-".join(filter(None, (file_name(device), record.date(), subject)))
    path = output / name / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "question": question,
        "command": record.command(),
        "commit": commit(),
        "date": record.date(),
        "device": device,
        "versions": record.versions(),
        "rows": list(rows),
    }
    if notes:
        found["notes"] = list(notes)
    record.write_json(path, found)
    print(path, flush=True)
    return path
