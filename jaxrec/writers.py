"""Where the numbers of a run go: one protocol; a console, JSON lines, TensorBoard."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jaxrec.errors import InputError


class Writer(Protocol):
    """Takes the numbers of a run."""

    def tick(self, share: float, tokens_per_s: float) -> None:
        """A share of the epoch, in (0, 1], is done."""

    def write(self, step: int, values: dict) -> None:
        """The epoch is over; these are its numbers."""

    def close(self) -> None:
        """Makes safe what was written."""


class Console:
    """A line an epoch for a person, and on a terminal the state of the present one.

    Args:
      monitor: the metric shown first, marked where it is the best so far.
      max_epochs: for the time left, which early stopping can only shorten.
      epoch: epochs done before.
      log: takes the lines.
    """

    def __init__(
        self, monitor: str, max_epochs: int, epoch: int, log: Callable[[str], None]
    ):
        self._monitor, self._max_epochs, self._log = monitor, max_epochs, log
        self._epoch, self._is_live = epoch, log is print and sys.stdout.isatty()

    def tick(self, share: float, tokens_per_s: float) -> None:
        if self._is_live:
            text = (
                f"epoch {self._epoch + 1:>3}  {share:4.0%}  {tokens_per_s:,.0f} tok/s"
            )
            sys.stdout.write(f"\r\x1b[K{text}")
            sys.stdout.flush()

    def write(self, step: int, values: dict) -> None:
        del step
        if self._is_live:
            sys.stdout.write("\r\x1b[K")
        self._epoch = values["epoch"]
        spent_s = values["train_s"] + values["valid_s"]
        left_s = (self._max_epochs - self._epoch) * spent_s
        shown = [self._monitor] + [name for name in ("hr@10",) if name != self._monitor]
        quality = "  ".join(
            f"{name} {values[f'valid/{name}']:.4f}"
            + ("*" if name == self._monitor and values["is_best"] else " ")
            for name in shown
            if f"valid/{name}" in values
        )
        self._log(
            f"epoch {self._epoch:>3}/{self._max_epochs}  loss {values['loss']:.4f}  "
            f"valid {quality} {values['tokens_per_s']:>9,.0f} tok/s  "
            f"{spent_s:6.1f} s  at most {duration(left_s)} left"
        )

    def close(self) -> None:
        if self._is_live:
            sys.stdout.write("\r\x1b[K")


def duration(seconds: float) -> str:
    """Seconds for a person, in two figures or so.

    >>> duration(42.3), duration(61), duration(4000)
    ('42 s', '1 min 01 s', '1 h 06 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class JsonLines:
    """One JSON object a line, each flushed: what was written survives a crash.

    Args:
      path: created if absent.
      keep: lines whose "epoch" is at most this stay; those after it are of work that a
        resumed run does again.
    """

    def __init__(self, path: str | Path, *, keep: int = 0):
        path = Path(path)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _epoch(line) <= keep]
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(f"{line}\n" for line in kept))
        part.replace(path)
        self._file = path.open("a")

    def tick(self, share: float, tokens_per_s: float) -> None:
        del share, tokens_per_s  # a line an epoch

    def write(self, step: int, values: dict) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _epoch(line: str) -> float:
    """The epoch of a line; a half-written last line belongs to none that is kept."""
    try:
        return json.loads(line)["epoch"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


class TensorBoard:
    """The scalars of each epoch as TensorBoard events: jaxrec[tensorboard]."""

    def __init__(self, folder: str | Path):
        try:
            import tensorboardX
        except ImportError as error:
            raise InputError(
                "train.tensorboard needs tensorboardX, which is not installed: "
                "pip install 'jaxrec[tensorboard]'."
            ) from error
        self._writer = tensorboardX.SummaryWriter(str(folder))

    def tick(self, share: float, tokens_per_s: float) -> None:
        del share, tokens_per_s  # a point an epoch

    def write(self, step: int, values: dict) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
