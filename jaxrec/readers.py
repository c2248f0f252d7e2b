"""From a file, or a table in memory, to a frame of interactions.

    frame = read("ratings.csv", user="userId", item="movieId", rating="rating")

A frame has the columns `user`, `item` and, where they are known, `timestamp`, `rating`
and `event`, with nothing missing; what becomes of it is in `preprocessing`.

A row that cannot be used (fields that do not fit, an id missing, a time that is none)
is an error, or is skipped and counted: see `ledger`.
"""

import os
import pathlib
import warnings
from typing import Any

from jaxrec import columns, delimited
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
_CATEGORICAL = ("user", "item", "event")  # where they are strings: few are distinct


class NoRows(InputError):
    """A table with the wanted columns and nothing in them."""

    def __init__(self, where: str):
        super().__init__(f"{where} has no rows: expected interactions.")


class NotATable(InputError):
    """A value that is no table in memory."""


def read(
    path: str | os.PathLike,
    *,
    format: str = "",
    user: str = "user",
    item: str = "item",
    time: str = "timestamp",
    rating: str = "",
    event: str = "",
    optional: tuple[str, ...] = (),
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
      optional: "rating", "event" or both: left out where there is no such column.
      ledger: takes rows that cannot be read, or that miss an id, a time, a rating or an
        event; by default they are an error.

    Returns:
      DataFrame[user, item, timestamp, rating, event], the last three where asked for
      and known. Ids that are texts are categories. Times are int64 or float64 as
      given, or datetime64 in UTC.

    Raises:
      InputError: no such file, format or column; no rows; or a broken row: it names
        the line.
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
            return _read_parquet(path, names, optional, ledger)
        return _read_text(path, delimited.LAYOUTS[format], names, optional, ledger)
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
    optional: tuple[str, ...] = (),
    ledger: Ledger | None = None,
) -> DataFrame:
    """The interactions of a table in memory: what `read` is to a file.

    Args:
      source: a pandas DataFrame, anything that offers an Arrow stream (Polars, DuckDB,
        PyArrow: `__arrow_c_stream__`) or the older `__dataframe__`.
      user, item, time, rating, event, optional, ledger: as in `read`.

    Returns:
      What `read` returns. To write to it does not change the source.

    Raises:
      InputError: not a table, no such column, no rows, or a broken row: it names the
        row.
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
        names = columns.require(names, table.column_names, "the table", optional)
        return _from_arrow(table, names, Origin("", "row"), ledger, "the table")
    frame = source if isinstance(source, pd.DataFrame) else _interchange(source)
    header = [*map(str, frame.columns)]
    names = columns.require(names, header, "the frame", optional)
    if frame.empty:
        raise NoRows("the frame")
    # One by one: pandas 3 copies a column when it is written to, but several at once.
    series = {
        ours: frame.iloc[:, header.index(column)].reset_index(drop=True)
        for ours, column in names.items()
    }
    frame = pd.DataFrame(series, copy=False)
    frame = columns.checked(frame, names, Origin("", "row"), ledger)
    ledger.check(len(frame), "the frame")
    return frame


def _read_text(
    path: pathlib.Path,
    layout: delimited.Layout,
    names: dict[str, str],
    optional: tuple[str, ...],
    ledger: Ledger,
) -> DataFrame:
    pd = pandas()
    if layout.columns:
        names = {ours: ours for ours in names if ours in layout.columns}
    needed = [column for ours, column in names.items() if ours not in optional]
    file = delimited.TextFile(path, layout, ledger, needed)
    names = columns.require(names, file.header, str(path), optional)
    if file.layout.separator != layout.separator:
        ledger.remark(
            f"the fields of the file are separated by {file.layout.separator!r}"
        )
    places = {ours: file.header.index(column) for ours, column in names.items()}
    first = file.first_row()
    if not first:
        file.check()
        ledger.check(0, str(path))
        raise NoRows(str(path))
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
    path: pathlib.Path,
    names: dict[str, str],
    optional: tuple[str, ...],
    ledger: Ledger,
) -> DataFrame:
    pyarrow = _pyarrow()
    try:
        schema = pyarrow.parquet.ParquetDataset(path).schema
        names = columns.require(names, schema.names, str(path), optional)
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
    return _from_arrow(table, names, Origin(str(path), "row"), ledger, str(path))


def _from_arrow(
    table: Any, names: dict[str, str], origin: Origin, ledger: Ledger, where: str
) -> DataFrame:
    """The checked frame of an Arrow table; strings of ids and events as categories."""
    if not table.num_rows:
        raise NoRows(where)
    table = table.select(list(names.values())).rename_columns(list(names))
    for place, ours in enumerate(names):
        table = table.set_column(place, ours, _plain(table[ours], ours))
    for ours, column in names.items():
        if table[ours].null_count:
            # Before pandas, which makes floats of integers where one is missing.
            is_null_I = table[ours].is_null().to_numpy()
            problem = f"column {column!r} has no value"
            first = origin.first(is_null_I)
            users = table["user"].filter(is_null_I).drop_null().to_pandas()
            ledger.reject(
                problem, int(is_null_I.sum()), first, origin, None, columns.known(users)
            )
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
        raise NotATable(
            "expected a pandas DataFrame or another with __arrow_c_stream__ or "
            f"__dataframe__, got {type(source).__name__}.{lazy}"
        )
    with warnings.catch_warnings():
        # Pandas calls the protocol old; some frames still offer nothing newer.
        warnings.simplefilter("ignore")
        return pandas().api.interchange.from_dataframe(source)
