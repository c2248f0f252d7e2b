"""Text files of rows and fields: parsed at speed, and again slowly to name a line.

pandas' C parser does the work. What it finds odd is read once more, row by row, by
Python's csv module, which knows the line.
"""

import csv
import os
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxrec.columns import DataFrame, pandas
from jaxrec.errors import InputError


class Layout(NamedTuple):
    """How a text file is cut into fields.

    separator: one character; a blank stands for any run of blanks and tabs.
    columns: names of the fields, or () where the first row names them. A field whose
      name begins with "_" must be empty.
    quoting: of the csv module.
    row: what a right row looks like, for messages.
    """

    separator: str
    columns: tuple[str, ...] = ()
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    row: str = "{width} fields, as in the header"


LAYOUTS = {
    "text": Layout(" ", ("user", "item"), csv.QUOTE_NONE, "'user item'"),
    # '::' is two separators with nothing between: so the fast parser can cut it too.
    "movielens": Layout(
        ":",
        ("user", "_1", "item", "_2", "rating", "_3", "timestamp"),
        csv.QUOTE_NONE,
        "'user::item::rating::timestamp'",
    ),
    "csv": Layout(","),
    "tsv": Layout("\t"),
}

_CHUNK_ROWS = 1 << 20
_CHUNK_BYTES = 1 << 24
# Every other spelling, such as NA or null, may be somebody's id.
_MISSING = ["", "nan", "NaN"]


def header(path: str | os.PathLike, layout: Layout) -> list[str]:
    """Names of the fields, in order."""
    if layout.columns:
        return list(layout.columns)
    for _, fields in _records(path, layout):
        return fields
    raise InputError(f"{path} is empty: expected a header and rows")


def parse(
    path: str | os.PathLike,
    layout: Layout,
    wanted: dict[str, int],
    *,
    text: tuple[str, ...] = (),
) -> DataFrame:
    """The wanted fields of every row, numbers as numbers where a whole field is.

    Args:
      path: a UTF-8 text file.
      layout: how it is cut.
      wanted: the result's column name -> place of the field, from 0.
      text: columns of the result that stay strings.

    Returns:
      A frame in file order. Row k is the k-th row of the file that is not blank.

    Raises:
      InputError: a row has too many or too few fields, or is not UTF-8.
    """
    pd = pandas()
    width = len(header(path, layout))
    empty = [k for k, name in enumerate(layout.columns) if name.startswith("_")]
    chunks, is_suspect = [], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            with pd.read_csv(
                path,
                sep=r"\s+" if layout.separator == " " else layout.separator,
                header=None if layout.columns else 0,
                names=list(range(width)),
                index_col=False,  # else a first row that is too long moves the columns
                dtype={wanted[name]: str for name in text},
                keep_default_na=False,
                na_values=_MISSING,
                quoting=layout.quoting,
                compression=None,
                chunksize=_CHUNK_ROWS,
                low_memory=False,
            ) as reader:
                # Not usecols: with it, the parser lets rows with too many fields pass.
                for chunk in reader:
                    is_suspect |= bool(
                        chunk[width - 1].isna().any()
                        or chunk[empty].notna().any(axis=None)
                    )
                    chunks.append(chunk[list(wanted.values())])
    except (
        pd.errors.ParserError,
        pd.errors.ParserWarning,
        UnicodeDecodeError,
    ) as error:
        _check_rows(path, layout, width, empty)
        raise InputError(
            f"{path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if is_suspect:
        _check_rows(path, layout, width, empty)
    return pd.concat(chunks, ignore_index=True).set_axis(list(wanted), axis=1)


def line(path: str | os.PathLike, layout: Layout, row: int) -> int:
    """Number, from 1, of the line where a row of `parse` begins."""
    skipped = 0 if layout.columns else 1
    for k, (number, _) in enumerate(_records(path, layout)):
        if k == row + skipped:
            return number
    raise AssertionError(f"{path} has no row {row}")


def has_padded_number(path: str | os.PathLike, layout: Layout) -> bool:
    """Whether a field may start with a digit after 0 or +: an id such as 007 is not 7.

    May say yes without need (a time of day after a blank), never no.
    """
    is_edge, is_digit = np.zeros(256, bool), np.zeros(256, bool)
    is_edge[list(b' \t\r\n"' + layout.separator.encode())] = True
    is_digit[list(b"0123456789")] = True
    is_pad = np.zeros(256, bool)
    is_pad[list(b"0+")] = True
    with open(path, "rb") as file:
        carried = b"\n"
        while block := file.read(_CHUNK_BYTES):
            bytes_ = np.frombuffer(carried + block, np.uint8)
            starts = is_edge[bytes_[:-2]] & is_pad[bytes_[1:-1]]
            if np.any(starts & is_digit[bytes_[2:]]):
                return True
            carried = (carried + block)[-2:]
    return False


def _check_rows(path, layout: Layout, width: int, empty: list[int]) -> None:
    """Raises InputError at the first row that does not fit the layout."""
    for number, fields in _records(path, layout):
        if len(fields) != width or any(fields[k] for k in empty):
            got = layout.separator.join(fields)[:60]
            raise InputError(
                f"{path}, line {number}: expected {layout.row.format(width=width)}, "
                f"got {got!r}. Correct or remove the line."
            )


def _records(path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, fields) of each row that is not blank."""
    lines = _lines(path)
    if layout.separator == " ":
        lines = (" ".join(line.split()) for line in lines)
    reader = csv.reader(
        lines, delimiter=layout.separator, quoting=layout.quoting, strict=True
    )
    number = 1
    try:
        for fields in reader:
            if len(fields) > 1 or (fields and fields[0].strip()):
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {number}: {error}") from None


def _lines(path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(
                    f"{path}, line {number}: not UTF-8 text. Convert or unpack it."
                ) from None
