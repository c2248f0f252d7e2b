"""From a CSV nobody here wrote to recommendations, by the config's two commands."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from jaxrec import config, recommend, train

NUM_USERS, NUM_ITEMS = 60, 40
USERS = [f"cust-{n:03d}/é" for n in range(NUM_USERS)]
ITEMS = [f"SKU {n:02d}" for n in range(NUM_ITEMS)]


def ugly_csv(path) -> dict:
    """Writes the log and returns what is in it, by the lines that were written.

    Columns in odd order, quoted commas and quotes, ISO times out of order and in two
    zones, repeats, blank lines, and one broken row in a hundred of each kind.
    """
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    lines, first_had, num_rows, repeats = ["note,ts,sku,price,customer"], {}, 0, 0
    broken: dict[str, list[int]] = {}
    fields = "expected 5 fields, as in the header"
    kinds = [
        ("SKU 01,2.5,cust-001/é", fields),
        # Its quote is closed by the one that opens the next line.
        ('x,2024-01-05,"SKU 01,1,cust-002/é', "',' expected after '\"'"),
        ("x,2024-01-05,,1,cust-001/é", "column 'sku' has no value"),
        ("x,yesterday,SKU 01,1,cust-001/é", "column 'ts' has no number or ISO 8601"),
        ("x,2024-01-05,SKU 01,1,", "column 'customer' has no value"),
    ]
    for k in range(900):
        user, item = USERS[rng.integers(NUM_USERS)], ITEMS[rng.integers(NUM_ITEMS)]
        time = start + datetime.timedelta(minutes=int(rng.integers(1, 500_000)))
        ago = datetime.timezone(datetime.timedelta(hours=2 * (k % 2)))
        lines.append(
            f'"a ""b"", {k}",{time.astimezone(ago).isoformat()},{item},,{user}'
        )
        num_rows += 1
        repeats += (user, item) in first_had
        first_had[user, item] = min(time, first_had.get((user, item), time))
        if k % 100 == 50:
            lines.append("")
        if k % 100 == 99:
            text, kind = kinds[k // 100 % len(kinds)]
            lines.append(text)
            broken.setdefault(kind, []).append(len(lines))
            num_rows += 1
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    histories: dict[str, list] = {}
    for user, item in sorted(first_had, key=lambda pair: first_had[pair]):
        histories.setdefault(user, []).append(item)
    return {
        "rows": num_rows,
        "repeats": repeats,
        "broken": broken,
        "histories": histories,
    }


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ugly_csv(tmp_path / "log.csv")


def test_two_commands(log, capsys):
    train.main(
        [
            "--config=configs/own_data.py",
            "--config.data.path=log.csv",
            "--config.data.user=customer",
            "--config.data.item=sku",
            "--config.data.time=ts",
            "--config.train.max_epochs=1",
            "--config.model.num_layers=1",
        ]
    )
    recommend.main("--workdir runs/log-sasrec_ce-seed0 --output recs.csv --k 3".split())
    shown = capsys.readouterr().out
    with open("runs/log-sasrec_ce-seed0/result.json") as file:
        result = json.load(file)

    # Every row that was written is accounted for, the broken ones by line and reason.
    found, num_broken = result["data"], sum(map(len, log["broken"].values()))
    assert found["rows_read"] == log["rows"]
    assert found["rows_broken"] == num_broken == 9
    assert f"rows_broken {num_broken}" in shown
    assert found["rows_duplicate"] == log["repeats"]
    counted = [value for key, value in found.items() if key.startswith("rows_")]
    assert found["interactions"] == 2 * found["rows_read"] - sum(counted)
    for kind, numbers in log["broken"].items():
        (name,) = (name for name in found["broken"] if name.startswith(kind))
        assert found["broken"][name] == {"rows": len(numbers), "first_lines": numbers}
        count = f"{len(numbers)} rows (lines" if len(numbers) > 1 else "1 row (line"
        listed = ", ".join(map(str, numbers))
        assert f"broken   {count} {listed}): {name}\n" in shown

    # The config of the run holds the choices.
    chosen = result["config"]
    assert result["method"] == "sasrec_ce" and chosen["loss"]["name"] == "ce"
    assert chosen["train"]["max_length"] == chosen["model"]["num_positions"] == 25
    assert chosen["model"]["width"] == 64 and chosen["train"]["batch_size"] == 16
    assert chosen["eval"]["max_valid_users"] is None

    # Its result has the reasons, as they were shown.
    assert [key.split("=")[0] for key in result["chosen"]] == [
        "train.max_length",
        "model.num_positions",
        "model.width",
        "model.dropout",
        "loss.name",
        "train.batch_size",
        "eval.max_valid_users",
    ]
    assert result["chosen"]["loss.name=ce"].startswith(f"{NUM_ITEMS} items: ")
    for option, reason in result["chosen"].items():
        assert f"chosen   {option}: {reason}" in shown

    # Recommendations in the ids of the file, none of what a user has had.
    recs = pd.read_csv("recs.csv")
    histories = log["histories"]
    assert set(recs["user"]) == set(histories)
    assert found["interactions"] == sum(map(len, histories.values()))
    for user, own in recs.groupby("user"):
        assert own["rank"].tolist() == [1, 2, 3]
        assert not set(own["item"]) & set(histories[user])
        assert set(own["item"]) <= set(ITEMS)


def test_without_the_option_the_first_broken_row_is_named(log):
    line = min(n for numbers in log["broken"].values() for n in numbers)
    with pytest.raises(ValueError, match=rf"log.csv, line {line}: .*data.broken=skip"):
        train.main(
            [
                "--config=configs/own_data.py",
                "--config.data.path=log.csv",
                "--config.data.user=customer",
                "--config.data.item=sku",
                "--config.data.time=ts",
                "--config.data.broken=error",
            ]
        )


def test_a_polars_frame_to_recommendations(tmp_path):
    """The same log of another make, through `train(frame=...)`, to the last row."""
    pl = pytest.importorskip("polars", reason="polars is not installed")
    rng = np.random.default_rng(1)
    minute = rng.permutation(600)  # no two rows at one time
    rows = [
        (f"note {k}", minute[k], int(rng.integers(NUM_ITEMS)), USERS[k % NUM_USERS])
        for k in range(600)
    ]
    gaps = {7: 1, 107: 2, 407: 3}  # row: its column without a value
    had: dict[str, list[str]] = {}
    for k in np.argsort(minute):
        _, _, item, user = rows[k]
        if k not in gaps and ITEMS[item] not in had.setdefault(user, []):
            had[user].append(ITEMS[item])
    cells = [
        [None if gaps.get(k) == c else cell for c, cell in enumerate(row)]
        for k, row in enumerate(rows)
    ]
    frame = pl.DataFrame(cells, ["note", "ts", "sku", "customer"], orient="row")
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    frame = frame.with_columns(
        ts=start + pl.duration(minutes="ts"),
        sku=pl.col("sku").replace_strict(range(NUM_ITEMS), ITEMS).cast(pl.Categorical),
    )
    names = {"user": "customer", "item": "sku", "time": "ts"}
    settings = config.read("configs/own_data.py")
    settings["data"] = {**settings["data"], **names, "name": "polars"}
    settings["train"] = {**settings["train"], "max_epochs": 1, "show_users": 0}
    shown = []
    found = train.train(settings, tmp_path / "run", frame=frame, log=shown.append)
    data = found["data"]
    assert data["rows_read"] == 600 and data["rows_broken"] == len(gaps)
    assert data["interactions"] == sum(map(len, had.values()))
    assert data["rows_duplicate"] == 600 - len(gaps) - data["interactions"]
    assert data["broken"] == {
        f"column {frame.columns[c]!r} has no value": {"rows": 1, "first_rows": [k]}
        for k, c in gaps.items()
    }
    assert "broken   1 row (row 7, from 0): column 'ts' has no value" in shown[0]
    answer = recommend.Recommender.load(tmp_path / "run", frame=frame)
    recs = answer.recommend(USERS, k=3)
    assert recs["user"].tolist() == [user for user in USERS for _ in range(3)]
    for user, own in recs.groupby("user"):
        assert not set(own["item"]) & set(had[user]) and set(own["item"]) <= set(ITEMS)
