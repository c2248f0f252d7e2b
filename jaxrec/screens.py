"""Where a console is read: in a terminal, in a notebook or in a log file."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Screen(Protocol):
    """Where a console is read."""

    def show(self, line: str) -> None:
        """The state of something that goes on: the next one takes its place."""

    def keep(self, line: str, *, is_best: bool) -> None:
        """A line that stays, in place of the last state."""

    def close(self) -> None:
        """No more lines."""


def screen(log: Callable[[str], None]) -> Screen:
    """The place that `log` writes to: only `print` can be a terminal or a notebook."""
    if log is print and in_notebook():
        return Notebook()
    if log is print and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal()
    return LogFile(log)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs us; IPython in a terminal has none."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Terminal:
    """Plain lines, and the state in a line of its own, which is overwritten."""

    def show(self, line: str) -> None:
        sys.stdout.write(f"\r\x1b[K{line}")
        sys.stdout.flush()

    def keep(self, line: str, *, is_best: bool) -> None:
        del is_best  # every line is kept
        sys.stdout.write("\r\x1b[K")
        print(line)

    def close(self) -> None:
        sys.stdout.write("\r\x1b[K")


class LogFile:
    """Plain lines; of a state only what was not said for a while.

    Args:
      log: takes the lines.
      every_s: seconds between states: a short epoch is one line, in an hour's one sees
        that it goes on.
    """

    def __init__(self, log: Callable[[str], None], *, every_s: float = 60.0):
        self._log, self._every_s, self._said_at = log, every_s, time.monotonic()

    def show(self, line: str) -> None:
        if time.monotonic() - self._said_at >= self._every_s:
            self.keep(line, is_best=False)

    def keep(self, line: str, *, is_best: bool) -> None:
        del is_best  # every line is kept
        self._said_at = time.monotonic()
        self._log(line)
        sys.stdout.flush()  # a file is read while it is written

    def close(self) -> None:
        pass


class Notebook:
    """One output that changes: the best line, the last one and the state.

    A hundred epochs would otherwise be a hundred lines between two cells; they are all
    in metrics.jsonl.

    Args:
      every_s: seconds between states at the least: each is a message to the browser.
    """

    def __init__(self, *, every_s: float = 0.5):
        self._best = self._last = self._state = ""
        self._every_s, self._said_at = every_s, -every_s
        self._output: Any = None

    def show(self, line: str) -> None:
        self._state = line
        if time.monotonic() - self._said_at >= self._every_s:
            self._update()

    def keep(self, line: str, *, is_best: bool) -> None:
        self._best = line if is_best else self._best
        self._last, self._state = line, ""
        self._update()

    def close(self) -> None:
        if self._state:
            self._state = ""
            self._update()

    def _update(self) -> None:
        self._said_at = time.monotonic()
        lines = dict.fromkeys((self._best, self._last, self._state))
        text = {"text/plain": "\n".join(line for line in lines if line)}
        if self._output is None:
            from IPython.display import (  # pyright: ignore[reportMissingImports]
                display,
            )

            self._output = display(text, raw=True, display_id=True)
        else:
            self._output.update(text, raw=True)
