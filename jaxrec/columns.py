"""Columns of a table: found by name, checked for gaps, and turned into numbers.

Our names are `user`, `item`, `timestamp`, `rating`, `event`; a caller's table has its
own. Messages name the caller's, and the row or line where it went wrong.
"""

import collections
import difflib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrec.errors import InputError
from jaxrec.ledger import Ledger, Origin

# What pandas says of its own types are unions that no type checker can follow.
DataFrame = Any
Series = Any
INTEGER = re.compile(r"0|-?[1-9][0-9]*")
# What stands for no value. Any other spelling may be somebody's id: it is remarked on.
MISSING = ("", "nan", "NaN")
_NULLS = {"null", "none", "nil", "na", "n/a", "<na>", "nat", "undefined", "\\n"}

# Ids that are text are stored as wide as the longest: above both, one is too long.
_LONG_ID = 256  # characters
_ID_BYTES = 1 << 30
# Integers below that and twice the rows are numbered by a table of what is there.
_NARROW = 1 << 16


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


class MissingColumn(InputError):
    """A table without a column: `fact` is its message without the advice."""

    def __init__(self, fact: str, advice: str):
        super().__init__(f"{fact} {advice}")
        self.fact = fact


def wanted(
    *, user: str, item: str, time: str, rating: str = "", event: str = ""
) -> dict[str, str]:
    """Our name -> the caller's; "" leaves an optional column out.

    Raises:
      InputError: two of them are one column.
    """
    optional = {"timestamp": time, "rating": rating, "event": event}
    present = {ours: column for ours, column in optional.items() if column}
    names = {"user": user, "item": item, **present}
    for ours, column in names.items():
        if same := [o for o in names if o != ours and names[o] == column]:
            raise InputError(
                f"{ours} and {same[0]} must be two columns: both are {column!r}. Say "
                "data.user=NAME, data.item=NAME and data.time=NAME with three."
            )
    return names


def require(
    names: dict[str, str],
    present: Iterable[object],
    where: str,
    optional: Iterable[str] = (),
) -> dict[str, str]:
    """The wanted columns, less the optional ones that are not there.

    Raises:
      MissingColumn: another one is not there, or one is there twice.
    """
    present = [str(column) for column in present]
    absent = [ours for ours in optional if names.get(ours) not in present]
    names = {ours: column for ours, column in names.items() if ours not in absent}
    for ours, column in names.items():
        if present.count(column) != 1:
            argument = "time" if ours == "timestamp" else ours
            hint = (
                " (data.time= where rows are in time order)"
                if argument == "time"
                else ""
            )
            # Quoted where a space would not be seen.
            shown = [
                repr(name) if name != name.strip() else name
                for name in nearest_first(column, present)
            ]
            advice = f"Say data.{argument}=NAME with one of them{hint}."
            raise MissingColumn(
                f"{where}: expected one column {column!r}, got {present.count(column)} "
                f"of that name; the columns, nearest first: {', '.join(shown)}.",
                _of_another_separator(present) or advice,
            )
    return names


def _of_another_separator(present: list[str]) -> str:
    """What to do where the only column looks like a header of several."""
    found = [sign for sign in ",;\t|" if len(present) == 1 and sign in present[0]]
    if not found:
        return ""
    return f"They look separated by {found[0]!r}: read the file as data.format=csv."


def checked(
    frame: DataFrame, names: dict[str, str], origin: Origin, ledger: Ledger
) -> DataFrame:
    """The frame with times and ratings in numbers or datetimes, nothing missing.

    Args:
      frame: columns of our names, rows numbered from 0.
      names: our name -> the caller's, for messages.
      origin: says where a row is, for messages.
      ledger: takes rows in which an id, a time, a rating or an event is missing, or is
        no time or number.

    Raises:
      InputError: there is such a row, and the ledger refuses it.
    """
    convert = {"timestamp": _times, "rating": _numbers}
    for ours, column in names.items():
        problem = f"column {column!r} has no value"
        is_bad_I = _is_missing(frame[ours])
        frame, origin = without(frame, is_bad_I, problem, origin, ledger)
        if ours in ("user", "item"):
            ids = _checked_ids(frame[ours], column, ledger)
            frame = pandas().DataFrame({**frame, ours: ids}, copy=False)
        if ours not in convert:
            continue
        values, is_bad_I, kind = convert[ours](frame[ours])
        if is_bad_I.any():
            problem = f"column {column!r} has no {kind}"
            got = frame[ours].iloc[int(is_bad_I.argmax())]
            frame, origin = without(frame, is_bad_I, problem, origin, ledger, got)
            # Again: a column of integers and one word has been read as floats.
            values, _, _ = convert[ours](frame[ours])
        frame = pandas().DataFrame({**frame, ours: values}, copy=False)
    ledger.remark_on_users(frame["user"])
    return frame


def without(
    frame: DataFrame,
    is_bad_I: np.ndarray,
    problem: str,
    origin: Origin,
    ledger: Ledger,
    got: object = None,
) -> tuple[DataFrame, Origin]:
    """The frame without its bad rows, which go to the ledger, and its origin."""
    if not is_bad_I.any():
        return frame, origin
    first = origin.first(is_bad_I)
    users = known(frame["user"][is_bad_I])
    ledger.reject(problem, int(is_bad_I.sum()), first, origin, got, users)
    return frame[~is_bad_I].reset_index(drop=True), origin.without(is_bad_I)


def known(ids: Series) -> Series:
    """Those that are not missing."""
    return ids[~_is_missing(ids)]


def _checked_ids(ids: Series, column: str, ledger: Ledger) -> Series:
    """The ids, as categories where they are texts, which are hashed only once so.

    Remarks on ids that may be none: spellings of null.
    """
    pd = pandas()
    if pd.api.types.is_numeric_dtype(ids):
        return ids
    code_I, distinct = codes(ids)
    distinct_N = distinct.tolist()
    for n, text in enumerate(map(str, distinct_N)):
        if text.strip().lower() in _NULLS:
            count = int((code_I == n).sum())
            ledger.remark(
                f"column {column!r} has the id {text!r} in {count:,} "
                f"row{'s' * (count > 1)}: where it stands for no value, leave the "
                "field empty (data.broken=skip drops and counts such rows)"
            )
    is_text = all(isinstance(x, str) for x in distinct_N)
    if isinstance(ids.dtype, pd.CategoricalDtype) or not is_text:
        return ids
    return pd.Series(pd.Categorical.from_codes(code_I, distinct), ids.index)


def integers_or_text(column: Series) -> Series:
    """As integers where every string is the one way to write its number.

    Args:
      column: categorical, of strings, none missing; any other stays as it is.
    """
    pd = pandas()
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    column = column.cat.remove_unused_categories()
    texts = column.cat.categories
    if not all(map(INTEGER.fullmatch, texts)):
        return column
    numbers = _integer_array([int(text) for text in texts])
    if numbers is None:
        return column
    return pd.Series(numbers[column.cat.codes.to_numpy()], column.index)


def codes(column: Series) -> tuple[np.ndarray, Any]:
    """Each row's id as 0..n-1, int64 [I], and the n ids, in any order."""
    if (counted := _counted_codes(column, np.int64)) is not None:
        return counted
    return _hashed_codes(column)


def _hashed_codes(column: Series) -> tuple[np.ndarray, Any]:
    """`codes` of ids of any type, in the order of appearance."""
    try:
        code_I, ids = pandas().factorize(column)
    except TypeError as error:  # such as lists
        raise InputError(
            f"column {column.name!r} holds values that are no ids: {error}. Convert "
            "them to strings."
        ) from None
    if (code_I < 0).any():
        raise InputError(
            f"column {column.name!r} has missing ids. Pass the frame through "
            "readers.as_frame(), which names the row."
        )
    return code_I, ids


def _counted_codes(column: Series, dtype: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """`codes` in that dtype, ids ascending, by a table of the integers to the largest.

    Returns:
      None where an id is no integer, or too large for such a table.
    """
    if not isinstance(column.dtype, np.dtype) or column.dtype.kind not in "iu":
        return None
    value_I = column.to_numpy()
    least, most = value_I.min(initial=0), value_I.max(initial=0)
    if least < 0 or most >= 2 * len(value_I) + _NARROW:
        return None
    is_there_W = np.zeros(int(most) + 1, bool)
    is_there_W[value_I] = True
    code_W = np.cumsum(is_there_W, dtype=dtype) - dtype(1)
    return code_W[value_I], np.flatnonzero(is_there_W)


def sorted_codes(column: Series) -> tuple[np.ndarray, np.ndarray]:
    """Each row's id as 0..n-1, int32 [I], and the n ids, ascending.

    Integers of 64 bits stay what they are, and so do strings. Floats that are all whole
    become integers, bytes are read as UTF-8, and ids of any other type, or of several,
    become their text, str(id).

    Raises:
      InputError: two ids with the same text, bytes that are no text, or so long an id
        that the table of ids would fill the memory.
    """
    if (counted := _counted_codes(column, np.int32)) is not None:
        return counted
    code_I, ids = _hashed_codes(column)
    _check_length(ids, code_I, column)
    ids = _id_array(ids, column.name)
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    return rank[code_I], ids[order]


def _check_length(ids: Any, code_I: np.ndarray, column: Series) -> None:
    """Raises InputError if the longest id makes the table of ids as large as memory."""
    if ids.dtype.kind in "iuf":
        return
    length_N = np.fromiter((len(x) if isinstance(x, str) else 0 for x in ids), np.int64)
    longest = int(length_N.max(initial=0))
    num_bytes = longest * len(ids) * np.dtype("U1").itemsize
    if longest <= _LONG_ID or num_bytes <= _ID_BYTES:
        return
    n = int(length_N.argmax())
    row = column.index[int((code_I == n).argmax())]
    raise InputError(
        f"column {column.name!r} has an id of {longest:,} characters, "
        f"{ids[n][:40]!r}..., in row {row} (from 0, broken ones not counted): with it "
        f"the table of {len(ids):,} ids would take {num_bytes / 2**30:,.1f} GiB. "
        "Shorten such ids or remove their rows."
    )


def _id_array(ids: Any, name) -> np.ndarray:
    """The ids as int64, uint64 or fixed-width strings, which need no pickle to save.

    Args:
      ids: a pandas Index of distinct ids.
      name: of their column, for messages.
    """
    array = np.asarray(ids)
    kind = pandas().api.types.infer_dtype(array, skipna=False)
    if kind == "string":
        return _fixed_width(array.tolist(), name)
    values = ids.tolist()
    if kind == "floating" and all(map(float.is_integer, values)):
        if max(map(abs, values)) <= 2**53:  # above, a float is not one integer
            values, kind = [*map(int, values)], "integer"
    numbers = _integer_array(values) if kind == "integer" else None
    if numbers is not None:
        return numbers
    try:
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in values]
    except UnicodeDecodeError as error:
        raise InputError(
            f"ids in bytes must be UTF-8 text: column {name!r}: {error}. Convert them."
        ) from None
    if len(set(texts)) < len(texts):
        repeated = collections.Counter(texts).most_common(1)[0][0]
        raise InputError(
            f"column {name!r} holds different ids with the same text {repeated!r}, of "
            f"kind {kind}. Convert them to one type."
        )
    return _fixed_width(texts, name)


def _fixed_width(texts: list[str], name) -> np.ndarray:
    """The texts as an array of strings, which cannot hold all of them."""
    if cut := [text for text in texts if text.endswith("\0")]:
        raise InputError(
            f"column {name!r} has the id {cut[0][:40]!r}: an id cannot end in a NUL "
            "character, which NumPy leaves out. Strip it."
        )
    return np.array(texts, dtype=str)


def _integer_array(numbers: list[int]) -> np.ndarray | None:
    """The numbers as int64, else as uint64, else None."""
    for dtype in (np.int64, np.uint64):
        try:
            return np.array(numbers, dtype)
        except OverflowError:
            pass
    return None


def _is_missing(values: Series) -> np.ndarray:
    """Whether a value is null or a text of MISSING: bool [I]."""
    pd = pandas()
    is_missing_I = values.isna().to_numpy()
    kinds = pd.api.types
    if kinds.is_numeric_dtype(values) or kinds.is_datetime64_any_dtype(values):
        return is_missing_I
    for text in MISSING:
        is_missing_I = is_missing_I | (values == text).fillna(False).to_numpy(bool)
    return is_missing_I


# What a conversion returns: the values, bool [I] whether one is bad, and what it lacks.
Converted = tuple[Series, np.ndarray, str]
_PROBE_ROWS = 1000
_CHUNK_ROWS = 1 << 20


def _times(values: Series) -> Converted:
    """Numbers as given; datetimes and ISO 8601 strings as datetimes in UTC."""
    pd = pandas()
    kind = "number or ISO 8601 time"
    if not pd.api.types.is_datetime64_any_dtype(values):
        # Strings that are no numbers show it soon; to find it of all takes memory.
        if _is_numeric(values.iloc[:_PROBE_ROWS]) and _is_numeric(values):
            return _numbers(values)
        values, texts = _iso_times(values), values
        is_bad_I = values.isna().to_numpy()
        if is_bad_I.any():
            numbers = pd.to_numeric(texts.astype(str), errors="coerce")
            is_number_I = numbers.notna().to_numpy()
            if is_number_I.sum() > (~is_bad_I).sum():  # they are meant as numbers
                return numbers, ~is_number_I, kind
            return values, is_bad_I, kind
    values = pd.to_datetime(values, utc=True).dt.tz_localize(None)
    return values, np.zeros(len(values), bool), kind


def _iso_times(values: Series) -> Series:
    """Datetimes in UTC, NaT where a text is none; a part at a time, to save memory."""
    pd = pandas()
    firsts = range(0, max(1, len(values)), _CHUNK_ROWS)
    return pd.concat([_iso_part(values.iloc[f : f + _CHUNK_ROWS]) for f in firsts])


def _iso_part(values: Series) -> Series:
    texts = values.astype(str)
    times = _parsed(texts)
    if times.isna().any():  # "2024-01-02 03:04:05 UTC", as BigQuery writes it
        # All of them once more: parts of other units do not go into one column.
        times = _parsed(texts.str.replace(r" UTC$", "Z", regex=True))
    return times


def _parsed(texts: Series) -> Series:
    return pandas().to_datetime(texts, format="ISO8601", utc=True, errors="coerce")


def _is_numeric(values: Series) -> bool:
    pd = pandas()
    if pd.api.types.is_numeric_dtype(values):
        return not pd.api.types.is_bool_dtype(values)
    try:
        pd.to_numeric(values)
    except (TypeError, ValueError):
        return False
    return not pd.api.types.is_bool_dtype(values)


def _numbers(values: Series) -> Converted:
    """int64 or finite float64."""
    pd = pandas()
    if values.dtype == np.int64:
        return values, np.zeros(len(values), bool), "finite number"
    numbers = pd.to_numeric(values, errors="coerce")
    if pd.api.types.is_integer_dtype(numbers):
        if not len(numbers) or numbers.max() <= np.iinfo(np.int64).max:
            numbers = numbers.astype(np.int64)
            return numbers, np.zeros(len(numbers), bool), "finite number"
    numbers = numbers.astype(np.float64)
    return numbers, ~np.isfinite(numbers.to_numpy()), "finite number"
