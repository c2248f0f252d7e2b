"""Tables in files: part by part, whole or not at all."""

import pandas as pd
import pytest

from jaxrec import output
from jaxrec.errors import InputError

PARTS = [
    pd.DataFrame({"user": ["a", "b"], "score": [1.5, 2.0]}),
    pd.DataFrame({"user": ["c"], "score": [0.25]}),
]


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".parquet"])
def test_a_file_holds_the_parts_in_order(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table{suffix}"
    assert output.write(iter(PARTS), path) == 3
    read = pd.read_csv(path) if suffix != ".parquet" else pd.read_parquet(path)
    expected = pd.DataFrame({"user": ["a", "b", "c"], "score": [1.5, 2.0, 0.25]})
    pd.testing.assert_frame_equal(read, expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_part_without_rows_has_no_say_in_the_types(tmp_path, empty):
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    parts = [*PARTS]
    nothing = pd.DataFrame({"user": [], "score": []}, dtype=object)
    parts.insert(empty, nothing)
    assert output.write(parts, path) == 3
    assert pd.read_parquet(path)["user"].tolist() == ["a", "b", "c"]
    assert output.write([nothing], path) == 0
    assert pd.read_parquet(path).columns.tolist() == ["user", "score"]


def test_what_is_no_place_for_a_file_is_said_in_one_line(tmp_path):
    folder = tmp_path / "table.csv"
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        output.write(PARTS, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old\n")

    def frames():
        yield PARTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.write(frames(), path)
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_a_part_is_written_before_the_next_is_asked_for(tmp_path):
    """What makes a file of any length fit in memory."""
    path = tmp_path / "table.csv"

    def frames():
        yield PARTS[0]
        for _ in range(2000):  # beyond any buffer
            yield PARTS[1]
            sizes.append((tmp_path / ".table.csv.part").stat().st_size)

    sizes: list[int] = []
    output.write(frames(), path)
    assert sizes[1500] > 0


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--per-user must end in .csv or .parquet"):
        output.check(tmp_path / "table.xlsx", flag="--per-user")
    with pytest.raises(InputError, match="there is no folder"):
        output.check(tmp_path / "no" / "table.csv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'jaxrec\[parquet\]'"):
        output.check(tmp_path / "table.parquet")
