"""Text files of rows and fields: parsed at speed, and again slowly to name a line.

pandas' C parser does the work. What it finds odd is read once more, row by row, by
Python's csv module, which knows the line. A row that does not fit is broken; if the
ledger lets it pass, the C parser gets the file without that line.

A quote that is never closed would swallow the rows that follow, and where a later line
has such a quote too, the C parser takes it all for one field. So fewer rows than lines
are odd; a broken row is one line, and reading goes on at the next.

A packed file is unpacked as it is read: its lines are those of the text.
"""

import csv
import functools
import importlib
import io
import os
import pathlib
import warnings
import zlib
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrec.columns import MISSING, DataFrame, Series, pandas
from jaxrec.errors import InputError
from jaxrec.ledger import Ledger, Origin


class Layout(NamedTuple):
    """How a text file is cut into fields.

    separator: one character; a blank stands for any run of blanks and tabs.
    columns: names of the fields, or () where the first row names them. A field whose
      name begins with "_" must be empty.
    quoting: of the csv module.
    row: what a right row looks like, for messages.
    others: separators that the header may have in place of the first.
    """

    separator: str
    columns: tuple[str, ...] = ()
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    row: str = "{width} fields, as in the header"
    others: str = ""


LAYOUTS = {
    "text": Layout(" ", ("user", "item"), csv.QUOTE_NONE, "'user item'"),
    # '::' is two separators with nothing between: so the fast parser can cut it too.
    "movielens": Layout(
        ":",
        ("user", "_1", "item", "_2", "rating", "_3", "timestamp"),
        csv.QUOTE_NONE,
        "'user::item::rating::timestamp'",
    ),
    "csv": Layout(",", others=";\t|"),
    "tsv": Layout("\t"),
}

_CHUNK_ROWS = 1 << 20
_CHUNK_BYTES = 1 << 24
# Suffix of a packed file -> the module that opens it.
PACKED = {".gz": "gzip", ".bz2": "bz2"}
# What reading a file may raise; of a packed one, that it is damaged too.
UNREADABLE = (OSError, EOFError, zlib.error)


class TextFile:
    """The rows of a UTF-8 text file; its blank lines are skipped.

    Args:
      path: the file.
      layout: how it is cut.
      ledger: takes the rows that have too many or too few fields or are not UTF-8.
      names: wanted columns, by which the header's separator is found.

    Attributes:
      layout: with the header's separator.
      header: names of the fields, in order.
      origin: says in which line a row begins.

    Raises:
      InputError: the file is empty, or its header cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        layout: Layout,
        ledger: Ledger,
        names: Collection[str] = (),
    ):
        self._path, self.layout, self._ledger = path, layout, ledger
        self._broken: frozenset[int] = frozenset()
        self._is_checked = False
        self.origin = Origin(str(path), "line", self._lines_of)
        if layout.columns:
            self.header = list(layout.columns)
            return
        self.layout, record = _header(path, layout, names)
        if record is None:
            raise InputError(f"{path} is empty: expected a header and rows.")
        if record.problem:
            raise InputError(f"{path}, line {record.line}: {record.problem}.")
        self.header = record.fields
        if self.header[0].lower().startswith("sep="):
            raise InputError(
                f"{path}, line {record.line}: 'sep=' is a sign for spreadsheets, and "
                "no header. Remove the line."
            )

    def first_row(self) -> list[str]:
        """The fields of the first row that is not broken; [] where there is none."""
        return next((r.fields for r in self._rows() if not r.problem), [])

    def check(self) -> None:
        """Enters every broken row in the ledger, if that was not done yet."""
        if not self._is_checked:
            self._is_checked = True
            self._broken = self._find_broken()

    def parse(self, wanted: dict[str, int], *, text: tuple[str, ...] = ()) -> DataFrame:
        """The wanted fields of every row, numbers as numbers where a whole field is.

        Args:
          wanted: the result's column name -> place of the field, from 0.
          text: columns of the result that stay strings; they become categorical.

        Returns:
          A frame in file order.

        Raises:
          InputError: a row is broken, and the ledger refuses it.
        """
        pd = pandas()
        try:
            frame, is_suspect = self._parse(wanted, text)
            problem = ""
        except (
            pd.errors.ParserError,
            pd.errors.ParserWarning,
            UnicodeDecodeError,
        ) as error:
            frame, is_suspect, problem = None, True, " ".join(str(error).split())
        if not self._is_checked and (is_suspect or self._has_joined_lines(frame)):
            self.check()
            if self._broken:
                return self.parse(wanted, text=text)
        if frame is None:
            raise InputError(f"{self._path} cannot be read: {problem}.")
        return frame

    def _parse(
        self, wanted: dict[str, int], text: tuple[str, ...]
    ) -> tuple[DataFrame, bool]:
        """The frame, and whether some row may be too short."""
        pd = pandas()
        layout, width = self.layout, len(self.header)
        empty = _empty_fields(layout)
        columns: dict[str, list[Series]] = {name: [] for name in wanted}
        is_suspect = False
        with warnings.catch_warnings(), self._open() as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)
            with pd.read_csv(
                file,
                sep=r"\s+" if layout.separator == " " else layout.separator,
                header=None if layout.columns else 0,
                names=list(range(width)),
                index_col=False,  # else a first row that is too long moves the columns
                dtype={wanted[name]: str for name in text if name in wanted},
                keep_default_na=False,
                na_values=MISSING,
                quoting=layout.quoting,
                chunksize=_CHUNK_ROWS,
                low_memory=False,
            ) as reader:
                # Not usecols: with it, the parser lets rows with too many fields pass.
                for chunk in reader:
                    is_suspect |= bool(
                        chunk[width - 1].isna().any()
                        or chunk[empty].notna().any(axis=None)
                    )
                    chunk = chunk[list(wanted.values())]
                    for name, place in wanted.items():
                        is_text = name in text
                        column = _category(chunk[place]) if is_text else chunk[place]
                        columns[name].append(column)
        joined = {
            name: _joined(columns.pop(name), is_text=name in text) for name in wanted
        }
        return pd.DataFrame(joined, copy=False), is_suspect

    def _has_joined_lines(self, frame: DataFrame) -> bool:
        """Whether some row runs over several lines."""
        if self.layout.quoting == csv.QUOTE_NONE:
            return False
        return len(frame) < self._num_lines - (not self.layout.columns)

    @functools.cached_property
    def _num_lines(self) -> int:
        """The lines that are not blank, the header too; 0 where no quote joins any."""
        with opened(self._path) as file:
            blocks = iter(lambda: file.read(_CHUNK_BYTES), b"")
            if not any(b'"' in block for block in blocks):
                return 0
            file.seek(0)
            return sum(not is_blank for is_blank in map(bytes.isspace, file))

    def _open(self) -> Any:
        if not self._broken:
            return opened(self._path)
        return io.BufferedReader(_Without(self._path, self._broken), _CHUNK_BYTES)

    def _rows(self) -> Iterator["_Record"]:
        """Every row but the header and those that are known to be broken."""
        records = _records(self._path, self.layout, len(self.header), self._broken)
        if not self.layout.columns:
            next(records, None)
        return records

    def _find_broken(self) -> frozenset[int]:
        """The lines of broken rows, each entered in the ledger."""
        lines: dict[str, list[int]] = {}
        example: dict[str, str] = {}
        joined: list[int] = []
        for record in self._rows():
            if any("\n" in field for field in record.fields):
                joined.append(record.line)
            if record.problem:
                lines.setdefault(record.problem, []).append(record.line)
                example.setdefault(record.problem, record.text)
        for problem, numbers in lines.items():
            self._ledger.reject(
                problem, len(numbers), numbers, self.origin, example[problem] or None
            )
        if joined:  # as CSV has it, but so it looks where two quotes were never closed
            rows = "1 row runs" if len(joined) == 1 else f"{len(joined):,} rows run"
            self._ledger.remark(
                f"{rows} over several lines, within quotes; the first begins in line "
                f"{joined[0]:,}"
            )
        return frozenset(n for numbers in lines.values() for n in numbers)

    def _lines_of(self, rows: np.ndarray) -> list[int]:
        """The line where each of these rows of `parse` begins; ascending, both."""
        remaining, found = rows.tolist(), []
        for k, record in enumerate(self._rows()):
            if not remaining:
                break
            if k == remaining[0]:
                found.append(record.line)
                del remaining[0]
        assert not remaining, f"{self._path} has no row {remaining}"
        return found


def opened(path: str | os.PathLike) -> Any:
    """The file, open for reading bytes; unpacked, if it is packed by its suffix."""
    module = PACKED.get(pathlib.Path(path).suffix.lower(), "io")
    return importlib.import_module(module).open(path, "rb")


def has_padded_number(path: str | os.PathLike, layout: Layout) -> bool:
    """Whether a field may start with a digit after 0 or +: an id such as 007 is not 7.

    May say yes without need (a time of day after a blank), never no.
    """
    is_edge, is_digit = np.zeros(256, bool), np.zeros(256, bool)
    is_edge[list(b' \t\r\n"' + layout.separator.encode())] = True
    is_digit[list(b"0123456789")] = True
    is_pad = np.zeros(256, bool)
    is_pad[list(b"0+")] = True
    with opened(path) as file:
        carried = b"\n"
        while block := file.read(_CHUNK_BYTES):
            bytes_ = np.frombuffer(carried + block, np.uint8)
            starts = is_edge[bytes_[:-2]] & is_pad[bytes_[1:-1]]
            if np.any(starts & is_digit[bytes_[2:]]):
                return True
            carried = (carried + block)[-2:]
    return False


def _category(texts: Series) -> Any:
    """A chunk of strings as numbers of the distinct ones: a fraction of the memory."""
    pd = pandas()
    code_I, distinct = pd.factorize(texts)
    return pd.Categorical.from_codes(code_I, distinct.astype(object))


def _joined(parts: list, *, is_text: bool) -> Series:
    pd = pandas()
    if is_text:
        return pd.Series(pd.api.types.union_categoricals(parts))
    return pd.concat(parts, ignore_index=True)


def _empty_fields(layout: Layout) -> list[int]:
    return [k for k, name in enumerate(layout.columns) if name.startswith("_")]


class _Lines:
    """(number from 1, bytes) of the lines of a file; some can be given back."""

    def __init__(self, file, without: frozenset[int]):
        numbered = enumerate(file, 1)
        self._lines = (pair for pair in numbered if pair[0] not in without)
        self._returned: list[tuple[int, bytes]] = []

    def __iter__(self):
        return self

    def __next__(self) -> tuple[int, bytes]:
        return self._returned.pop() if self._returned else next(self._lines)

    def give_back(self, lines: list[tuple[int, bytes]]) -> None:
        self._returned += reversed(lines)


class _Without(io.RawIOBase):
    """The bytes of a file without some of its lines."""

    def __init__(self, path, without: frozenset[int]):
        self._file = opened(path)
        self._lines = _Lines(self._file, without)
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        parts, size = [self._pending], len(self._pending)
        while size < len(buffer):
            _, line = next(self._lines, (0, b""))
            if not line:
                break
            parts.append(line)
            size += len(line)
        content = b"".join(parts)
        taken = min(len(buffer), len(content))
        buffer[:taken], self._pending = content[:taken], content[taken:]
        return taken

    def close(self) -> None:
        self._file.close()
        super().close()


class _Record(NamedTuple):
    """A row: its first line, its fields or what is wrong with it, and how it looks."""

    line: int
    fields: list[str]
    problem: str = ""
    text: str = ""


def _records(
    path,
    layout: Layout,
    width: int | None = None,
    without: frozenset[int] = frozenset(),
) -> Iterator[_Record]:
    """Each row that is not blank; its fields are judged where the width is known."""
    empty = _empty_fields(layout)
    with opened(path) as file:
        source = _Lines(file, without)
        for number, line in source:
            more: list[tuple[int, bytes]] = []
            try:
                fields = _fields(number, line, layout, source, more)
            except UnicodeDecodeError:
                problem = "not UTF-8 text (to be converted, or unpacked)"
                record = _Record(number, [], problem)
            except csv.Error as error:
                record = _Record(number, [], str(error), line[:60].decode(**_LENIENT))
            else:
                if len(fields) < 2 and not "".join(fields).strip():
                    continue
                is_right = width is None or len(fields) == width
                if is_right and not any(fields[k] for k in empty):
                    yield _Record(number, fields)
                    continue
                problem = f"expected {layout.row.format(width=width)}"
                record = _Record(number, [], problem, layout.separator.join(fields))
            source.give_back(more)
            yield record


def _header(
    path, layout: Layout, names: Collection[str]
) -> tuple[Layout, _Record | None]:
    """The first row, and the layout with the separator by which it has the names.

    Where none does, that of the most fields, so that a message can show them.
    """
    found = []
    for separator in layout.separator + layout.others:
        cut = layout._replace(separator=separator)
        record = next(_records(path, cut), None)
        found.append((cut, record))
        if record and not record.problem and set(names) <= set(record.fields):
            return found[-1]
    return max(found, key=lambda pair: len(pair[1].fields) if pair[1] else 0)


_LENIENT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}


def _fields(number: int, line: bytes, layout: Layout, source: _Lines, more) -> list:
    """The fields of the row that begins with a line; `more` takes its further lines."""
    text = _decoded(number, line)
    if layout.separator == " ":
        return text.split()
    body = text.rstrip("\r\n")
    if layout.quoting == csv.QUOTE_NONE or not ('"' in body or "\r" in body):
        return body.split(layout.separator)

    def lines():
        yield text
        for pair in source:
            more.append(pair)
            yield _decoded(*pair)

    return next(csv.reader(lines(), delimiter=layout.separator, strict=True), [])


def _decoded(number: int, line: bytes) -> str:
    return line.decode("utf-8-sig" if number == 1 else "utf-8")
