"""Options of a callable, from its signature: names, types, defaults and readings.

A parameter is an option when it is keyword-only or has a default that is a plain value:
none, a boolean, a number, a string, or a tuple or dict of these. A positional parameter
without a default is not: whoever calls the function passes it.

Types are annotations made of int, float, str, bool, tuple, dict, None, Literal and
unions of them; any other annotation allows any value.
"""

import ast
import contextlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

REQUIRED: Any = inspect.Parameter.empty


class Option(NamedTuple):
    """The type of a parameter and its default, which is REQUIRED where it has none."""

    hint: Any
    default: Any


def options(function: Callable) -> dict[str, Option]:
    """The options of a function, class, dataclass or Linen module, in order.

    >>> def loss(hidden, target, *, num_negatives: int, beta: float = 1.0): ...
    >>> list(options(loss))
    ['num_negatives', 'beta']
    """
    return {
        name: Option(_hint(parameter, function), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if _is_option(parameter)
    }


def plain(value: Any) -> Any:
    """A deep copy of a plain value in which every list is a tuple.

    Raises:
      TypeError: it is not plain; the message is a noun phrase.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} ({value!r})")


def fit(value: Any, hint: Any) -> Any:
    """A plain value as the type `hint`.

    >>> fit(64, float), fit((1, 2), tuple[int, ...])
    (64.0, (1, 2))

    Raises:
      TypeError: it is of another type. An int is a float; a bool is not an int.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for member in arguments:
            with contextlib.suppress(TypeError):
                return fit(value, member)
        fits = False
    elif origin is typing.Literal:
        fits = any(value == one and type(value) is type(one) for one in arguments)
    elif origin is tuple:
        return _fit_tuple(value, arguments)
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif hint in (None, types.NoneType):
        fits = value is None
    elif (origin or hint) in (bool, str, tuple, dict):
        fits = isinstance(value, origin or hint)
    else:
        fits = True
    if not fits:
        raise TypeError(f"{value!r} is not {describe(hint)}")
    return value


def parse(text: str, hint: Any) -> Any:
    """The value of type `hint` that a text stands for.

    >>> parse("none", int | None), parse("3e-4", float), parse("(1,2)", tuple[int, int])
    (None, 0.0003, (1, 2))

    Raises:
      TypeError: it stands for none of that type.
    """
    readings = []
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        readings.append(words[text.lower()])
    else:
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            literal = plain(ast.literal_eval(text.strip()))
            # A quoted text keeps its quotes: to remove them is the shell's business.
            if not isinstance(literal, str):
                readings.append(literal)
    # Text comes last: where the type allows both, "3" is a number and "none" is None.
    # A tuple of strings can be written without quotes and parentheses.
    for reading in (*readings, text, tuple(text.split(","))):
        with contextlib.suppress(TypeError):
            return fit(reading, hint)
    raise TypeError(f"{text!r} is not {describe(hint)}")


def describe(hint: Any) -> str:
    """The type in words.

    >>> describe(int | None)
    'int or none'
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, arguments))
    if hint in (None, types.NoneType):
        return "none"
    return hint.__name__ if type(hint) is type else str(hint).removeprefix("typing.")


def _is_option(parameter: inspect.Parameter) -> bool:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return False
    if parameter.default is REQUIRED:
        return parameter.kind == parameter.KEYWORD_ONLY
    try:
        plain(parameter.default)
    except TypeError:  # such as an initialiser
        return False
    return True


def _hint(parameter: inspect.Parameter, function: Callable) -> Any:
    """The annotation, or else the type of the default, or else Any."""
    hint, default = parameter.annotation, parameter.default
    if isinstance(hint, str):  # from __future__ import annotations
        try:
            hint = eval(hint, vars(sys.modules[function.__module__]))
        except Exception:  # a name that only a type checker sees
            hint = Any
    if hint is inspect.Parameter.empty:
        is_untyped = default is REQUIRED or default is None
        return Any if is_untyped else type(default)
    return hint | None if default is None and hint is not Any else hint


def _fit_tuple(value: Any, hints: tuple) -> tuple:
    if not isinstance(value, tuple):
        raise TypeError(f"{value!r} is not a tuple")
    if hints[-1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise TypeError(f"{value!r} has not {len(hints)} entries")
    return tuple(fit(item, hint) for item, hint in zip(value, hints, strict=True))
