"""Axes of a chart: where a value lies, and which values are written beside it."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Axis(NamedTuple):
    """A scale from low to high.

    low, high: the ends; positive where is_log.
    ticks: values that are written, increasing, within the ends.
    is_log: equal ratios are equal distances.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies if low is at start and high at end.

        >>> Axis(0, 10, ()).place(5, 100, 200)
        150.0
        >>> round(Axis(1, 100, (), is_log=True).place(10, 0, 1), 9)
        0.5
        """
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return start + (value - low) / (high - low) * (end - start)


def linear(
    low: float, high: float, *, num_steps: int = 5, is_count: bool = False
) -> Axis:
    """An axis over low..high, its ends and ticks round numbers.

    >>> linear(0.013, 0.19).ticks, linear(0, 3, is_count=True).ticks
    ((0.0, 0.05, 0.1, 0.15, 0.2), (0.0, 1.0, 2.0, 3.0))

    Args:
      low, high: the least and the greatest value, low <= high.
      num_steps: between ticks, about.
      is_count: ticks are whole numbers.
    """
    if low == high:  # one value: an axis around it, or from 0 to 1
        low, high = low - abs(low) / 2, high + (abs(high) / 2 or 1)
    step = (high - low) / num_steps
    step = _round_up(max(1, step), (1, 2, 5, 10)) if is_count else _round_up(step)
    # A share of a step is rounding: 0.3 / 0.1 must not need a tick at 0.4.
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{n * step:.10g}") for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log(low: float, high: float) -> Axis:
    """A logarithmic axis over low..high, its ticks powers of ten.

    Where that is few, 2 and 5 times these too.

    >>> log(3, 2000).ticks, log(3, 70).ticks
    ((10, 100, 1000), (5, 10, 20, 50))

    Args:
      low, high: the least and the greatest value, 0 < low <= high.
    """
    if low == high:
        low, high = low / 2, high * 2
    factors = (1, 2, 5) if high / low <= 400 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = (factor * 10**decade for decade in decades for factor in factors)
    return Axis(low, high, tuple(x for x in every if low <= x <= high), is_log=True)


def text(value: float) -> str:
    """A tick's number, short.

    >>> [text(x) for x in (0.05, 3.0, 2500, 20000, 1500000)]
    ['0.05', '3', '2,500', '20k', '1.5M']
    """
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):,.10g}{unit}"
    return f"{value:,.10g}"


def _round_up(step: float, digits: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """The least of the digits times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(x for x in digits if x * power >= step * (1 - 1e-9))
