"""From a file or a frame to a Dataset: read, filter, encode.

    frame = read("ratings.csv", user="userId", item="movieId", rating="rating")
    frame, num_removed = filter_rating(frame, 4)
    dataset = encode(frame, name="my-log")

Every frame in between has the columns `user`, `item` and, where they are known,
`timestamp`, `rating` and `event`, with nothing missing. A filter keeps the order of
the rows and returns the number of rows that it removed; `build` runs them all.

A row that cannot be used (fields that do not fit, an id missing, a time that is none)
is an error, or is skipped and counted: see `ledger`.
"""

import os
import pathlib
import warnings
from typing import Any

import numpy as np

from jaxrec import columns, data, delimited
from jaxrec.columns import DataFrame, pandas
from jaxrec.errors import InputError
from jaxrec.ledger import Ledger, Origin

FORMATS = (*delimited.LAYOUTS, "parquet")
_FORMAT_OF_SUFFIX = {
    ".txt": "text",
    ".dat": "movielens",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_TIED_SHARE = 0.5  # of a user's consecutive items: more are worth a remark
_CATEGORICAL = ("user", "item", "event")  # where they are strings: few are distinct


def read(
    path: str | os.PathLike,
    *,
    format: str = "",
    user: str = "user",
    item: str = "item",
    time: str = "timestamp",
    rating: str = "",
    event: str = "",
    ledger: Ledger | None = None,
) -> DataFrame:
    """The interactions of a file, in its order.

    Formats: `text` (.txt; 'user item' a line, in time order), `movielens` (.dat;
    'user::item::rating::timestamp'), `csv` and `tsv` (a header names the columns) and
    `parquet`. Text is UTF-8, and its blank lines are skipped; it may be packed (.gz or
    .bz2 after the suffix). The fields of `csv` are separated by commas, or else by
    semicolons, tabs or bars, if so cut the header has the columns that are named here.

    Ids are exact: a column of whole numbers of up to 64 bits becomes integers, any
    other stays strings (one 007 is enough, which is not 7).

    Args:
      path: the file; for Parquet, a folder of files too.
      format: one of the above; "" goes by the suffix, such as .csv or .csv.gz.
      user, item: columns of the ids.
      time: column of the times: numbers in any unit, datetimes or ISO 8601 strings (in
        UTC, unless they name a zone); "" where the rows are in time order.
      rating: column of the ratings; "" leaves them out.
      event: column that says what a row is, such as a view or a sale; "" leaves it out.
        `text` and `movielens` have no names of columns: there it only counts whether
        time and rating are "", and there are no events.
      ledger: takes rows that cannot be read, or that miss an id, a time, a rating or an
        event; by default they are an error.

    Returns:
      DataFrame[user, item, timestamp, rating, event], the last three where asked for
      and known. Times are int64 or float64 as given, or datetime64 in UTC.

    Raises:
      InputError: no such file, format or column; or a broken row: it names the line.
    """
    path, ledger = pathlib.Path(path), ledger or Ledger()
    names = columns.wanted(user=user, item=item, time=time, rating=rating, event=event)
    is_packed = path.suffix.lower() in delimited.PACKED
    suffix = pathlib.Path(path.stem).suffix if is_packed else path.suffix
    format = format or _FORMAT_OF_SUFFIX.get(suffix.lower(), suffix)
    if format not in FORMATS:
        raise InputError(
            f"{path}: unknown format {format!r}. Say data.format=NAME with one "
            f"of {', '.join(FORMATS)}; text may be packed: "
            f"{' or '.join(delimited.PACKED)}."
        )
    if not path.exists():
        raise InputError(
            f"no file {path}; the current folder is {pathlib.Path.cwd()}. Correct "
            "data.path."
        )
    try:
        if format == "parquet":
            return _read_parquet(path, names, ledger)
        return _read_text(path, delimited.LAYOUTS[format], names, ledger)
    except delimited.UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(f"{path} cannot be read: {reason}.") from None


def as_frame(
    source: Any,
    *,
    user: str = "user",
    item: str = "item",
    time: str = "timestamp",
    rating: str = "",
    event: str = "",
    ledger: Ledger | None = None,
) -> DataFrame:
    """The interactions of a table in memory: what `read` is to a file.

    Args:
      source: a pandas DataFrame, anything that offers an Arrow stream (Polars, DuckDB,
        PyArrow: `__arrow_c_stream__`) or the older `__dataframe__`.
      user, item, time, rating, event, ledger: as in `read`.

    Raises:
      InputError: not a table, no such column, or a broken row: it names the row.
    """
    pd, ledger = pandas(), ledger or Ledger()
    names = columns.wanted(user=user, item=item, time=time, rating=rating, event=event)
    if not isinstance(source, pd.DataFrame) and hasattr(source, "__arrow_c_stream__"):
        pyarrow = _pyarrow()
        try:
            table = pyarrow.table(source)
        except pyarrow.ArrowException as error:  # such as integers of 128 bits
            raise InputError(
                f"the {type(source).__name__} cannot be read as an Arrow table: "
                f"{error}. Convert or drop that column."
            ) from None
        columns.require(names, table.column_names, "the table")
        return _from_arrow(table, names, Origin("", "row"), ledger, "the table")
    frame = source if isinstance(source, pd.DataFrame) else _interchange(source)
    header = [*map(str, frame.columns)]
    columns.require(names, header, "the frame")
    frame = frame.iloc[:, [header.index(column) for column in names.values()]]
    frame = frame.reset_index(drop=True).set_axis(list(names), axis=1)
    frame = columns.checked(frame, names, Origin("", "row"), ledger)
    ledger.check(len(frame), "the frame")
    return frame


def filter_rating(frame: DataFrame, min_rating: float) -> tuple[DataFrame, int]:
    """The rows of rating >= min_rating, and the number of rows removed."""
    if "rating" not in frame:
        raise InputError(
            f"min_rating={min_rating} needs ratings, and this log has none. Say "
            "data.rating=NAME with their column, or leave min_rating out."
        )
    is_kept_I = (frame["rating"] >= min_rating).to_numpy()
    return frame[is_kept_I], int((~is_kept_I).sum())


def filter_events(frame: DataFrame, events: tuple[str, ...]) -> tuple[DataFrame, int]:
    """The rows of these events, and the number of rows removed.

    Args:
      frame: from `read`, `as_frame` or a filter.
      events: their names; a value that is no string goes by its text.
    """
    if "event" not in frame:
        raise InputError(
            f"events={events} need a column of events, and this log has none. Say "
            "data.event=NAME with their column, or leave events out."
        )
    code_I, kinds = columns.codes(frame["event"])
    kinds = [*map(str, kinds.tolist())]
    if unknown := [event for event in events if event not in kinds]:
        count = np.bincount(code_I)
        listed = ", ".join(f"{kinds[k]} ({count[k]:,})" for k in np.argsort(-count))
        raise InputError(
            f"no row is of the event {unknown[0]!r}; the events and their rows: "
            f"{listed}. Correct data.events."
        )
    is_kept_I = np.isin(kinds, events)[code_I]
    return frame[is_kept_I], int((~is_kept_I).sum())


def drop_duplicates(frame: DataFrame, policy: str) -> tuple[DataFrame, int]:
    """One row of each user-item pair, and the number of rows removed.

    Args:
      frame: from `read`, `as_frame` or a filter.
      policy: "first" or "last" in time is kept; "keep" keeps every row.
    """
    pd = pandas()
    if policy == "keep":
        return frame, 0
    if policy not in ("first", "last"):
        raise InputError(f"duplicates must be keep, first or last: got {policy!r}.")
    user_I, _ = columns.codes(frame["user"])
    item_I, item_ids = columns.codes(frame["item"])
    pair_I = user_I * len(item_ids) + item_I
    order_I = np.arange(len(frame))
    if "timestamp" in frame:
        order_I = np.argsort(frame["timestamp"].to_numpy(), kind="stable")
    is_kept_I = np.empty(len(frame), bool)
    is_kept_I[order_I] = ~pd.Series(pair_I[order_I]).duplicated(keep=policy).to_numpy()
    return frame[is_kept_I], int((~is_kept_I).sum())


def k_core(frame: DataFrame, min_user: int, min_item: int) -> tuple[DataFrame, int]:
    """The largest part whose users and items have enough rows, and the rows removed.

    A removed row may leave its user or its item with too few: so on until stable.
    Repeats count: to count distinct items, drop duplicates first. (The paper's Yelp
    file counts distinct items and yet keeps repeats; it is loaded as published.)

    Args:
      frame: from `read`, `as_frame` or a filter.
      min_user: fewest rows of a user; 1 keeps all.
      min_item: fewest rows of an item; 1 keeps all.
    """
    if max(min_user, min_item) <= 1:
        return frame, 0
    user_I, _ = columns.codes(frame["user"])
    item_I, _ = columns.codes(frame["item"])
    row_I = np.arange(len(frame))
    while True:
        is_kept_I = np.bincount(user_I)[user_I] >= min_user
        is_kept_I &= np.bincount(item_I)[item_I] >= min_item
        if is_kept_I.all():
            return frame.iloc[row_I], len(frame) - len(row_I)
        user_I, item_I, row_I = (x_I[is_kept_I] for x_I in (user_I, item_I, row_I))


def encode(
    frame: DataFrame, *, name: str = "unnamed", report: dict | None = None
) -> data.Dataset:
    """The Dataset of a frame from `read`, `as_frame` or a filter.

    Users become 0..U-1 and items 1..V by ascending id: integers by value, strings by
    code point. A user's items are in time order, equal times in the frame's order;
    without times, all are in the frame's order.

    Datetimes are kept as seconds since 1970 UTC, int64 where all are whole, else
    float64: that rounds below a microsecond, but the order is made before.

    >>> frame = pandas().DataFrame({"user": ["b", "a", "b"], "item": [7, 7, 5]})
    >>> dataset = encode(frame)
    >>> dataset.items.tolist(), dataset.offsets.tolist()
    ([2, 2, 1], [0, 1, 3])

    Args:
      frame: one row an interaction, none missing.
      name: what results call the log.
      report: what reading and filtering saw, for the record.

    Raises:
      InputError: no rows, or ids that cannot be told apart; see `columns.sorted_codes`.
    """
    if frame.empty:
        raise InputError(_nothing_left(name, report or {}))
    user_I, user_ids = columns.sorted_codes(frame["user"])
    item_I, item_ids = columns.sorted_codes(frame["item"])
    time_I = frame["timestamp"].to_numpy() if "timestamp" in frame else None
    order_I = _order(user_I, time_I, num_users=len(user_ids))
    return data.Dataset(
        items=item_I[order_I] + np.int32(1),
        offsets=np.append(0, np.cumsum(np.bincount(user_I, minlength=len(user_ids)))),
        user_ids=user_ids,
        item_ids=item_ids,
        timestamps=None if time_I is None else _seconds(time_I[order_I]),
        name=name,
        report=report or {},
    )


def build(
    frame: DataFrame,
    *,
    name: str = "unnamed",
    min_rating: float | None = None,
    events: tuple[str, ...] = (),
    duplicates: str = "keep",
    min_user: int = 1,
    min_item: int = 1,
    ledger: Ledger | None = None,
) -> data.Dataset:
    """Filters by rating and event, by repeats, then by count, and encodes what is left.

    The Dataset's report accounts for every row: `rows_read` is the interactions and all
    the other `rows_*`, those that each filter removed and those that were broken. What
    else a person should know of the log are lines of text, under `remarks`.

    Args:
      frame: from `read` or `as_frame`.
      name: what results call the log.
      min_rating: see `filter_rating`; None for no filter.
      events: see `filter_events`; () for no filter.
      duplicates: see `drop_duplicates`.
      min_user, min_item: see `k_core`.
      ledger: that was filled while the frame was read.
    """
    ledger = ledger or Ledger()
    report = {"rows_read": len(frame) + ledger.num_rows, **ledger.report()}
    if min_rating is not None:
        frame, report["rows_below_min_rating"] = filter_rating(frame, min_rating)
    if events:
        frame, report["rows_of_other_events"] = filter_events(frame, events)
    frame, report["rows_duplicate"] = drop_duplicates(frame, duplicates)
    frame, report["rows_outside_core"] = k_core(frame, min_user, min_item)
    dataset = encode(frame, name=name, report=report)
    if remark := _remark_on_times(dataset):
        report.setdefault("remarks", []).append(remark)
    return dataset


def _nothing_left(name: str, report: dict) -> str:
    """Of a log without rows: what has become of them, in words."""
    if not report.get("rows_read"):
        return f"{name} has no rows: expected interactions."
    removed = [
        f"{count:,} {key.removeprefix('rows_').replace('_', ' ')}"
        for key, count in report.items()
        if key.startswith("rows_") and key != "rows_read" and count
    ]
    return (
        f"no rows of {name} are left: of {report['rows_read']:,} rows, "
        f"{', '.join(removed)}. Lower the filters."
    )


def _remark_on_times(dataset: data.Dataset) -> str:
    """A line where most items have the time of the one before; else ""."""
    time_I = dataset.timestamps
    if time_I is None:
        return ""
    is_next_I = np.ones(len(time_I), bool)  # to an item of the same user
    is_next_I[dataset.offsets[:-1]] = False
    is_tied_I = is_next_I[1:] & (time_I[1:] == time_I[:-1])
    share = is_tied_I.sum() / max(1, is_next_I.sum())
    if share <= _TIED_SHARE:
        return ""
    return (
        f"{share:.0%} of items have the same time as the user's item before: their "
        "order is that of the rows"
    )


def _order(
    user_I: np.ndarray, time_I: np.ndarray | None, *, num_users: int
) -> np.ndarray:
    """The stable order by user and time."""
    if time_I is None:
        return np.argsort(user_I, kind="stable")
    if time_I.dtype.kind in "iM":
        time_I = time_I.astype(np.int64)
        start = int(time_I.min())
        span = int(time_I.max()) - start + 1
        if span * num_users < 2**63:
            # One key instead of two sorts in less than half the time.
            key_I = user_I * np.int64(span) + (time_I - start)
            return np.argsort(key_I, kind="stable")
    return np.lexsort((time_I, user_I))


def _seconds(time_I: np.ndarray) -> np.ndarray:
    """Datetimes as seconds since 1970; numbers as they are."""
    if time_I.dtype.kind != "M":
        return time_I
    whole_I = time_I.astype("datetime64[s]")
    rest_I = (time_I - whole_I) / np.timedelta64(1, "s")
    seconds_I = whole_I.view(np.int64)
    return seconds_I + rest_I if rest_I.any() else seconds_I


def _read_text(
    path: pathlib.Path,
    layout: delimited.Layout,
    names: dict[str, str],
    ledger: Ledger,
) -> DataFrame:
    pd = pandas()
    if layout.columns:
        names = {ours: ours for ours in names if ours in layout.columns}
    file = delimited.TextFile(path, layout, ledger, [*names.values()])
    columns.require(names, file.header, str(path))
    if file.layout.separator != layout.separator:
        ledger.remark(
            f"the fields of the file are separated by {file.layout.separator!r}"
        )
    places = {ours: file.header.index(column) for ours, column in names.items()}
    first = file.first_row()
    if not first:
        file.check()
        ledger.check(0, str(path))
        raise InputError(f"{path} has no rows: expected interactions.")
    ids = ("user", "item")
    frame = None
    if all(columns.INTEGER.fullmatch(first[places[name]]) for name in ids):
        frame = file.parse(places, text=("event",))
        has_integers = all(pd.api.types.is_integer_dtype(frame[name]) for name in ids)
        # The parser takes 007 for 7, and long numbers for floats: start from text.
        if not has_integers or delimited.has_padded_number(path, file.layout):
            frame = None
    if frame is None:
        frame = file.parse(places, text=_CATEGORICAL)
        if layout.columns:
            _refuse_header(frame, path)
    times = frame.get("timestamp")
    if pd.api.types.is_float_dtype(times) and (times.abs() > 2**53).any():
        # Integers that one gap or broken row has made floats of, which rounds them.
        place = {"timestamp": places["timestamp"]}
        frame = frame.assign(**file.parse(place, text=("timestamp",)).astype(object))
    frame = columns.checked(frame, names, file.origin, ledger)
    ledger.check(len(frame), str(path))
    return frame.assign(**{name: columns.integers_or_text(frame[name]) for name in ids})


def _refuse_header(frame: DataFrame, path: pathlib.Path) -> None:
    """Raises InputError where names stand above numbers: ids would be strings."""
    first, *rest = frame.loc[:1, ["user", "item"]].astype(str).to_numpy().tolist()
    if rest and not any(map(columns.INTEGER.fullmatch, first)):
        if all(map(columns.INTEGER.fullmatch, rest[0])):
            raise InputError(
                f"{path}, line 1: {' '.join(first)!r} looks like a header, which this "
                "format does not have. Remove the line."
            )


def _read_parquet(
    path: pathlib.Path, names: dict[str, str], ledger: Ledger
) -> DataFrame:
    pyarrow = _pyarrow()
    try:
        schema = pyarrow.parquet.ParquetDataset(path).schema
        columns.require(names, schema.names, str(path))
        # As they are in most files: numbers into a list of the distinct strings.
        texts = [
            column
            for ours, column in names.items()
            if ours in _CATEGORICAL and _is_text(schema.field(column).type)
        ]
        file = pyarrow.parquet.ParquetDataset(path, read_dictionary=texts)
        table = file.read(columns=list(names.values()))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from None
    if not table.num_rows:
        raise InputError(f"{path} has no rows: expected interactions.")
    return _from_arrow(table, names, Origin(str(path), "row"), ledger, str(path))


def _from_arrow(
    table: Any, names: dict[str, str], origin: Origin, ledger: Ledger, where: str
) -> DataFrame:
    """The checked frame of an Arrow table; strings of ids and events as categories."""
    table = table.select(list(names.values())).rename_columns(list(names))
    for place, ours in enumerate(names):
        table = table.set_column(place, ours, _plain(table[ours], ours))
    for ours, column in names.items():
        if table[ours].null_count:
            # Before pandas, which makes floats of integers where one is missing.
            is_null_I = table[ours].is_null().to_numpy()
            problem = f"column {column!r} has no value"
            first = origin.first(is_null_I)
            ledger.reject(problem, int(is_null_I.sum()), first, origin)
            origin, table = origin.without(is_null_I), table.filter(~is_null_I)
    # Column by column, and a column of the table is freed once it is copied: a log of
    # 20 M rows is not held twice.
    table = table.unify_dictionaries()
    frame = table.to_pandas(split_blocks=True, self_destruct=True, date_as_object=False)
    del table
    frame = columns.checked(frame, names, origin, ledger)
    ledger.check(len(frame), where)
    return frame


def _plain(column: Any, ours: str) -> Any:
    """The column of our name in a type that Arrow can filter; few texts once each."""
    pyarrow = _pyarrow()
    if ours in _CATEGORICAL and _is_text(column.type):
        return column.dictionary_encode()
    # What Polars makes of strings: Arrow has no function that filters it.
    views = {
        pyarrow.string_view(): pyarrow.large_string(),
        pyarrow.binary_view(): pyarrow.large_binary(),
    }
    wide = views.get(column.type)
    return column if wide is None else column.cast(wide)


def _is_text(type_: Any) -> bool:
    kinds = _pyarrow().types
    is_text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    return any(is_kind(type_) for is_kind in is_text)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            'Parquet and Arrow tables need pyarrow: pip install "jaxrec[parquet]".'
        ) from None
    return pyarrow


def _interchange(source: Any) -> DataFrame:
    if not hasattr(source, "__dataframe__"):
        lazy = " Call its collect() first." * hasattr(source, "collect")
        raise InputError(
            "expected a pandas DataFrame or another with __arrow_c_stream__ or "
            f"__dataframe__, got {type(source).__name__}.{lazy}"
        )
    with warnings.catch_warnings():
        # Pandas calls the protocol old; some frames still offer nothing newer.
        warnings.simplefilter("ignore")
        return pandas().api.interchange.from_dataframe(source)
