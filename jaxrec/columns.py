"""Columns of a table: found by name, checked for gaps, and turned into numbers.

Our names are `user`, `item`, `timestamp`, `rating`; a caller's table has its own.
Messages name the caller's, and the row or line where it went wrong.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxrec.errors import InputError

# What pandas says of its own types are unions that no type checker can follow.
DataFrame = Any
Series = Any
INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def pandas() -> Any:
    """Pandas, imported when it is first used: that takes a third of a second."""
    import pandas

    return pandas


def nearest_first(wanted: str, choices: Iterable[str]) -> list[str]:
    """The choices, most alike first.

    >>> nearest_first("user", ["movieId", "userId"])
    ['userId', 'movieId']
    """

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, wanted.lower(), choice.lower()).ratio()

    return sorted(choices, key=likeness, reverse=True)


def wanted(*, user: str, item: str, time: str, rating: str) -> dict[str, str]:
    """Our name -> the caller's; "" leaves an optional column out."""
    optional = {"timestamp": time, "rating": rating}
    present = {ours: column for ours, column in optional.items() if column}
    return {"user": user, "item": item, **present}


def require(names: dict[str, str], present: Iterable[object], where: str) -> None:
    """Raises InputError unless each wanted column is there once."""
    present = [str(column) for column in present]
    for ours, column in names.items():
        if present.count(column) != 1:
            argument = "time" if ours == "timestamp" else ours
            hint = " (time= where rows are in time order)" if argument == "time" else ""
            raise InputError(
                f"{where}: expected one column {column!r}, got {present.count(column)} "
                f"of that name; the columns, nearest first: "
                f"{', '.join(nearest_first(column, present))}. "
                f"Say {argument}=NAME with one of them{hint}."
            )


def checked(
    frame: DataFrame, names: dict[str, str], place: Callable[[int], str]
) -> DataFrame:
    """The frame with times and ratings in numbers or datetimes, nothing missing.

    Args:
      frame: columns of our names.
      names: our name -> the caller's, for messages.
      place: says where the k-th row is, for messages.

    Raises:
      InputError: an id, a time or a rating is missing, or is no time or number.
    """
    pd = pandas()
    convert = {"timestamp": _times, "rating": _numbers}
    result = {}
    for ours, column in names.items():
        values = frame[ours]
        is_missing = values.isna().to_numpy()
        if not pd.api.types.is_numeric_dtype(values):
            is_missing = is_missing | (values == "").fillna(False).to_numpy(bool)
        _refuse(is_missing, f"column {column!r} has no value", place)
        if ours in convert:
            values = convert[ours](values, column, place)
        result[ours] = values
    return pd.DataFrame(result, copy=False)


def integers_or_text(column: Series) -> Series:
    """As integers where every string is the one way to write its number."""
    pd = pandas()
    number_of_row, uniques = pd.factorize(column)
    if (number_of_row < 0).any() or not all(map(INTEGER.fullmatch, uniques)):
        return column
    numbers = _integer_array([int(text) for text in uniques])
    if numbers is None:
        return column
    return pd.Series(numbers[number_of_row], column.index)


def codes(column: Series) -> tuple[np.ndarray, Any]:
    """Each row's id as 0..n-1, int64 [I], and the n ids, in the order of appearance."""
    pd = pandas()
    code_I, ids = pd.factorize(column)
    if (code_I < 0).any():
        raise InputError(
            f"column {column.name!r} has missing ids. Pass the frame through "
            "readers.as_frame(), which names the row."
        )
    return code_I, ids


def sorted_codes(column: Series) -> tuple[np.ndarray, np.ndarray]:
    """Each row's id as 0..n-1, int32 [I], and the n ids, ascending.

    Raises:
      InputError: ids that are neither all integers nor all strings.
    """
    code_I, ids = codes(column)
    ids = _id_array(np.asarray(ids), column.name)
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    return rank[code_I], ids[order]


def _id_array(ids: np.ndarray, name) -> np.ndarray:
    """The ids as int64, uint64 or fixed-width strings, which need no pickle to save."""
    pd = pandas()
    kind = pd.api.types.infer_dtype(ids, skipna=False)
    if kind == "string":
        return ids.astype(str)
    numbers = _integer_array(ids.tolist()) if kind == "integer" else None
    if numbers is None:
        raise InputError(
            f"ids must be all strings or all integers of 64 bits: column {name!r} "
            f"holds ids of kind {kind}. Convert them, for example with astype(str)."
        )
    return numbers


def _integer_array(numbers: list[int]) -> np.ndarray | None:
    """The numbers as int64, else as uint64, else None."""
    for dtype in (np.int64, np.uint64):
        try:
            return np.array(numbers, dtype)
        except OverflowError:
            pass
    return None


def _times(values: Series, column: str, place) -> Series:
    """Numbers as given; datetimes and ISO 8601 strings as datetimes in UTC."""
    pd = pandas()
    if not pd.api.types.is_datetime64_any_dtype(values):
        if _is_numeric(values):
            return _numbers(values, column, place)
        text = values.astype(str)
        values = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        is_bad = values.isna().to_numpy()
        if is_bad.any():
            is_number = pd.to_numeric(text, errors="coerce").notna().to_numpy()
            is_meant_as_numbers = is_number.sum() > (~is_bad).sum()
            is_bad = ~is_number if is_meant_as_numbers else is_bad
            problem = f"column {column!r} has no number or ISO 8601 time"
            _refuse(is_bad, problem, place, text)
    return pd.to_datetime(values, utc=True).dt.tz_localize(None)


def _is_numeric(values: Series) -> bool:
    pd = pandas()
    try:
        pd.to_numeric(values)
    except (TypeError, ValueError):
        return False
    return not pd.api.types.is_bool_dtype(values)


def _numbers(values: Series, column: str, place) -> Series:
    """int64 or finite float64."""
    pd = pandas()
    numbers = pd.to_numeric(values, errors="coerce")
    if pd.api.types.is_integer_dtype(numbers):
        if numbers.max() <= np.iinfo(np.int64).max:
            return numbers.astype(np.int64)
    numbers = numbers.astype(np.float64)
    is_bad = ~np.isfinite(numbers.to_numpy())
    _refuse(is_bad, f"column {column!r} has no finite number", place, values)
    return numbers


def _refuse(is_bad_I: np.ndarray, problem: str, place, values=None) -> None:
    if is_bad_I.any():
        first = int(is_bad_I.argmax())
        got = "" if values is None else f" but {str(values.iloc[first])[:40]!r}"
        raise InputError(
            f"{place(first)}: {problem}{got} ({is_bad_I.sum()} such rows in all). "
            "Correct or remove them."
        )
