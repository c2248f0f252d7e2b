"""From a CSV nobody here wrote to recommendations, by the config's two commands."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from jaxrec import recommend, train

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

    # The config of the run holds the choices.
    chosen = result["config"]
    assert result["method"] == "sasrec_ce" and chosen["loss"]["name"] == "ce"
    assert chosen["train"]["max_length"] == chosen["model"]["num_positions"] == 25
    assert chosen["model"]["width"] == 64 and chosen["train"]["batch_size"] == 16
    assert chosen["eval"]["max_valid_users"] is None

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
