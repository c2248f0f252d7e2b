"""What the commands of the benchmarks take, and how they refuse what they cannot."""

import argparse
import math
import os
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from jaxrec.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help.")


def parser(command: str, about: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.<command>`, whose errors are InputErrors.

    Args:
      about: the module's docstring; its first line is the help's.
      options: of argparse, such as an epilog.
    """
    description = (about or "").partition("\n")[0]
    prog = f"python -m benchmarks.{command}"
    return _Parser(prog, description=description, allow_abbrev=False, **options)


def add_output(parser: argparse.ArgumentParser, default: Path) -> None:
    """--output, a folder, which is looked at before anything is measured."""
    text = "the folder of records (benchmarks/results)"
    parser.add_argument("--output", type=folder, default=default, help=text)


def folder(text: str) -> Path:
    """A folder that one can write to, or can make."""
    path = Path(text)
    try:
        above = (path, *path.absolute().parents)
        there = next(one for one in above if one.exists() or one.is_symlink())
        is_fine = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, ValueError):  # such as a name that is too long
        is_fine = False
    if not (text and is_fine):
        raise _refused(f"{text!r} cannot be written to: choose another folder")
    return path


def file(text: str) -> Path:
    """A file in such a folder."""
    path = Path(text)
    if not text or path.is_dir():
        raise _refused(f"{text!r} is no file that can be written")
    return folder(str(path.parent)) / path.name


def interpreter(text: str) -> str:
    """A Python of another environment, as it is given: its path tells which it is."""
    if shutil.which(text) is None:
        raise _refused(f"{text} is no program that can be run, such as ../x/bin/python")
    return text


def count(text: str) -> int:
    """A whole number from 1.

    >>> count("3")
    3
    """
    if not (text.isdecimal() and int(text) > 0):
        raise _refused(f"must be a whole number from 1: got {text}")
    return int(text)


def amount(text: str) -> float:
    """A positive number, such as of seconds.

    >>> amount("0.5")
    0.5
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise _refused(f"must be a number above 0: got {text}")
    return number


def _refused(message: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(message)


def listed(flag: str, text: str) -> list[str]:
    """What a flag names, with commas between.

    Raises:
      InputError: one twice.
    """
    given = text.split(",")
    if twice := {name for name in given if given.count(name) > 1}:
        raise InputError(f"{flag} names {', '.join(sorted(twice))} twice.")
    return given


def names(flag: str, text: str, known: Collection[str]) -> list[str]:
    """`listed`, of what is known.

    Raises:
      InputError: one is not known, or there twice.

    >>> names("--methods", "b,a", ["a", "b", "c"])
    ['b', 'a']
    """
    given = listed(flag, text)
    if unknown := {*given} - {*known}:
        got = ", ".join(sorted(unknown))
        raise InputError(f"{flag} takes {', '.join(known)}: got {got}.")
    return given


def without(command: str, option: str) -> str:
    """The command less an option, which has a value, that changes no result.

    >>> without("python -m x --runs 'a b' --seeds 1 --runs=c", "--runs")
    'python -m x --seeds 1'
    """
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return shlex.join(kept)
