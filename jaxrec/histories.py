"""Raw histories of users who were never in the log, in the items of a trained model.

A history may hold items that the model does not know: they are skipped and counted. One
without any item that it knows is empty; what is shown to such a user is the caller's
decision, see `recommender`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec import columns as tables
from jaxrec import ledger, preprocessing, readers
from jaxrec.data import Dataset
from jaxrec.errors import InputError
from jaxrec.lookup import Lookup

_SHOWN = 3
_FILTERS = {"rating": "min_rating", "event": "events"}  # column -> its option


def read(
    source: Any,
    items: Lookup,
    *,
    data: Mapping[str, Any],
    columns: Sequence[str] = (),
) -> Dataset:
    """The histories of new users as a log of their own, in the model's items.

    A table goes through what the log of the run went through, so that it means the same
    here: the filters by event and rating, the rule for repeats and the one for broken
    rows; not the filters by count. One without the column of events, or of ratings, is
    taken as filtered by it already, and the report remarks on it. A mapping is taken as
    it is.

    >>> items = Lookup(np.array(["ham", "jam"]), "items")
    >>> dataset = read({"ann": ["jam", "tea", "ham"], "bob": []}, items, data={})
    >>> dataset.items.tolist(), dataset.offsets.tolist()
    ([2, 1], [0, 2, 2])
    >>> dataset.report["history_items_unknown"]
    1

    Args:
      source: a mapping of an id to its items in order, oldest first; or a table of
        interactions, in memory or a file, as `readers` takes it.
      items: the items of the model.
      data: section `data` of the run's config; of a mapping nothing is asked.
      columns: the table's user, item and time, or user and item where its rows are in
        time order; by default those that `data` names.

    Returns:
      A Dataset of the model's items, in which a user may have nothing: the users of a
      mapping in its order, those of a table by ascending id. Its report says how many
      rows were broken or filtered out, and how many items were unknown.

    Raises:
      InputError: a table that cannot be read, or a mapping to something else.
    """
    if isinstance(source, Mapping):
        return _from_mapping(source, items)
    return _from_table(source, items, data, _named(columns, data))


def _from_mapping(source: Mapping, items: Lookup) -> Dataset:
    histories = []
    for user, history in source.items():
        if isinstance(history, set | frozenset):
            raise InputError(
                f"a history must be in order, oldest item first: that of {user!r} is a "
                f"{type(history).__name__}, which has none. Give a list."
            )
        if isinstance(history, str | bytes) or not hasattr(history, "__iter__"):
            raise InputError(
                f"a history must be a list of items, oldest first: that of {user!r} "
                f"is {history!r}."
            )
        histories.append(list(history))
    pd = tables.pandas()
    return _encode(
        pd.Index(list(source), tupleize_cols=False).to_numpy(),
        np.array([len(history) for history in histories], np.int64),
        [item for history in histories for item in history],
        items,
        {},
    )


def _named(columns: Sequence[str], data: Mapping[str, Any]) -> dict[str, str]:
    """The table's columns by the names that `readers` has for them."""
    rating = "" if data["min_rating"] is None else data["rating"]
    filters = {"rating": rating, "event": data["event"]}
    if not columns:
        return {name: data[name] for name in ("user", "item", "time")} | filters
    if isinstance(columns, str) or not 2 <= len(columns) <= 3:
        raise InputError(
            "columns must name user, item and time, or user and item where the rows "
            f"of histories are in time order: got {columns!r}."
        )
    user, item, *time = columns
    return {"user": user, "item": item, "time": time[0] if time else "", **filters}


def _from_table(
    source: Any, items: Lookup, data: Mapping[str, Any], names: dict[str, str]
) -> Dataset:
    rows = ledger.Ledger(data["broken"])
    try:
        frame = _read_table(source, names, rows)
    except readers.NoRows:
        return _from_mapping({}, items)
    for name in _FILTERS:
        if names[name] and name not in frame:
            rows.remark(
                f"without a column {names[name]!r} all rows are taken to be of "
                f"data.{_FILTERS[name]}={data[_FILTERS[name]]}"
            )
    report = {"rows_read": len(frame) + rows.num_rows, **rows.report()}
    # As numbers, so that users of whom a filter leaves nothing keep their place.
    code_I, user_ids = tables.sorted_codes(frame["user"])
    frame = _filtered(frame.assign(user=code_I), data, report)
    length_U = np.zeros(len(user_ids), np.int64)
    if frame.empty:
        return _encode(user_ids, length_U, [], items, report)
    log = preprocessing.encode(frame, name="histories")
    length_U[log.user_ids] = log.lengths
    return _encode(user_ids, length_U, log.item_ids, items, report, log.items - 1)


def _read_table(source: Any, names: dict[str, str], rows: ledger.Ledger) -> Any:
    """The frame that `readers` makes of it, errors told in words of histories."""
    options: Any = {**names, "optional": tuple(_FILTERS), "ledger": rows}
    try:
        if not isinstance(source, str | os.PathLike):
            return readers.as_frame(source, **options)
        if not os.path.exists(source):
            raise InputError(f"there is no file {source}.")
        return readers.read(source, **options)
    except readers.NoRows:
        raise  # to be answered: no histories
    except readers.NotATable as error:
        raise InputError(
            f"histories: {error} Or give a mapping of each user to a list of items, "
            "oldest first: {user: [item, item]}."
        ) from None
    except tables.MissingColumn as error:
        raise InputError(
            f"histories: {error.fact} Name them by columns=(user, item, time), on the "
            "command line --columns; without a time, rows are in time order."
        ) from None
    except InputError as error:
        raise InputError(f"histories: {error}") from None


def _filtered(frame: Any, data: Mapping[str, Any], report: dict) -> Any:
    """What the filters of the log leave of it; `report` takes the rows removed."""
    if "rating" in frame:
        frame, report["rows_below_min_rating"] = preprocessing.filter_rating(
            frame, data["min_rating"]
        )
    if "event" in frame:
        # Not `preprocessing.filter_events`: a few histories need not have every event.
        is_kept_I = frame["event"].astype(str).isin(data["events"]).to_numpy()
        report["rows_of_other_events"] = int((~is_kept_I).sum())
        frame = frame[is_kept_I]
    frame, report["rows_duplicate"] = preprocessing.drop_duplicates(
        frame, data["duplicates"]
    )
    return frame


def _encode(
    user_ids: np.ndarray,
    length_U: np.ndarray,
    id_V: Sequence[Any] | np.ndarray,
    items: Lookup,
    report: dict,
    place_I: np.ndarray | None = None,
) -> Dataset:
    """The Dataset of histories end to end, whose entry i is id_V[place_I[i]]."""
    position_V = items.positions(id_V)
    position_I = position_V if place_I is None else position_V[place_I]
    is_known_I = position_I >= 0
    user_I = np.repeat(np.arange(len(length_U)), length_U)
    known_U = np.bincount(user_I[is_known_I], minlength=len(length_U))
    unknown = dict.fromkeys(
        str(id_V[v]) for v in np.flatnonzero(position_V < 0).tolist()
    )
    return Dataset(
        items=(position_I[is_known_I] + 1).astype(np.int32),
        offsets=np.append(0, np.cumsum(known_U)).astype(np.int64),
        user_ids=user_ids,
        item_ids=items.id_N,
        name="histories",
        report={
            **report,
            "history_items": len(position_I),
            "history_items_unknown": int((~is_known_I).sum()),
            "first_unknown_items": list(unknown)[:_SHOWN],
        },
    )
