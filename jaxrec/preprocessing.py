"""From a frame of interactions to a Dataset: filters, then ids as numbers.

    frame, num_removed = filter_rating(readers.read("ratings.csv", rating="stars"), 4)
    dataset = encode(frame, name="my-log")

Frames are those of `readers`. A filter keeps the order of the rows and returns the
number of rows that it removed; `build` runs them all.
"""

import numpy as np

from jaxrec import columns, data, ordering
from jaxrec.columns import DataFrame
from jaxrec.errors import InputError
from jaxrec.ledger import Ledger

_TIED_SHARE = 0.5  # of a user's consecutive items: more are worth a remark


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
      frame: from `readers` or a filter.
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
      frame: from `readers` or a filter.
      policy: "first" or "last" in time is kept; "keep" keeps every row.
    """
    if policy == "keep":
        return frame, 0
    if policy not in ("first", "last"):
        raise InputError(f"duplicates must be keep, first or last: got {policy!r}.")
    user_I, _ = columns.codes(frame["user"])
    item_I, item_ids = columns.codes(frame["item"])
    pair_I = user_I * len(item_ids) + item_I
    order_I = _order_in_time(_times(frame))
    if order_I is None:
        order_I = np.arange(len(frame))
    if policy == "last":
        order_I = order_I[::-1]
    is_kept_I = np.empty(len(frame), bool)
    is_kept_I[order_I] = ~ordering.is_repeat(pair_I[order_I])
    return frame[is_kept_I], int((~is_kept_I).sum())


def k_core(frame: DataFrame, min_user: int, min_item: int) -> tuple[DataFrame, int]:
    """The largest part whose users and items have enough rows, and the rows removed.

    A removed row may leave its user or its item with too few: so on until stable.
    Repeats count: to count distinct items, drop duplicates first. (The paper's Yelp
    file counts distinct items and yet keeps repeats; it is loaded as published.)

    Args:
      frame: from `readers` or a filter.
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
    """The Dataset of a frame from `readers` or a filter.

    Users become 0..U-1 and items 1..V by ascending id: integers by value, strings by
    code point. A user's items are in time order, equal times in the frame's order;
    without times, all are in the frame's order.

    Datetimes are kept as seconds since 1970 UTC, int64 where all are whole, else
    float64: that rounds below a microsecond, but the order is made before.

    >>> frame = columns.pandas().DataFrame({"user": ["b", "a", "b"], "item": [7, 7, 5]})
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
    time_I = _times(frame)
    item_I += 1  # 0 is padding
    order_I = _order(user_I, time_I)
    return data.Dataset(
        items=item_I[order_I],
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
      frame: from `readers`.
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


def _times(frame: DataFrame) -> np.ndarray | None:
    return frame["timestamp"].to_numpy() if "timestamp" in frame else None


def _order(user_I: np.ndarray, time_I: np.ndarray | None) -> np.ndarray:
    """The stable order by user and time."""
    order_I = _order_in_time(time_I)
    if order_I is None:
        return ordering.stable_order(user_I)
    return order_I[ordering.stable_order(user_I[order_I])]


def _order_in_time(time_I: np.ndarray | None) -> np.ndarray | None:
    """The stable order by time; None if the rows have it, or no time is known."""
    if time_I is None or (time_I[1:] >= time_I[:-1]).all():
        return None
    if time_I.dtype.kind == "M":
        seconds_I = _seconds(time_I)  # most are whole: fewer bits to sort
        is_whole = seconds_I.dtype.kind == "i"
        time_I = seconds_I if is_whole else time_I.view(np.int64)
    if time_I.dtype.kind == "f":
        return np.argsort(time_I, kind="stable")
    return ordering.stable_order(time_I)


def _seconds(time_I: np.ndarray) -> np.ndarray:
    """Datetimes as seconds since 1970; numbers as they are."""
    if time_I.dtype.kind != "M":
        return time_I
    tick = np.timedelta64(1, np.datetime_data(time_I.dtype))
    ticks_a_second = int(np.timedelta64(1, "s") // tick)
    if ticks_a_second == 1:
        return time_I.view(np.int64)
    seconds_I, rest_I = np.divmod(time_I.view(np.int64), ticks_a_second)
    return seconds_I + rest_I / ticks_a_second if rest_I.any() else seconds_I
