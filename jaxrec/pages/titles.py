"""Titles of items, for people: a table of the caller's, looked up by an id's text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec import columns as tables
from jaxrec import delimited, ledger
from jaxrec.errors import InputError

_SEPARATORS = ",;\t|"


def read(source: Any, columns: Sequence[str] = ("item", "title")) -> dict[str, str]:
    """Item id, as text -> title.

    >>> read({7: "Seven"})
    {'7': 'Seven'}

    Args:
      source: a mapping; or a table with a row an item: a .csv (.csv.gz, .csv.bz2), .tsv
        or .parquet file, a DataFrame or an Arrow table. Further columns are left alone.
        The fields of text are separated as its header is: by commas, semicolons, tabs
        or bars.
      columns: the table's, of the ids and of the titles.

    Raises:
      InputError: a table that cannot be read, without these columns, or in which an
        item has two titles.
    """
    if isinstance(source, Mapping):
        return {str(item): str(title) for item, title in source.items()}
    if len(columns) != 2 or isinstance(columns, str):
        raise InputError(
            f"title columns must be two, of the ids and of the titles: got {columns!r}."
        )
    if isinstance(source, str | Path):
        where, frame = str(source), _read(Path(source), columns)
    else:
        where, frame = "the table of titles", source
        if hasattr(source, "to_pandas"):  # of Arrow, of polars
            frame = source.to_pandas()
        if not isinstance(frame, tables.pandas().DataFrame):
            raise InputError(
                "titles must be a mapping {item: title}, a file or a pandas DataFrame: "
                f"got {type(source).__name__}."
            )
    present = [str(column) for column in frame.columns]
    for column in columns:
        if present.count(column) != 1:
            raise InputError(
                f"{where}: expected one column {column!r}, got "
                f"{present.count(column)} of that name; the columns, nearest first: "
                f"{', '.join(tables.nearest_first(column, present))}. Name the two by "
                "--title-columns ITEM,TITLE, in Python title_columns=(item, title)."
            )
    titles: dict[str, str] = {}
    for item, title in zip(
        *(frame[column].tolist() for column in columns), strict=True
    ):
        if titles.setdefault(str(item), str(title)) != str(title):
            raise InputError(
                f"{where}: item {str(item)!r} has the titles {titles[str(item)]!r} and "
                f"{str(title)!r}. Leave one of them."
            )
    return titles


def _read(path: Path, columns: Sequence[str]) -> Any:
    pd = tables.pandas()
    suffix = path.suffix.lower()
    if suffix in delimited.PACKED:
        suffix = Path(path.stem).suffix.lower()
    if not path.is_file():
        raise InputError(f"--titles: there is no file {path}.")
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"--titles must end in .csv, .tsv or .parquet: got {path}.")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        layout = delimited.LAYOUTS[suffix[1:]]._replace(others=_SEPARATORS)
        file = delimited.TextFile(path, layout, ledger.Ledger(), columns)
        with delimited.opened(path) as text:
            return pd.read_csv(
                text, sep=file.layout.separator, dtype=str, keep_default_na=False
            )
    except InputError as error:
        raise InputError(f"--titles {error}") from None
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--titles {path} cannot be read: {error}.") from None
