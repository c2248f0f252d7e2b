"""What is to be said of a table: its broken rows, refused or counted, and remarks."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.errors import InputError

POLICIES = ("error", "skip")
_SHOWN = 5


def lines(broken: Mapping[str, Mapping]) -> list[str]:
    """For a person, the kinds of broken rows of a report: how many, which, what.

    >>> lines({"column 'item' has no value": {"rows": 3, "first_lines": [4, 9]}})
    ["3 rows (lines 4, 9, ...): column 'item' has no value"]
    >>> lines({"column 'item' has no value": {"rows": 1, "first_rows": [0]}})
    ["1 row (row 0, from 0): column 'item' has no value"]
    """
    shown = []
    for problem, kind in broken.items():
        ((unit, numbers),) = ((k, kind[k]) for k in kind if k.startswith("first_"))
        rows, unit = kind["rows"], unit.removeprefix("first_").removesuffix("s")
        listed = ", ".join(map(str, numbers)) + ", ..." * (rows > len(numbers))
        many = "s" * (rows > 1)
        where = f"{unit}{many} {listed}{', from 0' * (unit == 'row')}"
        shown.append(f"{rows:,} row{many} ({where}): {problem}")
    return shown


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the rows of a frame come from.

    Attributes:
      name: of the file; "" for a frame.
      unit: "line" (from 1) or "row" (from 0).
      numbers: lines or rows of the source, by ascending rows of the frame.
    """

    name: str
    unit: str
    numbers: Callable[[np.ndarray], Sequence[int]] = np.ndarray.tolist

    def place(self, number: int) -> str:
        """Such as "log.csv, line 3".

        >>> Origin("", "row").place(3)
        'row 3 (from 0)'
        """
        name = f"{self.name}, " if self.name else ""
        return f"{name}{self.unit} {number}{' (from 0)' * (self.unit == 'row')}"

    def first(self, is_bad_I: np.ndarray) -> list[int]:
        """The first few numbers of the rows that are bad."""
        return [int(n) for n in self.numbers(np.flatnonzero(is_bad_I)[:_SHOWN])]

    def without(self, is_bad_I: np.ndarray) -> "Origin":
        """The origin of the rows that are left."""
        kept = np.flatnonzero(~is_bad_I)
        return dataclasses.replace(self, numbers=lambda rows: self.numbers(kept[rows]))


class Ledger:
    """Takes the broken rows of one table, and remarks on it.

    Args:
      policy: "error" raises at the first kind of broken rows; "skip" counts them, each
        row once, and leaves it to the reader to go on without them.

    Attributes:
      num_rows: broken rows so far.
    """

    def __init__(self, policy: str = "error"):
        if policy not in POLICIES:
            raise InputError(
                f"broken must be one of {', '.join(POLICIES)}: got {policy!r}."
            )
        self._policy = policy
        self._kinds: dict[str, dict] = {}
        self._got: dict[str, object] = {}  # by kind, what the first row has instead
        self._remarks: list[str] = []
        self._users: set = set()  # of broken rows
        self.num_rows = 0

    def remark(self, text: str) -> None:
        """Enters what a person should know of how the table was read."""
        self._remarks.append(text)

    def reject(
        self,
        problem: str,
        count: int,
        first: Sequence[int],
        origin: Origin,
        got: object = None,
        users: Iterable = (),
    ) -> None:
        """Enters rows that are broken in one way.

        Args:
          problem: what is wrong with them, such as "column 'item' has no value".
          count: their number, at least 1.
          first: lines or rows of the first of them, ascending.
          origin: says what these are.
          got: what the first of them has instead.
          users: theirs, as far as they are known.

        Raises:
          InputError: the policy is "error".
        """
        shown = list(first[:_SHOWN])
        if self._policy == "error":
            more = ""
            if count > 1:
                listed = ", ".join(map(str, shown)) + ", ..." * (count > len(shown))
                more = f" ({count} such rows: {origin.unit}s {listed})"
            instead = "" if got is None else f", got {str(got)[:60]!r}"
            raise InputError(
                f"{origin.place(shown[0])}: {problem}{instead}{more}. Correct or "
                "remove such rows, or skip and count them: data.broken=skip."
            )
        kind = self._kinds.setdefault(problem, {"rows": 0, f"first_{origin.unit}s": []})
        if got is not None:
            self._got.setdefault(problem, got)
        kind["rows"] += count
        numbers = kind[f"first_{origin.unit}s"]
        numbers += shown[: _SHOWN - len(numbers)]
        self.num_rows += count
        self._users.update(users)

    def remark_on_users(self, column: Any) -> None:
        """Remarks on the users whose rows are all broken.

        Args:
          column: a pandas Series, the users of all other rows.
        """
        if lost := self._users and self._users - set(column.unique()):
            shown = ", ".join(sorted(map(str, lost))[:_SHOWN])
            more = ", ..." * (len(lost) > _SHOWN)
            many = "s" * (len(lost) > 1)
            self.remark(f"{len(lost):,} user{many} of broken rows only: {shown}{more}")

    def check(self, num_left: int, name: str) -> None:
        """Raises InputError if more rows are broken than are left: it is another table.

        Args:
          num_left: rows that are not broken.
          name: of the table.
        """
        if self.num_rows > num_left:
            kinds = "; ".join(
                f"{line}, got {str(self._got[problem])[:60]!r}"
                if problem in self._got
                else line
                for problem, line in zip(self._kinds, lines(self._kinds), strict=True)
            )
            raise InputError(
                f"{name}: {self.num_rows} of {self.num_rows + num_left} rows are "
                f"broken, which are too many to skip: {kinds}. Check the format and "
                "the names of the columns."
            )

    def report(self) -> dict:
        """For the record: the number of skipped rows, which they are, and the remarks.

        Returns:
          `rows_broken`, but under the policy "error", where no row is ever broken; and,
          if there are any, `broken`: {problem: {"rows", "first_lines"}}, and `remarks`.
        """
        report: dict = {} if self._policy == "error" else {"rows_broken": self.num_rows}
        lists = {"broken": self._kinds, "remarks": self._remarks}
        return report | {name: entries for name, entries in lists.items() if entries}
