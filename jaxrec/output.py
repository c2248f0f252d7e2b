"""Tables written to .csv or .parquet, part by part, whole or not at all."""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def write(frames: Iterable["pd.DataFrame"], path: str | Path) -> int:
    """Writes the parts of a table to one file; returns the number of its rows.

    A part is written and forgotten before the next one is asked for. Until the last is
    written, an older file of that name stays what it is.

    Args:
      frames: at least one, all of the same columns.
      path: .csv, or .parquet.

    Raises:
      InputError: see `check`.
    """
    path = Path(path)
    check(path)
    part = path.with_name(f".{path.name}.part")
    try:
        part.touch()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with _Csv(part) if path.suffix.lower() == ".csv" else _Parquet(part) as sink:
            num_rows = 0
            for frame in frames:
                sink.write(frame)
                num_rows += len(frame)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return num_rows


def check(path: str | Path, *, flag: str = "--output") -> None:
    """Raises InputError unless a table can be written to `path`, which `flag` named."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{flag} must end in .csv or .parquet: got {path}.")
    check_place(path, flag=flag)
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"{flag} as .parquet needs pyarrow, which is not installed: pip install "
            "'jaxrec[parquet]', or write a .csv."
        )


def check_place(path: str | Path, *, flag: str = "--output") -> None:
    """Raises InputError unless a file can be at `path`, which `flag` named."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"{flag} {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise InputError(f"{flag} {path} is a folder: give the name of a file.")


class _Csv:
    def __init__(self, path: Path):
        self._file, self._is_new = path.open("w", newline=""), True

    def write(self, frame: "pd.DataFrame") -> None:
        frame.to_csv(self._file, index=False, header=self._is_new)
        self._is_new = False

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()


class _Parquet:
    def __init__(self, path: Path):
        self._path, self._writer, self._empty = path, None, None

    def write(self, frame: "pd.DataFrame") -> None:
        import pyarrow as pa

        table = pa.Table.from_pandas(frame, preserve_index=False)
        if not len(frame):  # whose columns of text have no type to go by
            self._empty = table
            return
        self._append(table)

    def _append(self, table) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self._writer is None and self._empty is not None:
            self._append(self._empty)
        if self._writer is not None:
            self._writer.close()
