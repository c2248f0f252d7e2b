"""Where a run's numbers go, by one protocol: console, JSON lines, TensorBoard, W&B."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxrec import screens
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
    """A line an epoch for a person, and the state of the present one.

    Args:
      monitor: the metric shown first, marked where it is the best so far.
      max_epochs: for the time left, which early stopping can only shorten.
      epoch: epochs done before.
      log: takes the lines; `print` goes to the terminal or the notebook we are in.
    """

    def __init__(
        self, monitor: str, max_epochs: int, epoch: int, log: Callable[[str], None]
    ):
        self._monitor, self._max_epochs, self._epoch = monitor, max_epochs, epoch
        self._screen = screens.screen(log)

    def tick(self, share: float, tokens_per_s: float) -> None:
        self._screen.show(
            f"epoch {self._epoch + 1:>3}  {share:4.0%}  {tokens_per_s:,.0f} tok/s"
        )

    def write(self, step: int, values: dict) -> None:
        del step
        self._epoch = values["epoch"]
        spent_s = values["train_s"] + values["valid_s"]
        left_s = (self._max_epochs - self._epoch) * spent_s
        left = f"  at most {duration(left_s)} left" if left_s > 0 else ""
        shown = [self._monitor] + [name for name in ("hr@10",) if name != self._monitor]
        quality = "  ".join(
            f"{name} {values[f'valid/{name}']:.4f}"
            + ("*" if name == self._monitor and values["is_best"] else " ")
            for name in shown
            if f"valid/{name}" in values
        )
        self._screen.keep(
            f"epoch {self._epoch:>3}/{self._max_epochs}  loss {values['loss']:.4f}  "
            f"valid {quality} {values['tokens_per_s']:>9,.0f} tok/s  "
            f"{spent_s:6.1f} s{left}",
            is_best=values["is_best"],
        )

    def close(self) -> None:
        self._screen.close()


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


class WeightsAndBiases:
    """The numbers of each epoch as a run of Weights & Biases: jaxrec[wandb].

    The run has the name of the workdir and its config; a resumed one goes on with the
    same run. Where it goes to is W&B's business: WANDB_MODE=offline, WANDB_PROJECT
    ("jaxrec" if not set), WANDB_ENTITY. The epoch is the axis: those that a resumed run
    does again are given again, and are the same.

    Args:
      folder: W&B's files are in `folder`/wandb.
      config: of the run.

    Raises:
      InputError: wandb is not installed, or no run can be started, as when nobody is
        logged in.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any]):
        try:
            # By name: a folder wandb/ in the present one would pass for a package.
            from wandb import (  # pyright: ignore[reportMissingImports]
                Error,
                Settings,
                init,
            )
        except ImportError as error:
            raise InputError(
                "train.wandb needs wandb, which is not installed: pip install "
                "'jaxrec[wandb]'."
            ) from error
        folder = Path(folder)
        try:
            self._run = init(
                project=os.environ.get("WANDB_PROJECT", "jaxrec"),
                name=folder.name,
                dir=str(folder),
                id=_own_id(folder / "wandb" / "run-id"),
                resume="allow",
                config=dict(config),
                # It would take over stdout, where the console overwrites its line.
                settings=Settings(console="off"),
            )
        except Error as error:
            raise InputError(
                "train.wandb cannot start a run of Weights & Biases: "
                f"{str(error).rstrip('.')}. Log in by wandb login, or set "
                "WANDB_MODE=offline."
            ) from error
        self._run.define_metric("*", step_metric="epoch")

    def tick(self, share: float, tokens_per_s: float) -> None:
        del share, tokens_per_s  # a point an epoch

    def write(self, step: int, values: dict) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))


def _own_id(path: Path) -> str:
    """The W&B id of the run in a folder; a new one, kept there, if it has none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8))
    return path.read_text()
