"""Files and tables in memory to frames, against literal files."""

import bz2
import datetime
import gzip
import math

import numpy as np
import pandas as pd
import pytest

from jaxrec import columns, delimited, preprocessing, readers
from jaxrec.errors import InputError
from jaxrec.ledger import Ledger


@pytest.fixture
def write(tmp_path):
    """Writes bytes or text to a file of that name and returns its path."""

    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(frame) -> list[tuple]:
    return list(frame.itertuples(index=False, name=None))


# --- formats -------------------------------------------------------------------------


def test_text(write):
    frame = readers.read(write("log.txt", "  7 1\n\n3\t20 \r\n   \n7 5\n\n"))
    assert list(frame.columns) == ["user", "item"]
    assert rows(frame) == [(7, 1), (3, 20), (7, 5)]
    assert (frame.dtypes == np.int64).all()


def test_text_with_strings_and_a_byte_order_mark(write):
    path = write("log.txt", b"\xef\xbb\xbf" + 'zoé "x\nbob y#1\n'.encode())
    assert rows(readers.read(path)) == [("zoé", '"x'), ("bob", "y#1")]


def test_movielens(write):
    path = write("ratings.dat", "1::1193::5::978300760\n2::661::3.5::978302109\n")
    frame = readers.read(path, rating="any")
    assert list(frame.columns) == ["user", "item", "timestamp", "rating"]
    assert rows(frame) == [(1, 1193, 978300760, 5.0), (2, 661, 978302109, 3.5)]
    assert list(readers.read(path, time="").columns) == ["user", "item"]


CSV = 'userId,title,movieId,rating\n1,"Us, 2\nthem",9,4.5\n\n2,"a ""b""",8,3\n'


@pytest.mark.parametrize("suffix, separator", [("csv", ","), ("tsv", "\t")])
def test_delimited(write, suffix, separator):
    text = CSV.replace(",", separator).replace("Us\t", "Us,")
    path = write(f"log.{suffix}", text)
    names = {"user": "userId", "item": "movieId", "time": ""}
    assert rows(readers.read(path, **names)) == [(1, 9), (2, 8)]
    frame = readers.read(path, **names, rating="rating")
    assert list(frame.columns) == ["user", "item", "rating"]
    assert rows(frame) == [(1, 9, 4.5), (2, 8, 3.0)]


def test_csv_with_a_byte_order_mark(write):
    path = write("log.csv", b"\xef\xbb\xbfuser,item\n1,2\n")
    assert rows(readers.read(path, time="")) == [(1, 2)]


def test_parquet_file_and_folder(tmp_path):
    table = pd.DataFrame({"t": [3, 4], "who": ["a", "b"], "what": [2**63, 1], "x": 0.0})
    table.to_parquet(tmp_path / "part-1.parquet")
    names = {"user": "who", "item": "what", "time": "t"}
    frame = readers.read(tmp_path / "part-1.parquet", **names)
    assert rows(frame) == [("a", 2**63, 3), ("b", 1, 4)]
    table.to_parquet(tmp_path / "part-2.parquet")
    frame = readers.read(tmp_path, format="parquet", **names)
    assert rows(frame) == [("a", 2**63, 3), ("b", 1, 4)] * 2


def test_the_format_can_be_given(write):
    path = write("u.data", "user\titem\n1\t2\n")
    assert rows(readers.read(path, format="tsv", time="")) == [(1, 2)]


def test_chunks_join(write, monkeypatch):
    """Columns whose kind changes between chunks of the parser are read as one."""
    monkeypatch.setattr(delimited, "_CHUNK_ROWS", 2)
    path = write("log.csv", "user,item,timestamp\n1,1,1\n2,2,2\n3,x,3.5\n4,4,4\n")
    frame = readers.read(path)
    assert rows(frame) == [(1, "1", 1.0), (2, "2", 2.0), (3, "x", 3.5), (4, "4", 4.0)]


# --- ids are exact -------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids, expected",
    [
        (["7", "-3", "0"], [7, -3, 0]),
        (["9007199254740993", "9007199254740992"], [2**53 + 1, 2**53]),
        (["18446744073709551615", "1"], [2**64 - 1, 1]),
        (["18446744073709551616", "1"], ["18446744073709551616", "1"]),
        (["18446744073709551615", "-1"], ["18446744073709551615", "-1"]),
        (["007", "7"], ["007", "7"]),
        (["7", "+7"], ["7", "+7"]),
        (["7", "00"], ["7", "00"]),
        (["1.0", "1"], ["1.0", "1"]),
        (["1e3", "1000"], ["1e3", "1000"]),
        (["True", "true"], ["True", "true"]),
        (["NA", "null", "None"], ["NA", "null", "None"]),
        (["0", "10", "1"], [0, 10, 1]),
    ],
)
@pytest.mark.parametrize("column", ["user", "item"])
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_ids_are_what_the_file_says(write, ids, expected, column, suffix):
    is_user = column == "user"
    lines = [(x, "0") if is_user else ("0", x) for x in ids]
    separator = "," if suffix == "csv" else " "
    head = "user,item\n" if suffix == "csv" else ""
    text = head + "".join(separator.join(line) + "\n" for line in lines)
    frame = readers.read(write(f"log.{suffix}", text), time="")
    assert frame[column].tolist() == expected
    assert frame["item" if is_user else "user"].tolist() == [0] * len(ids)


def test_quoted_padded_id(write):
    frame = readers.read(write("log.csv", 'user,item\n"007",1\n7,1\n'), time="")
    assert frame["user"].tolist() == ["007", "7"]


def test_a_time_of_day_does_not_make_strings_of_ids(write):
    """The search for padded numbers also finds ' 03': the ids are still integers."""
    path = write("log.csv", "user,item,timestamp\n10,9,2015-01-02 03:04:05\n")
    assert delimited.has_padded_number(path, delimited.LAYOUTS["csv"])
    assert readers.read(path)["user"].tolist() == [10]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_padded_numbers_are_found_across_blocks(write, monkeypatch, block):
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", block)
    layout = delimited.LAYOUTS["text"]
    assert delimited.has_padded_number(write("a.txt", "10 1\n20 07\n"), layout)
    assert delimited.has_padded_number(write("b.txt", "01 1\n"), layout)
    assert not delimited.has_padded_number(write("c.txt", "10 0\n100 1\n"), layout)


# --- times ---------------------------------------------------------------------------


def times(write, values) -> pd.Series:
    lines = [f"{n},1,{value}" for n, value in enumerate(values)]
    path = write("log.csv", "\n".join(["user,item,timestamp", *lines]))
    return readers.read(path)["timestamp"]


def test_times_in_numbers_are_as_given(write):
    got = times(write, [2**53 + 1, 5])
    assert got.tolist() == [2**53 + 1, 5] and got.dtype == np.int64
    got = times(write, ["1420070400.25", "3"])
    assert got.tolist() == [1420070400.25, 3.0] and got.dtype == np.float64


def utc(*fields) -> float:
    return datetime.datetime(*fields, tzinfo=datetime.UTC).timestamp()


def test_iso_times_become_seconds(write):
    path = write(
        "log.csv",
        "user,item,timestamp\n1,1,2015-01-02T03:04:05Z\n1,2,2015-01-02\n"
        "1,3,2015-01-02 03:04:05+02:00\n1,4,1969-12-31T23:59:58Z\n"
        "1,5,2015-01-02 03:04:06 UTC\n1,6,2015-01-02 03:04:06.5 UTC\n",
    )
    log = preprocessing.encode(readers.read(path))
    assert log.timestamps.tolist() == [
        -2,
        utc(2015, 1, 2),
        utc(2015, 1, 2, 1, 4, 5),
        utc(2015, 1, 2, 3, 4, 5),
        utc(2015, 1, 2, 3, 4, 6),
        utc(2015, 1, 2, 3, 4, 6) + 0.5,
    ]
    assert log.items.tolist() == [4, 2, 3, 1, 5, 6]


@pytest.mark.parametrize("others", [[], ["2015-01-02"], ["2015-01-02T03:04:07.25"]])
def test_times_of_big_query_with_and_without_fractions(write, others):
    """Whole and broken seconds are of other units, whatever stands beside them."""
    stamps = ["2015-01-02 03:04:05.123456 UTC", "2015-01-02 03:04:06 UTC", *others]
    got = times(write, stamps).iloc[:2]
    expected = ["2015-01-02T03:04:05.123456", "2015-01-02T03:04:06"]
    assert got.tolist() == [pd.Timestamp(text) for text in expected]


def test_rows_over_several_lines_are_remarked_on(write):
    ledger = Ledger()
    text = 'user,item,timestamp,title\n1,1,1,"x\n1,2,2,y"\n1,3,3,z\n'
    frame = readers.read(write("a.csv", text), ledger=ledger)
    assert rows(frame) == [(1, 1, 1), (1, 3, 3)]
    (remark,) = ledger.report()["remarks"]
    assert remark.startswith("1 row runs over several lines, within quotes; the first")
    assert remark.endswith("in line 2")


def test_whole_seconds_are_integers(write):
    log = preprocessing.encode(
        pd.DataFrame({"user": 1, "item": 1, "timestamp": times(write, ["2015-01-02"])})
    )
    assert log.timestamps.dtype == np.int64
    with pytest.raises(InputError, match="got '2015-01-02T03:04:05.01:00 UTC'"):
        times(write, ["2015-01-02T03:04:05+01:00 UTC"])  # which of the two?


def test_the_order_of_times_is_kept_below_what_seconds_can_hold(write):
    """Nanoseconds at 2015 are all the same float64; the rows are still in order."""
    ends = ["000000003", "000000001", "000000002", "5"]
    stamps = [f"1,{n},2015-01-02T00:00:00.{end}Z" for n, end in enumerate(ends)]
    path = write("log.csv", "\n".join(["user,item,timestamp", *stamps]))
    log = preprocessing.encode(readers.read(path))
    assert log.items.tolist() == [2, 3, 1, 4]
    assert log.timestamps.tolist() == [utc(2015, 1, 2)] * 3 + [utc(2015, 1, 2) + 0.5]


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2015-01-02T03:04:05.5", "1969-12-31T23:59:59.5"]),
        pd.to_datetime(["2015-01-02T03:04:05.5Z", "1969-12-31T23:59:59.5Z"]),
        pd.to_datetime(["2015-01-02T04:04:05.5+01:00", "1970-01-01T00:59:59.5+01:00"]),
        pd.to_datetime(["2015-01-02T03:04:05.5", "1969-12-31T23:59:59.5"]).as_unit(
            "ms"
        ),
        pd.array(
            pd.to_datetime(["2015-01-02T03:04:05.5", "1969-12-31T23:59:59.5"]),
            "timestamp[us][pyarrow]",
        ),
        [
            datetime.datetime(2015, 1, 2, 3, 4, 5, 500_000),
            datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000),
        ],
        ["2015-01-02T03:04:05.5", "1969-12-31T23:59:59.5"],
    ],
    ids=["naive", "utc", "zone", "ms", "arrow", "python", "text"],
)
def test_datetimes_become_seconds(values):
    frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "timestamp": values})
    log = preprocessing.encode(readers.as_frame(frame))
    assert log.items.tolist() == [2, 1]
    assert log.timestamps.tolist() == [-0.5, utc(2015, 1, 2, 3, 4, 5) + 0.5]


def test_dates_become_seconds():
    days = [datetime.date(2015, 1, 2), datetime.date(1969, 12, 31)]
    frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "timestamp": days})
    log = preprocessing.encode(readers.as_frame(frame))
    assert log.timestamps.tolist() == [-86400, utc(2015, 1, 2)]


@pytest.mark.parametrize(
    "dtype", ["int32", "uint8", "Int64", "int64[pyarrow]", "float32", object, str]
)
def test_kinds_of_numeric_time(dtype):
    frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "timestamp": [9, 3]})
    log = preprocessing.encode(readers.as_frame(frame.astype({"timestamp": dtype})))
    assert log.items.tolist() == [2, 1]
    assert log.timestamps.tolist() == [3, 9]
    assert log.timestamps.dtype == (np.float64 if dtype == "float32" else np.int64)


# --- what cannot be read -------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "1 2\n\n3\n4 5\n", r"a.txt, line 3: expected 'user item', got '3'"),
        ("a.txt", "1 2\n3 4 5\n", r"a.txt, line 2: expected 'user item', got '3 4 5'"),
        ("a.txt", "1 2 3\n4 5 6\n", r"a.txt, line 1: expected 'user item'"),
        (
            "a.txt",
            "1 2\nnan 4\n",
            r"a.txt, line 2: column 'user' has no value\. Correct",
        ),
        ("a.txt", "user item\n1 2\n3 4\n", "line 1: 'user item' looks like a header"),
        ("a.txt", "", "a.txt has no rows"),
        ("a.txt", b"1 2\n\xe9 4\n", "line 2: not UTF-8"),
        (
            "a.txt",
            b"\x1f\x8b\x08\x00\x00",
            r"line 1: not UTF-8 text \(to be converted, or unpacked\)",
        ),
        (
            "a.dat",
            "1::2::3::4\n1::2::3\n",
            "line 2: expected 'user::item::rating::time",
        ),
        ("a.dat", "1::2::3::4\n1::2:3::4\n", "line 2: expected .* got '1::2:3::4'"),
        ("a.dat", "1::2::3::4\n1:2:3:4:5:6:7\n", "line 2: expected 'user::item"),
        ("a.dat", "1::2::3::4\n1::2::3::4::5\n", "line 2: expected 'user::item"),
        (
            "a.dat",
            "1::2::3::4\n1::2::3::x\n",
            "line 2: column 'timestamp' has no number",
        ),
        ("a.csv", "user,item,timestamp\n1,2,3\n1,2,3,4\n", "line 3: expected 3 fields"),
        ("a.csv", "user,item,timestamp\n1,2,3,4\n1,2,3\n", "line 2: expected 3 fields"),
        (
            "a.csv",
            "user,item,timestamp,x\n1,2,3,4\n1,3,4\n",
            "line 3: expected 4 field",
        ),
        ("a.csv", 'user,item,timestamp\n1,2,3\n\n"1,2\n,3\n', "line 4: unexpected end"),
        ("a.csv", "user,item,timestamp\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "user,item,timestamp\n1,,3\n", "line 2: column 'item' has no value"),
        (
            "a.csv",
            'user,item,timestamp\n"1\n1",2,3\n\n1,2,\n1,2,nan\n',
            r"line 5: column 'timestamp' has no value \(2 such rows: lines 5, 6\)",
        ),
        (
            "a.csv",
            "user,item,timestamp\n1,2,3\n1,2,inf\n",
            "line 3: .* no finite number",
        ),
        (
            "a.csv",
            "user,item,timestamp\n1,2,2015-01-02\n1,2,2015-13-02\n",
            "line 3: .* no number or ISO 8601 time, got '2015-13-02'",
        ),
        (
            "a.csv",
            "user,item,timestamp\n1,2,978300760\n1,2,yesterday\n1,2,978300761\n",
            "line 3: .* no number or ISO 8601 time, got 'yesterday'",
        ),
        ("a.csv", "user,user,timestamp\n1,2,3\n", "one column 'user', got 2 of that"),
        (
            "a.xyz",
            "1 2\n",
            "unknown format '.xyz'. Say data.format=NAME with one of text",
        ),
        ("a.parquet", "PAR1", "a.parquet cannot be read as Parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line(write, name, content, message):
    with pytest.raises(InputError, match=message) as raised:
        readers.read(write(name, content))
    assert "\n" not in str(raised.value)


def test_a_bad_row_is_found_in_a_later_chunk(write, monkeypatch):
    monkeypatch.setattr(delimited, "_CHUNK_ROWS", 2)
    for bad in ("3", "3 4 5"):
        path = write("a.txt", f"1 2\n\n1 2\n1 2\n{bad}\n")
        with pytest.raises(
            InputError, match=f"line 5: expected 'user item', got '{bad}'"
        ):
            readers.read(path)


def test_a_short_row_is_found_in_an_earlier_chunk(write, monkeypatch):
    """What it misses is not asked for, but its fields are not where they belong."""
    monkeypatch.setattr(delimited, "_CHUNK_ROWS", 2)
    path = write("a.csv", "user,x,item,timestamp,y\n1,2,3,4\n" + "1,2,3,4,5\n" * 3)
    with pytest.raises(InputError, match="line 2: expected 5 fields.*got '1,2,3,4'"):
        readers.read(path)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("BZ2", bz2.compress)]
)
def test_a_packed_file_is_the_file(write, monkeypatch, suffix, pack):
    """Also where rows are broken, quoted over lines, or padded numbers."""
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 11)
    content = 'user,item,timestamp\n1,"a\nb",3\n2,1\n\n007,x,4\n9,y,z\n4,5,6\n'
    plain = skip(write("log.csv", content))
    assert plain[0] == [("1", "a\nb", 3), ("007", "x", 4), ("4", "5", 6)]
    assert [kind["first_lines"] for kind in plain[1]["broken"].values()] == [[4], [7]]
    assert skip(write(f"log.csv.{suffix}", pack(content.encode()))) == plain
    path = write(f"log.tsv.{suffix}", pack(b"user\titem\n1\t2\n"))
    assert rows(readers.read(path, time="")) == [(1, 2)]
    path = write(f"log.txt.{suffix}", pack(b"1 2\n3\n"))
    with pytest.raises(InputError, match=f"log.txt.{suffix}, line 2: expected 'user i"):
        readers.read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", b"1 2\n", "a.txt.gz cannot be read: Not a gzipped file"),
        ("a.txt.bz2", b"1 2\n", "a.txt.bz2 cannot be read: Invalid data stream"),
        ("a.txt.gz", gzip.compress(b"1 2\n" * 99)[:-9], "cannot be read: Compressed"),
        (
            "a.csv.xz",
            b"1,2\n",
            "unknown format '.xz'.* text may be packed: .gz or .bz2",
        ),
    ],
    ids=["not gzip", "not bzip2", "cut off", "xz"],
)
def test_a_packed_file_that_cannot_be_unpacked(write, name, content, message):
    with pytest.raises(InputError, match=message):
        readers.read(write(name, content))


def test_a_bad_rating(write):
    path = write("a.csv", "user,item,rating\n1,2,3\n1,2,good\n")
    with pytest.raises(InputError, match="line 3: .*no finite number, got 'good'"):
        readers.read(path, time="", rating="rating")


def test_a_missing_column_lists_the_nearest_first(write):
    path = write("a.csv", "rating,movieId,userId,timestamp\n")
    with pytest.raises(
        InputError,
        match="a.csv: expected one column 'user', got 0 .* userId, .* data.user=NAME",
    ):
        readers.read(path)
    path = write("b.csv", "user,item,when,time\n")
    with pytest.raises(
        InputError, match="'timestamp'.* first: time, .* data.time=NAME .*data.time= "
    ):
        readers.read(path)


@pytest.mark.parametrize(
    "header, message",
    [
        ("user;item;timestamp", "They look separated by ';': read .* data.format=csv"),
        ("user,item,timestamp", "They look separated by ',': read .* data.format=csv"),
        ("user\t item\t timestamp", "column 'item', .* nearest first: ' item', ' time"),
    ],
)
def test_a_header_of_another_separator_or_with_spaces(write, header, message):
    with pytest.raises(InputError, match=message):
        readers.read(write("a.tsv", f"{header}\n"))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_is_separated_as_its_header_is(write, separator):
    content = '"user";x;item;timestamp\n1;"3,5;y";2;5\n7;"a\nb";8;6\n3;4\n'
    found, report = skip(write("log.csv", content.replace(";", separator)))
    assert found == [(1, 2, 5), (7, 8, 6)]
    first, _ = report.pop("remarks")  # and the row of two lines
    assert first == f"the fields of the file are separated by {separator!r}"
    assert report == kinds(**{FIELDS.replace("3", "4"): [5]})


def test_a_sign_for_spreadsheets_is_no_header(write):
    with pytest.raises(InputError, match="a.csv, line 1: 'sep=' is a sign"):
        readers.read(write("a.csv", "sep=;\nuser;item;timestamp\n1;2;3\n"))


def test_a_csv_with_commas_may_have_semicolons(write):
    found, report = skip(write("log.csv", "user,a;b;c;d;e,item\n1,;,2\n"), time="")
    assert found == [(1, 2)] and "remarks" not in report


def test_a_csv_without_the_columns_shows_them_cut(write):
    """By the separator that finds most of them."""
    path = write("log.csv", "who, if known;what;when\n")
    with pytest.raises(
        InputError, match="first: when, who, if known, what. Say data.u"
    ):
        readers.read(path)


def test_no_such_file_or_a_folder(tmp_path):
    for name in ("a.txt", "a.parquet"):
        with pytest.raises(
            InputError, match=f"no file .*{name}; the current folder is"
        ):
            readers.read(tmp_path / name)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(InputError, match="b.csv cannot be read: Is a directory"):
        readers.read(tmp_path / "b.csv")


def test_a_gap_in_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"user": [1, 2, 3], "item": pd.array([1, None, 2**53 + 1], "Int64")}
    pd.DataFrame(table).to_parquet(path)
    with pytest.raises(InputError, match=r"a.parquet, row 1 \(from 0\): column 'item'"):
        readers.read(path, time="")


# --- broken rows, skipped ------------------------------------------------------------


def skip(path, **options):
    """(rows, report) of a file that is read without its broken rows."""
    ledger = Ledger("skip")
    frame = readers.read(path, ledger=ledger, **options)
    assert frame.index.tolist() == [*range(len(frame))]
    return rows(frame), ledger.report()


def kinds(**lines) -> dict:
    total = sum(len(numbers) for numbers in lines.values())
    broken = {
        kind: {"rows": len(numbers), "first_lines": numbers[:5]}
        for kind, numbers in lines.items()
    }
    return {"rows_broken": total, "broken": broken}


FIELDS = "expected 3 fields, as in the header"


@pytest.mark.parametrize(
    "content, expected, broken",
    [
        ("a,1,3\nb,1\nc,1,5\n", [("a", 1, 3), ("c", 1, 5)], {FIELDS: [3]}),
        ("a,1,3,9\nb,1,4\n\nc,1,5,9", [("b", 1, 4)], {FIELDS: [2, 5]}),
        (
            # An open quote takes the next lines with it, and gives them back.
            'a,1,3\nb,"1,3\nc,1,5\nd,1,6\n',
            [("a", 1, 3), ("c", 1, 5), ("d", 1, 6)],
            {"unexpected end of data": [3]},
        ),
        (
            'a,1,3\nb,"1,3\nc,1\nd,1,6\n',
            [("a", 1, 3), ("d", 1, 6)],
            {"unexpected end of data": [3], FIELDS: [4]},
        ),
        (
            '"b"b,1,3\n"c ""x""\ny",1,5\nd,"1"\nd,1,6\n',
            [('c "x"\ny', 1, 5), ("d", 1, 6)],
            {"',' expected after '\"'": [2], FIELDS: [5]},
        ),
        (
            "a,1,3\nb,1,\n,,\nc,1,yesterday\nd,1,1970-01-01\ne,2,5\nf,3,6",
            [("a", 1, 3), ("e", 2, 5), ("f", 3, 6)],
            {
                "column 'user' has no value": [4],
                "column 'timestamp' has no value": [3],
                "column 'timestamp' has no number or ISO 8601 time": [5, 6],
            },
        ),
        (
            f"a,1,{2**53 + 1}\nb,{2**63},inf\nc,007,5\n",
            [("a", "1", 2**53 + 1), ("c", "007", 5)],
            {"column 'timestamp' has no finite number": [3]},
        ),
        (
            "1,1,3\nword,1,\n,2,5\n2,,6\n",
            [(1, 1, 3)],
            {
                "column 'user' has no value": [4],
                "column 'item' has no value": [5],
                "column 'timestamp' has no value": [3],
            },
        ),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_skipped_rows(write, monkeypatch, content, expected, broken, chunk):
    monkeypatch.setattr(delimited, "_CHUNK_ROWS", chunk)
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 7 * chunk)
    again = expected[-1][:2] + (9,)
    line = ",".join(map(str, again))
    content = "user,item,timestamp\n" + content + f"\n{line}" * 6
    found, report = skip(write("log.csv", content))
    assert found == expected + [again] * 6
    report.pop("remarks", None)
    assert report == kinds(**broken)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('user-1,"item-3,5', "',' expected after '\"'"),
        ('user-1,"12"" vinyl,5', "',' expected after '\"'"),
    ],
)
def test_two_open_quotes_swallow_no_rows(write, line, problem):
    """The C parser takes all between them for one field, and one row for right."""
    lines = ["user,item,timestamp", *(f"user-{n},item-{n % 9},{n}" for n in range(30))]
    lines[10] = lines[20] = line
    found, report = skip(write("log.csv", "\n".join(lines)))
    good = [n for n in range(30) if n not in (9, 19)]
    assert found == [(f"user-{n}", f"item-{n % 9}", n) for n in good]
    broken = {problem: [11], "unexpected end of data": [21]}
    assert report == kinds(**broken)
    with pytest.raises(InputError, match="log.csv, line 11: ',' expected"):
        readers.read(write("log.csv", "\n".join(lines)))


def test_an_id_of_several_lines_is_read_and_remarked_on(write):
    """It is right by the letter: only a person can say whether it is meant."""
    content = 'user,item,timestamp\na,"x,1\nb,y,2\nc,z",3\n' + "d,x,4\n" * 3
    found, report = skip(write("log.csv", content))
    assert found[0] == ("a", "x,1\nb,y,2\nc,z", 3) and len(found) == 4
    (remark,) = report["remarks"]
    assert "1 row runs over several lines" in remark and remark.endswith("in line 2")


@pytest.mark.parametrize(
    ("content", "is_reread"),
    [
        ('user,item,timestamp,x\n\n1,2,3,"a b"\n  \n4,5,6,"c ""d"\n\n', False),
        ("user,item,timestamp,x\r\n\r\n1,2,3,a\r\n4,5,6,b", False),
        ('user,item,timestamp,x\n1,2,3,"a\nb"\n4,5,6,x\n', True),
    ],
)
def test_a_file_is_read_again_slowly_only_where_rows_join_lines(
    write, monkeypatch, content, is_reread
):
    checks = []
    monkeypatch.setattr(
        delimited.TextFile, "_find_broken", lambda self: checks.append(1) or frozenset()
    )
    assert rows(readers.read(write("log.csv", content))) == [(1, 2, 3), (4, 5, 6)]
    assert len(checks) == is_reread


def test_users_of_broken_rows_only_are_named(write, tmp_path):
    content = "user,item,timestamp\n7,1,1\n8,,2\n9,3,x\n7,,3\n" + "1,1,1\n" * 4
    _, report = skip(write("log.csv", content))
    assert report["remarks"] == ["2 users of broken rows only: 8, 9"]
    table = {"user": [7, 8, 7, 1, 1], "item": pd.array([1, None, None, 1, 1], "Int64")}
    frame = pd.DataFrame(table)
    frame.to_parquet(tmp_path / "log.parquet")
    _, report = skip(tmp_path / "log.parquet", time="")
    assert report["remarks"] == ["1 user of broken rows only: 8"]
    ledger = Ledger("skip")
    readers.as_frame(frame, time="", ledger=ledger)
    assert ledger.report()["remarks"] == report["remarks"]


def test_spellings_of_null_are_ids_and_remarked_on(write):
    lines = ["user,item", *["NULL,1"] * 3, r"\N,2", "ann,None", "nullable,4"]
    path = write("log.csv", "\n".join(lines))
    found, report = skip(path, time="")
    ledger = Ledger("skip")
    readers.as_frame(
        pd.DataFrame(found, columns=lines[0].split(",")), time="", ledger=ledger
    )
    assert ledger.report() == report and report["rows_broken"] == 0
    assert len(found) == 6 and found[0] == ("NULL", "1")
    shown = [remark.partition(":")[0] for remark in report["remarks"]]
    assert shown == [
        "column 'user' has the id 'NULL' in 3 rows",
        r"column 'user' has the id '\\N' in 1 row",
        "column 'item' has the id 'None' in 1 row",
    ]
    assert all("data.broken=skip" in remark for remark in report["remarks"])


@pytest.mark.parametrize("missing", ["", "nan", "NaN"])
def test_what_is_missing_in_a_file_is_missing_in_a_table(write, tmp_path, missing):
    frame = pd.DataFrame({"user": ["a", missing, "Nan"], "item": ["x", "y", "z"]})
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")
    expected = [("a", "x"), ("Nan", "z")]
    assert skip(tmp_path / "log.csv", time="")[0] == expected
    assert skip(tmp_path / "log.parquet", time="")[0] == expected
    ledger = Ledger("skip")
    assert rows(readers.as_frame(frame, time="", ledger=ledger)) == expected
    assert ledger.num_rows == 1


def test_an_optional_column_may_be_missing(write, tmp_path):
    frame = pd.DataFrame({"user": [1], "item": [2], "stars": [3]})
    frame.to_csv(tmp_path / "log.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "log.parquet")
    names = {"time": "", "rating": "stars", "event": "kind"}
    optional = {"optional": ("rating", "event")}
    for suffix in ("csv", "parquet"):
        got = readers.read(tmp_path / f"log.{suffix}", **names, **optional)
        assert list(got.columns) == ["user", "item", "rating"] and len(got) == 1
        with pytest.raises(InputError, match="expected one column 'kind'"):
            readers.read(tmp_path / f"log.{suffix}", **names)
    stream = readers._pyarrow().table(frame).to_reader()  # it can be read once only
    for source in (frame, stream):
        assert len(readers.as_frame(source, **names, **optional)) == 1


def test_skipped_lines_that_are_no_text(write):
    path = write("a.txt", b"\xef\xbb\xbf1 2\n\xe9 4\n5 6\n7\n8 9\n")
    found, report = skip(path)
    assert found == [(1, 2), (5, 6), (8, 9)]
    not_text = "not UTF-8 text (to be converted, or unpacked)"
    assert report == kinds(**{not_text: [2], "expected 'user item'": [4]})


def test_skipped_rows_of_movielens(write):
    content = "1::2::3::4\n1::2:3::4\n5::6::7\n1::3::x::5\n" + "8::9::1::2\n" * 2
    found, report = skip(write("a.dat", content), rating="any")
    assert found == [(1, 2, 4, 3), (8, 9, 2, 1), (8, 9, 2, 1)]
    row = "expected 'user::item::rating::timestamp'"
    assert report == kinds(**{row: [2, 3], "column 'rating' has no finite number": [4]})


@pytest.mark.parametrize("seed", range(5))
def test_skipped_rows_equal_a_loop(write, monkeypatch, seed):
    """Rows are cut, lengthened, emptied and misquoted at random."""
    monkeypatch.setattr(delimited, "_CHUNK_ROWS", 64)
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 1000)
    rng = np.random.default_rng(seed)
    lines, good, broken = ["x,timestamp,item,user"], [], 0
    for k in range(1000):
        if rng.random() < 0.1:
            lines.append("")
        user, item = f"u{rng.integers(50)}", f"i,{rng.integers(50)}"
        wrong = rng.integers(20)
        fields = ["ab", str(k), f'"{item}"', user]
        if wrong == 0:
            fields = fields[:-1]
        elif wrong == 1:
            fields.append("more")
        elif wrong == 2:
            fields[rng.integers(1, 4)] = ""
        elif wrong == 3:
            fields[1] = "never"
        elif wrong == 4:
            fields[0] = '"open'  # closed by the quote of this row's item
        elif wrong == 5:
            fields[0] = '"a\n\n""b"'
        lines.append(",".join(fields))
        if wrong < 5:
            broken += 1
        else:
            good.append((user, item, k))
    found, report = skip(write("log.csv", "\n".join(lines)))
    assert found == good
    assert report["rows_broken"] == broken > 100


def test_a_table_of_broken_rows_is_refused(write):
    path = write("a.csv", "user,item,timestamp\n" + "1;2;3\n" * 9)
    with pytest.raises(InputError, match="9 of 9 rows are broken, .* expected 3 field"):
        skip(path)
    path = write("b.csv", "user,item,timestamp\n" + "1,2,x\n" * 3 + "1,2,3\n" * 2)
    with pytest.raises(InputError, match="b.csv: 3 of 5 rows are broken"):
        skip(path)


def test_skipped_rows_of_parquet(tmp_path):
    """The integers beside a gap stay what they are: as floats they would not."""
    table = {
        "user": ["a", None, "b", "", "c", "b"],
        "item": pd.array([2**53 + 1, 1, None, 2, 3, 2**53], "Int64"),
        "timestamp": [1.5, 2.0, 3.0, 4.0, math.nan, 5.0],
    }
    table = pd.DataFrame(table)
    path = tmp_path / "a.parquet"
    pd.concat([table, table.iloc[[0, 0]]]).to_parquet(path)
    found, report = skip(path)
    first = ("a", 2**53 + 1, 1.5)
    assert found == [first, ("b", 2**53, 5.0), first, first]
    numbers = {"user": [1, 3], "item": [2], "timestamp": [4]}
    assert report["rows_broken"] == 4
    assert {
        f"column {column!r} has no value": {"rows": len(n), "first_rows": n}
        for column, n in numbers.items()
    } == report["broken"]


def test_skipped_rows_of_a_frame():
    frame = pd.DataFrame(
        {
            "user": ["a", "b", None, "d", "e"],
            "item": 1,
            "timestamp": ["2024-01-02", "no", "2024-01-01", "", "2024-01-03T01:00"],
        },
        index=[9, 9, 8, 7, 6],
    )
    frame = pd.concat([frame, frame.iloc[[0]]])
    ledger = Ledger("skip")
    log = preprocessing.build(readers.as_frame(frame, ledger=ledger), ledger=ledger)
    assert log.user_ids.tolist() == ["a", "e"]
    assert log.report["rows_read"] == 6 and log.report["rows_broken"] == 3
    assert {k: v["first_rows"] for k, v in log.report["broken"].items()} == {
        "column 'user' has no value": [2],
        "column 'timestamp' has no value": [3],
        "column 'timestamp' has no number or ISO 8601 time": [1],
    }


@pytest.mark.parametrize("kind", ["string", "string_view", "binary_view"])
def test_skipped_rows_of_arrow(kind):
    """Gaps beside texts of every kind, also of times, which stay texts for long."""
    import pyarrow as pa

    type_ = getattr(pa, kind)()
    times = pa.string() if kind == "binary_view" else type_
    table = pa.table(
        {
            "item": pa.array([5, None, 6, 7, 8, 8]),
            "user": pa.array(["a", "b", None, "a", "b", "a"], type_),
            "timestamp": pa.array(
                ["2024-01-02", "2024", "2024", None, "1970", "2024-01-01"], times
            ),
        }
    )
    ledger = Ledger("skip")
    log = preprocessing.encode(readers.as_frame(table, ledger=ledger))
    assert log.user_ids.tolist() == ["a", "b"] and log.item_ids.tolist() == [5, 8]
    assert log.timestamps.tolist() == [19723 * 86400, 19724 * 86400, 0]
    assert {k: v["first_rows"] for k, v in ledger.report()["broken"].items()} == {
        "column 'user' has no value": [2],
        "column 'item' has no value": [1],
        "column 'timestamp' has no value": [3],
    }


# --- frames --------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {"x": ["", "-"], "who": ["b", "a"], "what": [2**63, 7], "at": [2, 1]}
)
NAMES = {"user": "who", "item": "what", "time": "at"}
ROWS = [("b", 2**63, 2), ("a", 7, 1)]


class ArrowStream:
    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


class Interchange:
    def __dataframe__(self, *args, **kwargs):
        return TABLE.__dataframe__(*args, **kwargs)


@pytest.mark.parametrize(
    "source",
    [TABLE, TABLE.set_index("x", drop=False), ArrowStream(), Interchange()],
    ids=["pandas", "index", "arrow", "interchange"],
)
def test_frames_of_any_kind(source):
    frame = readers.as_frame(source, **NAMES)
    assert list(frame.columns) == ["user", "item", "timestamp"]
    assert frame.index.tolist() == [0, 1]
    assert rows(frame) == ROWS


@pytest.mark.parametrize("one, other", [("user", "item"), ("time", "item")])
def test_two_roles_are_two_columns(one, other):
    names = {**NAMES, one: NAMES[other]}
    with pytest.raises(InputError, match="must be two columns: both are 'what'"):
        readers.as_frame(TABLE, **names)


def test_arrow_table():
    import pyarrow

    table = pyarrow.table(TABLE)
    assert rows(readers.as_frame(table, **NAMES)) == ROWS
    assert rows(readers.as_frame(table.to_reader(), **NAMES)) == ROWS


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "dictionary", "binary"]
)
def test_strings_of_arrow(kind):
    """Every way of Arrow to hold a string, in chunks of their own dictionaries."""
    import pyarrow as pa

    chunks = [["b", "a"], ["c", "b", "é"]]
    if kind == "dictionary":
        array = pa.chunked_array([pa.array(c).dictionary_encode() for c in chunks])
    else:
        array = pa.chunked_array(chunks, getattr(pa, kind)())
    table = pa.table({"who": array, "what": array, "at": pa.array([5, 4, 3, 2, 1])})
    frame = readers.as_frame(table, **NAMES)
    log = preprocessing.encode(frame)
    assert log.user_ids.tolist() == log.item_ids.tolist() == ["a", "b", "c", "é"]
    assert log.items.tolist() == [1, 2, 2, 3, 4]
    assert log.timestamps.tolist() == [4, 2, 5, 3, 1]
    assert table["who"].to_pylist()[-1] == ("é".encode() if kind == "binary" else "é")


def test_frames_of_polars():
    """What Polars itself hands over: texts as views, categories, zones, gaps."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    days = ["2024-01-02", "2024-01-01", "2024-01-03", "2024-01-04"]
    text = pl.DataFrame(
        {"at": days, "what": ["b", "a", "é", "a"], "who": [2**63, 7, 7, None]},
        schema_overrides={"who": pl.UInt64},
    )
    day = text.with_columns(pl.col("at").str.to_date())
    zone = pl.col("at").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    table = day.with_columns(zone.dt.convert_time_zone("Asia/Tokyo"))
    kinds = (pl.Categorical, pl.Enum(["é", "b", "a", "z"]), pl.Binary)
    sources = [text, day, table, *(table.cast({"what": kind}) for kind in kinds)]
    for source in sources:
        ledger = Ledger("skip")
        frame = readers.as_frame(source, **NAMES, ledger=ledger)
        log = preprocessing.encode(frame)
        assert log.user_ids.tolist() == [7, 2**63]
        assert log.item_ids.tolist() == ["a", "b", "é"]
        assert log.items.tolist() == [1, 3, 2] and log.offsets.tolist() == [0, 2, 3]
        assert log.timestamps.tolist() == [86400 * n for n in (19723, 19725, 19724)]
        assert ledger.report()["broken"] == {
            "column 'who' has no value": {"rows": 1, "first_rows": [3]}
        }
    with pytest.raises(InputError, match="LazyFrame. Call its collect"):
        readers.as_frame(text.lazy(), **NAMES)
    with pytest.raises(InputError, match="cannot be read as an Arrow table"):
        readers.as_frame(text.cast({"who": pl.Int128}), **NAMES)


def test_times_of_arrow():
    import pyarrow as pa

    days = pa.array([19724, 19723], pa.date32())  # since 1970
    texts = pa.array(["2024-01-02", "2024-01-01"])
    for times in (days, days.cast(pa.timestamp("ms")), days.cast(pa.date64()), texts):
        table = pa.table({"who": ["a", "a"], "what": [1, 2], "at": times})
        log = preprocessing.encode(readers.as_frame(table, **NAMES))
        assert log.timestamps.tolist() == [19723 * 86400, 19724 * 86400]


def test_as_frame_leaves_the_callers_frame_alone():
    table = TABLE.assign(at=["2015-01-02", "2015-01-01"])
    before = table.copy()
    readers.as_frame(table, **NAMES)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    "source, message",
    [
        ([1, 2], "expected a pandas DataFrame .* got list"),
        (TABLE.set_axis(["x", "user", "item", "timestamp"], axis=1)[:0], "no rows"),
        (TABLE, "the frame: expected one column 'user', got 0"),
        (ArrowStream(), "the table: expected one column 'user', got 0"),
        (
            pd.DataFrame({"user": ["a", None, ""], "item": 1, "timestamp": 1}),
            r"row 1 \(from 0\): column 'user' has no value \(2 such rows: rows 1, 2\)",
        ),
        (
            pd.DataFrame(
                {"user": pd.array(["a", None], "string"), "item": 1, "timestamp": 1}
            ),
            r"row 1 \(from 0\): column 'user' has no value\. Correct",
        ),
        (
            pd.DataFrame(
                {"user": 1, "item": pd.array([1, None], "Int64"), "timestamp": 1}
            ),
            r"row 1 \(from 0\): column 'item' has no value\. Correct",
        ),
        (
            pd.DataFrame({"user": 1, "item": [1, 2], "timestamp": [None, "2015"]}),
            r"row 0 \(from 0\): column 'timestamp' has no value\. Correct",
        ),
        (
            pd.DataFrame({"user": 1, "item": [1, 2], "timestamp": [1.0, math.inf]}),
            "row 1 .* no finite number, got 'inf'",
        ),
        (
            pd.DataFrame({"user": 1, "item": [1, 2], "timestamp": [True, False]}),
            "row 0 .* no number or ISO 8601 time, got 'True'",
        ),
    ],
)
def test_bad_frames(source, message):
    with pytest.raises(InputError, match=message):
        readers.as_frame(source)


def test_nearest_first_ignores_case():
    assert columns.nearest_first("item", ["USER", "ITEM"]) == ["ITEM", "USER"]
