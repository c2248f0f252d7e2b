"""Data sets by name: where they are found, how they are read and split."""

import os
import pathlib
from typing import Any, NamedTuple

from jaxrec import (
    config,
    data,
    delimited,
    download,
    ledger,
    preprocessing,
    readers,
    signature,
    splits,
    synthetic,
)
from jaxrec.errors import InputError

_PAPER = (
    "https://raw.githubusercontent.com/antklen/sasrec-bert4rec-recsys23/"
    "29c272e155cad52c8958b04e9e98557526a646e5/data/"
)
_BERT4REC = (
    "https://raw.githubusercontent.com/FeiSun/BERT4Rec/"
    "615eaf2004abecda487a38d5b0c72f3dcfcae5b3/data/"
)
_ML_1M = "sha256:b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2"
_BEAUTY = "sha256:f480b7a7403852342ffd8f9809bb30697dd669be31813d0e204b698fec86ef49"
_STEAM = "git:d277c3a119f12764dc2822eca9684949a516b244"


class Public(NamedTuple):
    """A data set of the paper: one text file, 'user item' a line, in time order.

    remotes: where it is, pinned to a commit.
    checksum: of the text file, or "" where only that of its zip is published.
    """

    remotes: tuple[download.Remote, ...]
    checksum: str = ""


PUBLIC = {
    "ml-1m": Public(
        (
            download.Remote(_PAPER + "ml-1m.txt", _ML_1M),
            download.Remote(_BERT4REC + "ml-1m.txt", _ML_1M),
        ),
        _ML_1M,
    ),
    "ml-20m": Public(
        (
            download.Remote(
                _PAPER + "ml-20m.txt.zip",
                "git:0d5275e9474179c96f1d3ed75d273f9de269f52a",
            ),
            # The same text, as the paper's README says.
            download.Remote(
                _BERT4REC + "ml-20m.zip",
                "git:94df4e7735d9776c21561168b6ee437bf969335a",
            ),
        )
    ),
    "beauty": Public(
        (
            download.Remote(_PAPER + "beauty.txt", _BEAUTY),
            download.Remote(_BERT4REC + "beauty.txt", _BEAUTY),
        ),
        _BEAUTY,
    ),
    "steam": Public(
        (
            download.Remote(_BERT4REC + "steam.txt", _STEAM),
            download.Remote(
                _PAPER + "steam.txt.zip",
                "git:66ebaeb12e06e92e7351e073242da3eda227d389",
            ),
        ),
        _STEAM,
    ),
    "yelp": Public(
        (
            download.Remote(
                _PAPER + "yelp.txt.zip",
                "git:136842233ea273d82f23ceb0dd0cb5207bd0e449",
            ),
        )
    ),
}


def load(
    name: str = "",
    path: str = "",
    *,
    frame: object | None = None,
    format: str = "",
    user: str = "user",
    item: str = "item",
    time: str = "timestamp",
    rating: str = "rating",
    min_rating: float | None = None,
    event: str = "",
    events: tuple[str, ...] = (),
    broken: str = "error",
    duplicates: str = "keep",
    min_user: int = 1,
    min_item: int = 1,
    split: str = "leave_one_out",
    holdout_n: int | None = None,
    test_from: int | float | str | None = None,
    valid_from: int | float | str | None = None,
    holdout_users: int | float | None = None,
    seed: int = 0,
) -> data.Split:
    """A data set, read, filtered, encoded and split.

    Give the name of a public data set, or "synthetic" for a made-up one that needs no
    file, or a path, or a frame.

    Args:
      name: of the data set; with a path or a frame, what results call it (else the
        file's stem).
      path: a file of interactions.
      frame: a table of interactions in memory, as `readers.as_frame` takes it.
      format: of the file: text, movielens, csv, tsv or parquet; "" goes by the suffix.
      user, item: columns of the ids.
      time: column of the times; "" where rows are in time order already.
      rating: column of the ratings, which is read where min_rating is given.
      min_rating: rows rated below are left out.
      event: column that says what a row is, such as a view or a sale.
      events: the events that are kept; all where no column is named.
      broken: rows that cannot be used (fields that do not fit, an id missing, a time
        that is none): "error" names the first, "skip" counts them by reason.
      duplicates: of equal user-item pairs, "keep" all, the "first" or the "last".
      min_user, min_item: fewest interactions of a user and of an item.
      split: how parts are held out: "leave_one_out", "leave_last_n" (by holdout_n),
        "time_point" (by test_from and valid_from) or "held_out_users" (by
        holdout_users); `splits` says what each does.
      holdout_n, test_from, valid_from, holdout_users: of those splits.
      seed: of the synthetic data set, and of the draw of held-out users.

    Raises:
      InputError: an argument, the file or a download is wrong.
    """
    hold_out = splits.choose(
        split,
        seed=seed,
        holdout_n=holdout_n,
        test_from=test_from,
        valid_from=valid_from,
        holdout_users=holdout_users,
    )
    if bool(event) != bool(events):
        raise InputError(
            "data.event names the column and data.events the events that are kept: "
            f"give both or neither, got event={event!r}, events={events}."
        )
    filters = {
        "min_rating": min_rating,
        "events": events,
        "duplicates": duplicates,
        "min_user": min_user,
        "min_item": min_item,
    }
    if name == "synthetic" and not path and frame is None:
        return hold_out(_synthetic(seed, filters))
    rows = ledger.Ledger(broken)
    told: dict[str, Any] = {"user": user, "item": item, "time": time, "event": event}
    told |= {"rating": "" if min_rating is None else rating, "ledger": rows}
    if frame is None:
        file = locate(name, path)
        # Of log.csv.gz as of log.csv: log.
        packed = file.suffix.lower() in delimited.PACKED
        name = name or (pathlib.Path(file.stem) if packed else file).stem
        table = readers.read(file, format=format, **told)
    elif path:
        raise InputError(f"give a path or a frame, not both: got path={path!r}.")
    else:
        name = name or "unnamed"
        table = readers.as_frame(frame, **told)
    return hold_out(preprocessing.build(table, name=name, **filters, ledger=rows))


def locate(name: str, path: str | os.PathLike = "") -> pathlib.Path:
    """The file of a data set, downloaded if it is nowhere yet.

    Looked for in this order: the path given, which is taken as it is; the folder
    $JAXREC_DATA; the user's cache ($XDG_CACHE_HOME/jaxrec, else ~/.cache/jaxrec), where
    a download goes too. Found or downloaded, its checksum must be right; of ml-20m and
    yelp only the download can be checked.

    Args:
      name: a key of PUBLIC, or anything where a path is given.
      path: a file of the caller's own.

    Raises:
      InputError: no such data set, a file that is not what its name says, or a download
        that failed.
    """
    if path:
        return pathlib.Path(path).expanduser()
    if name not in PUBLIC:
        names = [*PUBLIC, "synthetic"]
        if not name:
            raise InputError(
                "no data is named: give data.path=FILE or data.name=NAME, one of "
                f"{', '.join(names)}."
            )
        near = config.suggestion(name, names, what="names")
        raise InputError(
            f"no data set is named {name!r}{near}. Your own file goes to data.path."
        )
    public = PUBLIC[name]
    cached = cache() / f"{name}.txt"
    folder = os.environ.get("JAXREC_DATA")
    for file in (*([pathlib.Path(folder, cached.name)] if folder else []), cached):
        if file.is_file():
            if public.checksum and not download.matches(file, public.checksum):
                raise InputError(
                    f"{file} is not the paper's {name}: its checksum is not "
                    f"{public.checksum}. Delete it to download the right one, or give "
                    "it as data.path to use it as it is."
                )
            return file
    try:
        download.fetch(public.remotes, cached, checksum=public.checksum)
    except InputError as error:
        raise InputError(
            f"{name} cannot be downloaded: {error}. Put the file (unzipped) at "
            f"{cached} yourself, or run configs/quickstart.py, which needs none."
        ) from None
    return cached


def cache() -> pathlib.Path:
    """The user's folder for what can be made or fetched again."""
    root = os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(root or pathlib.Path.home() / ".cache", "jaxrec")


def _synthetic(seed: int, filters: dict) -> data.Dataset:
    defaults = signature.options(load)
    given = {k: v for k, v in filters.items() if v != defaults[k].default}
    if given:
        raise InputError(f"the synthetic data set takes no filters: leave out {given}.")
    return synthetic.interactions(seed=seed)
