"""Data sets by name: where they are looked for, and what is made of them."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from jaxrec import data, datasets, download, signature, splits, synthetic
from jaxrec.errors import InputError

TEXT = b"1 3\n1 1\n1 2\n2 3\n2 1\n2 2\n2 4\n"
OTHER = b"1 3\n1 1\n1 2\n"
URL = "http://127.0.0.1:9/tiny.txt"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folder of $JAXREC_DATA and that of the cache; `tiny` is the one data set."""
    checksum = "sha256:" + hashlib.sha256(TEXT).hexdigest()
    public = datasets.Public((download.Remote(URL, checksum),), checksum)
    unknown = datasets.Public((download.Remote(URL, checksum),))
    monkeypatch.setattr(datasets, "PUBLIC", {"tiny": public, "tiny-zip": unknown})
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "data").mkdir()
    (tmp_path / "cache" / "jaxrec").mkdir(parents=True)
    return tmp_path / "data", tmp_path / "cache" / "jaxrec"


@pytest.fixture
def fetched(monkeypatch):
    """What is asked to be downloaded, in place of downloading it."""
    calls = []

    def fetch(remotes, path, *, checksum):
        calls.append((remotes, path, checksum))
        path.write_bytes(TEXT)

    monkeypatch.setattr(download, "fetch", fetch)
    return calls


# --- locate --------------------------------------------------------------------------


def test_a_path_is_taken_as_it_is(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.locate("tiny", "any/file.txt").parts == ("any", "file.txt")
    assert datasets.locate("", "~/x.csv") == tmp_path / "x.csv"


def test_the_order_of_places(folders, fetched, monkeypatch):
    own, cache = folders
    assert datasets.locate("tiny") == cache / "tiny.txt"
    public = datasets.PUBLIC["tiny"]
    assert fetched == [(public.remotes, cache / "tiny.txt", public.checksum)]
    assert datasets.locate("tiny") == cache / "tiny.txt"
    (own / "tiny.txt").write_bytes(TEXT)
    assert datasets.locate("tiny") == own / "tiny.txt"
    monkeypatch.delenv("JAXREC_DATA")
    assert datasets.locate("tiny") == cache / "tiny.txt"
    assert len(fetched) == 1


def test_the_cache_is_in_the_home_folder_by_default(folders, fetched, monkeypatch):
    home = folders[0].parent / "home"
    (home / ".cache" / "jaxrec").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert datasets.locate("tiny") == home / ".cache" / "jaxrec" / "tiny.txt"


@pytest.mark.parametrize("place", [0, 1])
def test_a_local_file_that_is_another_is_refused(folders, fetched, place):
    file = folders[place] / "tiny.txt"
    file.write_bytes(OTHER)
    with pytest.raises(InputError, match="tiny.txt is not the paper's tiny: .* Delete"):
        datasets.locate("tiny")
    assert file.exists() and not fetched
    # Only the checksum of its zip is known: the text is taken as it is.
    (folders[place] / "tiny-zip.txt").write_bytes(OTHER)
    assert datasets.locate("tiny-zip") == folders[place] / "tiny-zip.txt"


def test_offline_says_what_to_do(folders):
    """Nothing listens at port 9."""
    with pytest.raises(InputError) as raised:
        datasets.locate("tiny")
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"tiny cannot be downloaded: {URL}: ")
    assert f"(unzipped) at {folders[1] / 'tiny.txt'} yourself" in message
    assert "configs/quickstart.py" in message


@pytest.mark.parametrize(
    "name, message",
    [
        ("tinny", "no data set is named 'tinny'; did you mean tiny.* data.path"),
        ("", "no data is named: give data.path=FILE or data.name=NAME, one of tiny, "),
    ],
)
def test_an_unknown_name(folders, name, message):
    with pytest.raises(InputError, match=message):
        datasets.locate(name)


def test_the_papers_data_sets():
    """Five names, each pinned to a commit and to the bytes of every file."""
    assert list(datasets.PUBLIC) == ["ml-1m", "ml-20m", "beauty", "steam", "yelp"]
    for name, public in datasets.PUBLIC.items():
        assert public.remotes
        for url, checksum in public.remotes:
            host, _, path = url.removeprefix("https://").partition("/")
            owner, repository, commit, folder, file = path.split("/")
            assert host == "raw.githubusercontent.com" and folder == "data"
            assert len(commit) == 40 and file.startswith(name) and owner and repository
            for text in (checksum, public.checksum):
                kind, _, digits = text.partition(":")
                assert {"sha256": 64, "git": 40, "": 0}[kind] == len(digits)
            assert public.checksum in ("", checksum) or url.endswith(".zip")


@pytest.mark.parametrize(
    "name, blob",
    [
        ("ml-1m", "9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24"),
        ("beauty", "16718a33ebdb33504f257421b18ae8bf3ddfe327"),
    ],
)
def test_the_checksums_are_those_of_the_commits(data_dir, name, blob):
    """The sha256 and git's id in the tree of the commit are of the same bytes."""
    file = data_dir / f"{name}.txt"
    assert download.matches(file, datasets.PUBLIC[name].checksum)
    assert download.matches(file, f"git:{blob}")


# --- load ----------------------------------------------------------------------------


def histories(split: data.Split) -> dict:
    log = split.dataset
    ids = np.split(log.item_ids[log.items - 1], log.offsets[1:-1])
    return {
        user: items.tolist()
        for user, items in zip(log.user_ids.tolist(), ids, strict=True)
    }


def test_load_by_name(folders):
    (folders[0] / "tiny.txt").write_bytes(TEXT)
    split = datasets.load("tiny")
    assert split.dataset.name == "tiny"
    assert histories(split) == {1: [3, 1, 2], 2: [3, 1, 2, 4]}
    assert split.test.target.tolist() == [2, 4]
    assert split.dataset.report["rows_read"] == 7


def test_load_a_path(tmp_path):
    (tmp_path / "my log.txt").write_bytes(TEXT)
    path = str(tmp_path / "my log.txt")
    assert datasets.load(path=path).dataset.name == "my log"
    assert datasets.load("mine", path).dataset.name == "mine"
    assert datasets.load("synthetic", path).dataset.num_users == 2
    split = datasets.load(path=path, min_user=4)
    assert histories(split) == {2: [3, 1, 2, 4]}
    assert split.dataset.report["rows_outside_core"] == 3


FRAME = pd.DataFrame(
    {
        "who": ["a", "a", "a", "a", "b", "b"],
        "what": ["x", "y", "z", "x", "x", "y"],
        "when": [4, 3, 2, 1, 1, 1],
        "stars": [5, 5, 5, 5, 5, 1],
    }
)
NAMES = {"user": "who", "item": "what", "time": "when"}


def test_load_a_frame_or_the_same_file(tmp_path):
    FRAME.to_csv(tmp_path / "log.data", index=False)
    for source in (
        {"frame": FRAME},
        {"path": str(tmp_path / "log.data"), "format": "csv"},
    ):
        split = datasets.load(**source, **NAMES)
        assert split.dataset.name == ("unnamed" if "frame" in source else "log")
        assert histories(split) == {"a": ["x", "z", "y", "x"], "b": ["x", "y"]}
        split = datasets.load("n", **source, **NAMES, duplicates="first")
        assert split.dataset.name == "n"
        assert histories(split)["a"] == ["x", "z", "y"]
        split = datasets.load(**source, **NAMES, rating="stars", min_rating=5)
        assert histories(split) == {"a": ["x", "z", "y", "x"], "b": ["x"]}


def test_ratings_are_read_only_where_they_are_used():
    """FRAME has no column `rating`, which is the default."""
    assert datasets.load(frame=FRAME, **NAMES).dataset.num_interactions == 6
    with pytest.raises(InputError, match="one column 'rating'.* first: .*rating=NAME"):
        datasets.load(frame=FRAME, **NAMES, min_rating=4)
    split = datasets.load(frame=FRAME, **NAMES, rating="stars", min_rating=4)
    assert split.dataset.report["rows_below_min_rating"] == 1


def test_events_are_filtered():
    table = FRAME.assign(kind=["view", "buy", "view", "view", "view", "cart"])
    split = datasets.load(frame=table, **NAMES, event="kind", events=("view", "cart"))
    assert histories(split) == {"a": ["x", "z", "x"], "b": ["x", "y"]}
    assert split.dataset.report["rows_of_other_events"] == 1


def test_a_split_by_name_with_its_options():
    split = datasets.load(
        "synthetic", seed=3, split="held_out_users", holdout_users=0.25
    )
    log = synthetic.interactions(seed=3)
    expected = splits.held_out_users(log, holdout_users=0.25, seed=3)
    assert split.sha256() == expected.sha256()
    split = datasets.load(
        frame=FRAME, **NAMES, split="time_point", test_from=4, valid_from=3
    )
    assert split.test.target.tolist() == [1] and split.valid.target.tolist() == [2]


def test_broken_rows_are_skipped_and_accounted_for(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("item,user\nx,a\nx,\ny,a\nx,a,3\nz,a\n")
    source = {"path": str(file), "time": ""}
    with pytest.raises(InputError, match="log.csv, line 5: expected 2 fields.*skip"):
        datasets.load(**source)
    split = datasets.load(**source, broken="skip")
    assert histories(split) == {"a": ["x", "y", "z"]}
    assert split.dataset.report == {
        "rows_read": 5,
        "rows_broken": 2,
        "broken": {
            "expected 2 fields, as in the header": {"rows": 1, "first_lines": [5]},
            "column 'user' has no value": {"rows": 1, "first_lines": [3]},
        },
        "rows_duplicate": 0,
        "rows_outside_core": 0,
    }
    assert data.statistics(split)["rows_broken"] == 2


def test_synthetic():
    expected = synthetic.interactions(seed=3)
    split = datasets.load("synthetic", seed=3)
    assert split.dataset.sha256() == expected.sha256()
    assert datasets.load("synthetic").dataset.sha256() != expected.sha256()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "synthetic", "min_user": 5}, "no filters: leave out {'min_user': 5}"),
        ({"frame": FRAME, "path": "x.txt"}, "a path or a frame, not both"),
        (
            {"name": "tiny", "split": "leave_one"},
            "no split .*did you mean leave_one_out",
        ),
        ({"frame": FRAME, "event": "x"}, "give both or neither, got event='x', events"),
        ({"frame": FRAME, "events": ("x",)}, "both or neither, got event='', events="),
        ({"frame": FRAME, "holdout_n": 2}, "holdout_n is an option of .*leave_last_n"),
        ({"frame": FRAME, "broken": "drop"}, "one of error, skip: got 'drop'"),
        ({"name": "ml1m"}, "did you mean ml-1m"),
        ({}, "no data is named"),
        ({"path": "nowhere.txt"}, "no file nowhere.txt"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        datasets.load(**arguments)


def test_the_signature_is_a_section_of_a_config():
    """Every option has a default that a config can hold, and a plain type."""
    options = signature.options(datasets.load)
    for name, option in options.items():
        if name != "frame":
            assert signature.fit(option.default, option.hint) == option.default
            kinds = set(signature.describe(option.hint).split(" or "))
            assert kinds <= {"str", "int", "float", "none", "tuple[str, ...]"}
