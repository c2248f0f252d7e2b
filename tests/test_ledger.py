"""Broken rows: refused with the first of them named, or counted by kind."""

import numpy as np
import pytest

from jaxrec.errors import InputError
from jaxrec.ledger import Ledger, Origin

FILE = Origin("log.csv", "line", lambda rows: [10 * row + 2 for row in rows])


def test_places():
    assert FILE.place(3) == "log.csv, line 3"
    assert Origin("log.parquet", "row").place(0) == "log.parquet, row 0 (from 0)"


def test_an_origin_follows_the_rows_that_are_left():
    """Of the rows 0..5, on the lines 2, 12, ..., first 1 and 4 go, then 0 and 3."""
    one = FILE.without(np.array([0, 1, 0, 0, 1, 0], bool))
    two = one.without(np.array([1, 0, 1, 0], bool))
    assert one.first(np.ones(4, bool)) == [2, 22, 32, 52]
    assert two.first(np.array([False, True])) == [52]


def test_only_the_first_few_rows_are_looked_up():
    asked = []

    def numbers(rows):
        asked.extend(rows.tolist())
        return rows.tolist()

    is_bad = np.arange(100) % 2 == 1
    assert Origin("", "row", numbers).first(is_bad) == [1, 3, 5, 7, 9] == asked


@pytest.mark.parametrize(
    "count, first, got, message",
    [
        (1, [3], None, r"^log.csv, line 3: is odd\. Correct or remove such rows, or"),
        (2, [3, 8], "x", r"line 3: is odd, got 'x' \(2 such rows: lines 3, 8\)\. C"),
        (
            9,
            [*range(2, 11)],
            "",
            r"got '' \(9 such rows: lines 2, 3, 4, 5, 6, \.\.\.\)",
        ),
        (1, [3], "y" * 99, f"got '{'y' * 60}'"),
    ],
)
def test_an_error_names_the_first_rows_and_the_option(count, first, got, message):
    ledger = Ledger()
    with pytest.raises(InputError, match=message) as raised:
        ledger.reject("is odd", count, first, FILE, got)
    assert str(raised.value).endswith("data.broken=skip.")
    assert ledger.report() == {} and ledger.num_rows == 0


def test_rows_are_counted_by_kind():
    ledger = Ledger("skip")
    assert ledger.report() == {"rows_broken": 0}
    ledger.reject("is odd", 4, [1, 2, 3, 4], FILE)
    ledger.reject("is even", 1, [7], FILE, "got")
    ledger.reject("is odd", 3, [8, 9, 11], FILE)
    assert ledger.num_rows == 8
    assert ledger.report() == {
        "rows_broken": 8,
        "broken": {
            "is odd": {"rows": 7, "first_lines": [1, 2, 3, 4, 8]},
            "is even": {"rows": 1, "first_lines": [7]},
        },
    }


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_remarks_are_in_the_report(policy):
    ledger = Ledger(policy)
    without = ledger.report()
    ledger.remark("it is odd")
    ledger.remark("it is late")
    assert ledger.report() == without | {"remarks": ["it is odd", "it is late"]}


def test_more_broken_rows_than_others_are_another_table():
    ledger = Ledger("skip")
    ledger.reject("is odd", 5, [1], FILE)
    ledger.check(5, "log.csv")
    message = r"log.csv: 5 of 9 rows are .*: 5 rows \(lines 1, \.\.\.\): is odd\."
    with pytest.raises(InputError, match=message):
        ledger.check(4, "log.csv")
    ledger.reject("is even", 1, [2], FILE, "two")
    with pytest.raises(InputError, match=r"1 row \(line 2\): is even, got 'two'\. Che"):
        ledger.check(4, "log.csv")


def test_an_unknown_policy():
    with pytest.raises(InputError, match="one of error, skip: got 'ignore'"):
        Ledger("ignore")
