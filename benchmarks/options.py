"""What the commands of the benchmarks take."""

from collections.abc import Collection

from jaxrec.errors import InputError


def names(flag: str, text: str, known: Collection[str]) -> list[str]:
    """What a flag names, with commas between.

    Raises:
      InputError: one is not known.

    >>> names("--methods", "b,a", ["a", "b", "c"])
    ['b', 'a']
    """
    given = text.split(",")
    if unknown := {*given} - {*known}:
        got = ", ".join(sorted(unknown))
        raise InputError(f"{flag} takes {', '.join(known)}: got {got}.")
    return given
