"""What the GPU suite is made of: parts, and the tasks of a part."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import measure

Row = dict[str, Any]


class Flags(NamedTuple):
    """What the command line says to every part.

    output: the folder of all records; the suite's are in its gpu/.
    seeds: of the runs that are trained to their end.
    paper_repo: a checkout of the paper's code, or None.
    torch_python: an interpreter that has PyTorch.
    commit: of this tree, None if nobody knows.
    is_tiny: toy sizes, to see that everything runs.
    again: whether what is recorded is measured again.
    """

    output: Path
    seeds: tuple[int, ...]
    paper_repo: Path | None
    torch_python: str
    commit: str | None
    is_tiny: bool = False
    again: bool = False

    @property
    def folder(self) -> Path:
        return self.output / "gpu"


class Task(NamedTuple):
    """A piece of a part, which is done whole or not at all.

    rows: measures. A row with a key "failed" says what is wrong, and is not done; one
      with "not_run" says why something that may be missing is, and is fine; one of
      "note" alone is a note of the record.
    """

    name: str
    rows: Callable[[], Iterable[Row]]


class Part(NamedTuple):
    """Tasks that share a process and a record.

    minutes: that it is guessed to take on one H200.
    notes: what a reader of its rows needs.
    """

    question: str
    tasks: Callable[[Flags], Iterable[Task]]
    minutes: float
    notes: tuple[str, ...] = ()


def told(error: BaseException) -> str:
    """An exception in a line.

    >>> told(ValueError("a\\nb")), told(KeyError())
    ('ValueError: a', 'KeyError')
    """
    line = str(error).strip().partition("\n")[0][:300]
    return ": ".join(filter(None, (type(error).__name__, line)))


def peak_mb() -> float | None:
    """The most MiB of the device that this process has held; None where untold."""
    statistics = jax.devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return None if peak is None else measure.shown(peak / measure.MIB)
