"""The command line that train, evaluate and recommend share.

    python -m jaxrec.train --config FILE [own flags] [--config.section.option=value]

A command ends with `sys.exit(run_command(main))`, where main takes the arguments.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from jaxrec import config
from jaxrec.errors import InputError


def command_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for a command's own flags, to which the command adds them.

    Its help explains the changes to a config, its errors are InputErrors, and a flag
    cannot be abbreviated.
    """
    return _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "any option of the config can be changed:\n"
            "  --config.train.max_epochs=1 --config.optim.learning_rate=3e-4\n"
            "  --config.model.name=gru4rec   keeps the options that both models have\n"
            "  --config.eval.filter_seen     true; --noconfig.eval.filter_seen: false\n"
            "values: 3, 1e-3, text, true, false, none, '(1, 2)'\n"
            f"sections: {', '.join(config.SECTIONS)}\n"
            "an option that does not exist is answered with those that do"
        ),
    )


def parse_command(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """A command line as the command's own flags and the changes to its config.

    >>> parser = command_parser("train", "Trains.")
    >>> _ = parser.add_argument("--config")
    >>> parse_command(parser, ["--config", "x.py", "--config.train.seed", "1"])
    (Namespace(config='x.py'), ['--config.train.seed=1'])

    Args:
      parser: from `command_parser`, with the command's flags.
      argv: the arguments, without the program's name.

    Returns:
      (flags, options for `config.override`).

    Raises:
      InputError: an unknown flag, or a wrong use of one.
    """
    own, options = [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith(("--config.", "--noconfig.")):
            own.append(word)
            continue
        takes_value = word.startswith("--config.") and "=" not in word
        if takes_value and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        options.append(word)
    flags, unknown = parser.parse_known_args(own)
    if unknown:
        known = re.findall(r"--\w[\w-]*", parser.format_usage())
        word = unknown[0].partition("=")[0]
        near = config.suggestion(
            word, [*known, "--config.section.option"], what="flags"
        )
        raise InputError(f"{parser.prog} has no flag {word!r}{near}.")
    return flags, options


def run_command(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """The exit status of a command: bad input is one line, a bug keeps its traceback.

    Args:
      main: takes the arguments and returns the status; None is 0.
      argv: the arguments; by default the process's.

    Returns:
      main's status, 2 for an InputError, 1 for training that diverged, 130 for
      Ctrl-C, 143 for SIGTERM, or 141 when whoever read our output has gone.
    """
    try:
        with _terminable():
            status = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status or 0
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (
        FloatingPointError
    ) as error:  # training diverged; the message says what to do
        print("error:", error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130
    except BrokenPipeError:
        # The interpreter flushes once more as it exits, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as one that is cleaned up after."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM an exception, so that nothing half-written stays behind.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def handle(number, frame):
        del number, frame
        raise _Terminated("by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help.")
