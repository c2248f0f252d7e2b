"""Runs side by side: numbers by hand, ties by brute force, refusals that name both."""

import copy
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxrec import compare, outcomes, synthetic, train
from jaxrec.command import run_command
from jaxrec.errors import InputError

NUM_ITEMS = 40
METRICS = ("ndcg@10", "hr@10", "mrr@10")


def value(name, rank):
    """A metric of one rank, by its definition."""
    metric, k = name.split("@")
    if rank > int(k):
        return 0.0
    return {"hr": 1.0, "ndcg": 1 / math.log2(rank + 1), "mrr": 1 / rank}[metric]


def mean(name, ranks):
    return sum(value(name, rank) for rank in ranks) / len(ranks)


def ranks_of(seed, num_users=80, best=1):
    rng = np.random.default_rng(seed)
    return rng.integers(best, NUM_ITEMS + 1, num_users)


def write_run(
    folder,
    filtered_N,
    *,
    method="sasrec_ce",
    seed=0,
    unfiltered_N=None,
    ties_N=None,
    user_N=None,
    history_length_N=None,
    filter_seen=True,
    **sections,
):
    """A finished run's workdir, with ranks of our choice."""
    filtered_N = np.asarray(filtered_N)
    unfiltered_N = filtered_N if unfiltered_N is None else np.asarray(unfiltered_N)
    judged_N = filtered_N if filter_seen else unfiltered_N
    arrays = {
        "user": np.arange(len(filtered_N)) if user_N is None else np.asarray(user_N),
        "filtered": filtered_N,
        "unfiltered": unfiltered_N,
        "ties": np.zeros_like(filtered_N) if ties_N is None else np.asarray(ties_N),
    }
    if history_length_N is not None:  # as early versions left it out
        arrays["history_length"] = np.asarray(history_length_N)
    result = {
        "dataset": "toy",
        "method": method,
        "seed": seed,
        "valid": {name: mean(name, judged_N) for name in METRICS},
        "test": {name: mean(name, judged_N) for name in METRICS},
        "data": {"items": NUM_ITEMS, "sha256": "d" * 64},
        "split_sha256": "5" * 64,
        "protocol": {
            "split": "leave_one_out",
            "filter_seen": filter_seen,
            "history_filtered": "whole",
            "target_in_history": "miss" if filter_seen else "ranked",
            "candidates": "every item of the log",
            "ties": "count against the target",
            "window": 50,
        },
        "config": {
            "model": {"name": "sasrec"},
            "train": {"seed": seed, "max_epochs": 3},
            **sections,
        },
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text("{}")
    np.savez_compressed(
        folder / "ranks.npz",
        **{f"{part}_{k}": v for part in ("valid", "test") for k, v in arrays.items()},
    )
    return folder


@pytest.fixture
def two(tmp_path):
    return [
        write_run(tmp_path / "a", ranks_of(0)),
        write_run(tmp_path / "b", ranks_of(1, best=8), method="bert4rec"),
    ]


def change(folder, keys, to):
    """Sets one value of a result, such as ("data", "sha256")."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    of = result
    for key in keys[:-1]:
        of = of[key]
    of[keys[-1]] = to
    path.write_text(json.dumps(result))


def test_numbers_are_those_of_the_ranks(two):
    result = compare.compare(two, metrics=METRICS)
    assert [row["name"] for row in result["runs"]] == [
        "sasrec_ce-seed0",
        "bert4rec-seed0",
    ]
    of = {"sasrec_ce-seed0": ranks_of(0), "bert4rec-seed0": ranks_of(1, best=8)}
    for row in result["runs"]:
        for name in METRICS:
            cell = row["metrics"][name]
            values = np.array([value(name, rank) for rank in of[row["name"]]])
            # Metrics are float32 of one rank.
            assert cell["mean"] == pytest.approx(values.mean(), abs=1e-7)
            error = values.std(ddof=1) / math.sqrt(80)
            assert cell["standard_error"] == pytest.approx(error, abs=1e-7)
            assert cell["low"] < cell["mean"] < cell["high"]
            # Of hits among 80 users the bounds are on a grid of 1/80: two of its steps.
            width = pytest.approx(2 * 1.96 * error, abs=0.025)
            assert cell["high"] - cell["low"] == width
    assert [pair["metric"] for pair in result["pairs"]] == list(METRICS)
    for pair in result["pairs"]:
        difference = np.array(
            [
                value(pair["metric"], a) - value(pair["metric"], b)
                for a, b in zip(*of.values(), strict=True)
            ]
        )
        assert pair["difference"] == pytest.approx(difference.mean(), abs=1e-7)
        effect = difference.mean() / difference.std(ddof=1)
        assert pair["effect"] == pytest.approx(effect, abs=1e-6)
        assert pair["low"] < pair["difference"] < pair["high"]
        # Signs flipped one by one, 20,000 times; four standard errors of both shares.
        sign_SN = np.random.default_rng(9).choice([-1, 1], (20_000, 80))
        is_as_far_S = np.abs(sign_SN @ difference) >= abs(difference.sum()) - 1e-9
        p = is_as_far_S.mean()
        error = math.sqrt(p * (1 - p) * (1 / 10_000 + 1 / 20_000))
        assert pair["p"] == pytest.approx(p, abs=4 * error)
        assert pair["p_holm"] == pair["p"]  # one pair, nothing to correct
    assert result["num_users"] == 80
    assert (result["part"], result["ranks"]) == ("test", "filtered")


def test_verdicts_follow_the_corrected_p(tmp_path):
    runs = [
        write_run(tmp_path / "best", np.full(60, 1), method="best"),
        write_run(tmp_path / "worst", np.full(60, 30), method="worst"),
        write_run(tmp_path / "same", np.r_[np.full(58, 30), 3, 4], method="same"),
    ]
    result = compare.compare(runs, metrics=["hr@10"], num_samples=999)
    verdicts = {(p["a"], p["b"]): p for p in result["pairs"]}
    best, same = (
        verdicts["best-seed0", "worst-seed0"],
        verdicts["worst-seed0", "same-seed0"],
    )
    assert best["verdict"] == "best-seed0 is better"
    # The least p of 999 samples, and three pairs.
    assert best["p"] == pytest.approx(1 / 1000)
    assert best["p_holm"] == pytest.approx(3 / 1000)
    # Two users differ, in one direction: p = 1/2 by enumeration.
    assert same["p"] == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(999))
    assert same["verdict"] == "no difference shown"
    turned = compare.compare(runs[1::-1], metrics=["hr@10"])["pairs"][0]
    assert turned["verdict"] == "best-seed0 is better"
    assert turned["difference"] == -1


def test_a_table_has_a_block_a_metric_and_no_name_twice_in_a_line(tmp_path):
    names = [f"a_method_of_some_length_{n}" for n in range(3)]
    rank_RN = [np.ones(60, int), np.full(60, 30), np.r_[np.full(58, 30), 3, 4]]
    runs = [
        write_run(tmp_path / name, rank_N, method=name)
        for name, rank_N in zip(names, rank_RN, strict=True)
    ]
    result = compare.compare(runs, metrics=["hr@10", "mrr@10"], num_samples=999)
    *_, first, second = compare.table(result).split("\n\n")
    for block, metric in ((first, "hr@10"), (second, "mrr@10")):
        head, *lines = block.splitlines()
        assert head.startswith(f"{metric} ") and head.endswith("  better")
        better = [line.rpartition("  ")[2] for line in lines]
        assert better == ["first", "first", "not shown"]
        assert all(line.count(name) <= 1 for line in lines for name in names)
        assert max(map(len, lines)) <= 2 * len(f"{names[0]}-seed0") + 60
    turned = compare.compare(runs[1::-1], metrics=["hr@10"], num_samples=999)
    assert compare.table(turned).endswith("  second")


def test_parts_and_unfiltered_ranks(tmp_path):
    filtered_N = ranks_of(0)
    unfiltered_N = np.minimum(filtered_N + 7, NUM_ITEMS)
    both = {"unfiltered_N": unfiltered_N}
    runs = [
        write_run(tmp_path / "a", filtered_N, **both),
        write_run(tmp_path / "b", filtered_N, seed=1, **both),
    ]
    result = compare.compare(runs, part="valid", unfiltered=True)
    assert (result["part"], result["ranks"]) == ("valid", "unfiltered")
    cell = result["runs"][0]["metrics"]["ndcg@10"]
    assert cell["mean"] == pytest.approx(mean("ndcg@10", unfiltered_N), abs=1e-7)
    # Runs that were judged among all items are compared so without being told.
    judged = [
        write_run(
            tmp_path / f"u{seed}", filtered_N, seed=seed, filter_seen=False, **both
        )
        for seed in (0, 1)
    ]
    assert compare.compare(judged)["ranks"] == "unfiltered"
    with pytest.raises(InputError, match="filter_seen.* True, .* False"):
        compare.compare([runs[0], judged[1]])


def test_records_are_runs_too(two, tmp_path):
    records = []
    for folder in two:
        name = (
            json.loads((folder / "result.json").read_text())["method"] + "-v1.5-seed0"
        )
        records.append(tmp_path / f"{name}.json")
        shutil.copy(folder / "result.json", records[-1])
        shutil.copy(folder / "ranks.npz", tmp_path / f"{name}.ranks.npz")
    expected = compare.compare(two)
    for again in (records, [two[0], records[1]], [two[0] / "result.json", two[1]]):
        result = compare.compare(again)
        assert result["pairs"] == expected["pairs"]
    with pytest.raises(InputError, match="are the same, sasrec_ce-seed0"):
        compare.compare([two[0], records[0]])


@pytest.mark.parametrize(
    "keys, to, named",
    [
        (("data", "sha256"), "e" * 64, "ddd.*eee"),
        (("dataset",), "other", "toy.*other"),
        (("split_sha256",), "6" * 64, "555.*666"),
        (("protocol", "split"), "time", "'leave_one_out'.*'time'"),
        (("protocol", "target_in_history"), "ranked", "'miss'.*'ranked'"),
        (("protocol", "history_filtered"), "window", "'whole'.*'window'"),
        (("protocol", "candidates"), "items of training", "every item.*of training"),
        (("protocol", "ties"), "for the target", "against.*for the target"),
    ],
)
def test_other_data_or_protocol_is_refused(two, keys, to, named):
    change(two[1], keys, to)
    with pytest.raises(InputError, match=named):
        compare.compare(two)


def test_another_window_is_compared(two):
    change(two[1], ("protocol", "window"), 200)
    assert compare.compare(two)["pairs"]


def test_other_rows_are_refused(tmp_path):
    run = write_run(tmp_path / "a", ranks_of(0))
    fewer = write_run(tmp_path / "b", ranks_of(1, 79), seed=1)
    others = write_run(tmp_path / "c", ranks_of(1), seed=1, user_N=np.arange(80) + 1)
    for other, named in ((fewer, "80 rows.*79 rows"), (others, "users differ")):
        with pytest.raises(InputError, match=f"same test rows.*{named}"):
            compare.compare([run, other])


def test_the_same_run_twice_is_refused(two, tmp_path):
    copied = shutil.copytree(two[0], tmp_path / "copy")
    for again in (two[0], two[0] / ".." / "a", copied):
        with pytest.raises(InputError, match="are the same, sasrec_ce-seed0 of toy"):
            compare.compare([two[0], two[1], again])


def test_what_is_not_a_finished_run_is_refused(two, tmp_path):
    with pytest.raises(InputError, match="two runs, or two methods.*got none"):
        compare.compare([])
    with pytest.raises(InputError, match="needs at least two"):
        compare.compare(two[:1])
    with pytest.raises(InputError, match="there is no run in"):
        compare.compare([two[0], tmp_path / "nowhere"])
    with pytest.raises(InputError, match="there is no run in"):
        compare.compare([two[0], tmp_path / "nowhere-seed0.json"])
    (two[1] / "result.json").rename(two[1] / "kept")
    with pytest.raises(InputError, match="not finished.*--resume"):
        compare.compare(two)
    (two[1] / "result.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        compare.compare(two)
    (two[1] / "kept").rename(two[1] / "result.json")
    (two[1] / "ranks.npz").unlink()
    with pytest.raises(InputError, match="has no ranks"):
        compare.compare(two)


@pytest.mark.parametrize(
    "content, named",
    [
        ("[1]", "it has no dataset"),
        ({"seed": "0"}, "it has no seed"),
        ({"data": {"sha256": ""}}, r"it has no data\.items"),
        ({"protocol": {}}, r"it has no protocol\.split"),
    ],
)
def test_a_result_without_what_is_needed_is_refused(two, content, named):
    path = two[1] / "result.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(content)
    with pytest.raises(InputError, match=f"b/result.json.*{named}"):
        compare.compare(two)


def altered(**arrays):
    """Writes the arrays of a run again, some of them others."""

    def write(path):
        with np.load(path) as old:
            np.savez_compressed(path, **{**old, **arrays})

    return write


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "is damaged"),
        (lambda path: path.write_bytes(b"not a zip"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (one_array, "is damaged"),
        (lambda path: np.savez(path, test_user=np.arange(80)), "test_filtered"),
        (altered(test_filtered=np.arange(1, 80)), r"filtered \(79,\)"),
        (altered(test_ties=np.zeros((80, 1), int)), r"ties \(80, 1\)"),
        (altered(test_filtered=np.zeros(80, int)), "row 0 has 0, "),
        (altered(test_filtered=np.full(80, 42)), "row 0 has 42, "),
        (altered(test_unfiltered=np.full(80, 41)), "41, 0"),
        (altered(test_filtered=np.ones(80)), "whole numbers"),
        (altered(test_ties=np.full(80, 40)), ", 40"),
        (altered(test_filtered=np.full(80, 1)), "its ranks give test ndcg@10 1.0"),
    ],
)
def test_damaged_ranks_are_refused(two, damage, named):
    damage(two[1] / "ranks.npz")
    with pytest.raises(InputError, match=f"b/ranks.npz.*{named}"):
        compare.compare(two)


def test_group_averages_the_values_of_a_user_over_seeds(tmp_path):
    runs, ranks = [], {}
    for method, best in (("sasrec_ce", 1), ("bert4rec", 8)):
        for seed in range(3):
            ranks[method, seed] = ranks_of(10 * best + seed, best=best)
            folder = tmp_path / f"{method}{seed}"
            runs.append(
                write_run(folder, ranks[method, seed], method=method, seed=seed)
            )
    result = compare.compare(runs, metrics=["ndcg@10"], group=True)
    assert [row["seeds"] for row in result["runs"]] == [[0, 1, 2], [0, 1, 2]]
    values = {
        method: np.mean(
            [[value("ndcg@10", r) for r in ranks[method, seed]] for seed in range(3)],
            axis=0,
        )
        for method in ("sasrec_ce", "bert4rec")
    }
    for row in result["runs"]:
        cell, of = row["metrics"]["ndcg@10"], values[row["name"]]
        assert cell["mean"] == pytest.approx(of.mean(), abs=1e-7)
        error = of.std(ddof=1) / math.sqrt(80)
        assert cell["standard_error"] == pytest.approx(error, abs=1e-7)
        by_hand = [mean("ndcg@10", ranks[row["name"], seed]) for seed in range(3)]
        assert cell["of_each_run"] == pytest.approx(by_hand, abs=1e-7)
    difference = values["sasrec_ce"] - values["bert4rec"]
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == ("sasrec_ce", "bert4rec")
    assert pair["difference"] == pytest.approx(difference.mean(), abs=1e-7)
    effect = difference.mean() / difference.std(ddof=1)
    assert pair["effect"] == pytest.approx(effect, abs=1e-6)
    assert "sasrec_ce (3 runs)" in compare.table(result)


def test_seeds_in_another_order_are_no_difference(tmp_path):
    # The same values of each user, in another order, have the same mean to the bit.
    rank_RN = np.stack([ranks_of(seed) for seed in range(3)])
    runs = [
        write_run(tmp_path / f"{method}{r}", rank_RN[order[r]], method=method, seed=r)
        for method, order in (("x", (0, 1, 2)), ("y", (2, 0, 1)))
        for r in range(3)
    ]
    result = compare.compare(runs, group=True)
    assert [(pair["p"], pair["effect"]) for pair in result["pairs"]] == [(1.0, 0.0)] * 2


def test_groups_that_are_no_method_are_refused(two, tmp_path):
    again = write_run(tmp_path / "again", ranks_of(5))
    with pytest.raises(InputError, match="'sasrec_ce' with seed 0"):
        compare.compare([*two, again], group=True)
    trained = {"seed": 1, "max_epochs": 9}
    longer = write_run(tmp_path / "longer", ranks_of(6), seed=1, train=trained)
    with pytest.raises(InputError, match="train.max_epochs is 3 and 9"):
        compare.compare([*two, longer], group=True)
    seed = write_run(tmp_path / "seed", ranks_of(7), seed=1)
    with pytest.raises(InputError, match="two methods with --group"):
        compare.compare([two[0], seed], group=True)
    # Without --group they are three runs; the path tells two of them apart.
    names = [row["name"] for row in compare.compare([*two, again])["runs"]]
    assert names == [str(two[0]), "bert4rec-seed0", str(again)]


def scored_rows(num_rows, num_levels, seed):
    """Ranks by the definition, and the unseen ties that they do not save."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        score = rng.integers(0, num_levels, NUM_ITEMS)
        is_seen = rng.random(NUM_ITEMS) < 0.3
        target = rng.integers(NUM_ITEMS)
        others = np.arange(NUM_ITEMS) != target
        at_least = (score >= score[target]) & others
        tied = (score == score[target]) & others
        rivals = 1 + (at_least & ~is_seen).sum()
        filtered = NUM_ITEMS + 1 if is_seen[target] else rivals
        unseen_ties = 0 if is_seen[target] else (tied & ~is_seen).sum()
        rows.append((filtered, 1 + at_least.sum(), tied.sum(), unseen_ties))
    return np.array(rows).T


def tied_value(name, rank, num_tied, ties):
    """The metric among `num_tied` equals of which the target is ranked last."""
    if ties == "optimistic":
        return value(name, rank - num_tied)
    return sum(value(name, r) for r in range(rank - num_tied, rank + 1)) / (
        num_tied + 1
    )


@pytest.mark.parametrize("ties", ["optimistic", "mean"])
def test_ties_are_resolved_exactly_or_not_at_all(tmp_path, ties):
    filtered_N, unfiltered_N, ties_N, unseen_N = scored_rows(400, 12, seed=1)
    assert (ties_N > 0).mean() > 0.5 and (filtered_N > NUM_ITEMS).any()
    columns = np.stack([filtered_N, unfiltered_N, ties_N, unseen_N])
    exact = []
    for n, (filtered, unfiltered, tied, unseen) in enumerate(columns.T):
        # Every number of unseen ties that the three saved numbers allow.
        is_miss = filtered > NUM_ITEMS
        seen_at_least = unfiltered - filtered
        allowed = (
            [0]
            if is_miss
            else [
                u
                for u in range(tied + 1)
                if u <= filtered - 1 and tied - u <= seen_at_least
            ]
        )
        assert unseen in allowed
        if len({tied_value("ndcg@10", filtered, u, ties) for u in allowed}) == 1:
            exact.append(n)
    assert 100 < len(exact) < 400
    kept = columns[:, exact]
    runs = [
        write_run(
            tmp_path / f"{seed}",
            kept[0],
            unfiltered_N=kept[1],
            ties_N=kept[2],
            seed=seed,
        )
        for seed in (0, 1)
    ]
    expected = np.mean(
        [
            tied_value("ndcg@10", filtered, unseen, ties)
            for filtered, _, _, unseen in kept.T
        ]
    )
    result = compare.compare(runs, metrics=["ndcg@10"], ties=ties)
    cell = result["runs"][0]["metrics"]["ndcg@10"]
    assert cell["mean"] == pytest.approx(expected, abs=1e-6)
    assert result["runs"][0]["tied"] == (kept[2] > 0).mean()
    # One more row that is not determined: refused, and counted.
    undetermined = min(set(range(400)) - set(exact))
    more = columns[:, [*exact, undetermined]]
    open_runs = [
        write_run(
            tmp_path / f"open{s}", more[0], unfiltered_N=more[1], ties_N=more[2], seed=s
        )
        for s in (0, 1)
    ]
    with pytest.raises(InputError, match=f"1 of {len(exact) + 1} rows"):
        compare.compare(open_runs, metrics=["ndcg@10"], ties=ties)
    assert compare.compare(open_runs, metrics=["ndcg@10"])["ties"] == "pessimistic"
    # Unfiltered, all that ties was saved.
    cell = compare.compare(open_runs, unfiltered=True, metrics=["hr@5"], ties=ties)
    by_hand = np.mean([tied_value("hr@5", r, t, ties) for r, t in more[1:3].T])
    assert cell["runs"][0]["metrics"]["hr@5"]["mean"] == pytest.approx(
        by_hand, abs=1e-6
    )


def test_a_collapsed_model_by_each_rule(tmp_path):
    # All scores equal, 10 of 40 items seen, the target not: last of 30, of 40 in all.
    same = {"unfiltered_N": np.full(20, 40), "ties_N": np.full(20, 39)}
    runs = [
        write_run(tmp_path / f"{s}", np.full(20, 30), seed=s, **same) for s in (0, 1)
    ]
    expected = {"pessimistic": 0.0, "mean": 10 / 30, "optimistic": 1.0}
    for ties, by_hand in expected.items():
        result = compare.compare(runs, metrics=["hr@10"], ties=ties)
        cell = result["runs"][0]["metrics"]["hr@10"]
        assert cell["mean"] == pytest.approx(by_hand, abs=1e-12)
        assert result["runs"][0]["tied"] == 1


def test_narrow_arrays_are_read_as_wide_ones(tmp_path):
    # Unseen ties of row 0: at least 2 - (30 - 4) < 0, which an unsigned byte has not.
    ranks = {"unfiltered_N": [30, 5], "ties_N": [2, 0]}
    run = write_run(tmp_path / "a", [4, 5], **ranks)
    wide = outcomes.read(run)
    with np.load(run / "ranks.npz") as old:
        narrow = {name: array.astype(np.uint8) for name, array in old.items()}
    np.savez_compressed(run / "ranks.npz", **narrow)
    for name, ties in (("hr@10", "mean"), ("ndcg@3", "pessimistic")):
        np.testing.assert_array_equal(
            outcomes.metric_values(outcomes.read(run), name, ties=ties),
            outcomes.metric_values(wide, name, ties=ties),
        )


def test_rows_of_a_user_stay_together(tmp_path):
    # User 7 has three rows, user 3 one, user 9 two.
    user_N, rank_N = [7, 3, 7, 9, 7, 9], np.array([1, 2, 30, 1, 1, 30])
    run = outcomes.read(write_run(tmp_path / "a", rank_N, user_N=user_N))
    value_U = outcomes.metric_values(run, "hr@10")
    # Users 3, 7, 9: hits 1, 2, 1, times 3 users / 6 rows.
    np.testing.assert_allclose(value_U, [0.5, 1.0, 0.5])
    assert value_U.mean() == pytest.approx((rank_N <= 10).mean())
    assert run.num_users == 3


def several_rows(folder, order, *, saved=True, seed=0, **arrays):
    """A run of users 7 (three rows), 3 (one) and 9 (two), its rows in this order."""
    user_N = np.array([3, 7, 7, 7, 9, 9])
    length_N, rank_N = np.array([4, 5, 6, 7, 4, 5]), np.array([2, 1, 30, 1, 3, 30])
    return write_run(
        folder,
        rank_N[order],
        user_N=user_N[order],
        history_length_N=arrays.get("length_N", length_N)[order] if saved else None,
        seed=seed,
    )


def test_rows_are_those_of_a_user_and_a_history_whatever_their_order(tmp_path):
    sorted_run = outcomes.read(several_rows(tmp_path / "a", np.arange(6)))
    mixed = several_rows(tmp_path / "b", np.array([5, 0, 3, 1, 4, 2]), seed=1)
    found = outcomes.read(mixed)
    assert found.user_N.tolist() == [3, 7, 7, 7, 9, 9]
    assert found.history_length_N.tolist() == [4, 5, 6, 7, 4, 5]
    assert found.filtered_N.tolist() == [2, 1, 30, 1, 3, 30]
    outcomes.check_comparable(sorted_run, found)
    (pair,) = compare.compare([tmp_path / "a", mixed], metrics=["mrr@10"])["pairs"]
    assert (pair["difference"], pair["p"]) == (0.0, 1.0)


def test_rows_without_a_saved_history_are_still_read(tmp_path):
    old = outcomes.read(several_rows(tmp_path / "old", np.arange(6), saved=False))
    assert old.history_length_N is None
    new = several_rows(tmp_path / "new", np.array([5, 0, 3, 1, 4, 2]), seed=1)
    outcomes.check_comparable(old, outcomes.read(new))


def test_rows_of_other_histories_are_refused(tmp_path):
    run = several_rows(tmp_path / "a", np.arange(6))
    later = {"length_N": np.array([4, 5, 6, 8, 4, 5])}
    other = several_rows(tmp_path / "b", np.arange(6), seed=1, **later)
    with pytest.raises(InputError, match="same test rows.*their history lengths"):
        compare.compare([run, other])
    twice = {"length_N": np.array([4, 5, 6, 6, 4, 5])}
    with pytest.raises(
        InputError, match="c/ranks.npz must differ.*two of user 7 have 6"
    ):
        outcomes.read(several_rows(tmp_path / "c", np.arange(6), **twice))


def test_the_command_prints_and_writes(two, tmp_path, capsys):
    output = tmp_path / "cmp.json"
    arguments = [*map(str, two), "--metrics", "hr@10,mrr@10", "--output", str(output)]
    assert run_command(compare.main, arguments) == 0
    printed = capsys.readouterr().out
    assert "toy, test: filtered ranks, 80 users; ties count against" in printed
    assert "sasrec_ce-seed0 - bert4rec-seed0" in printed
    assert f"{mean('hr@10', ranks_of(0)):.4f} [" in printed
    written = json.loads(output.read_text())
    assert (
        written["pairs"] == compare.compare(two, metrics=["hr@10", "mrr@10"])["pairs"]
    )
    assert {"date", "command", "versions", "commit"} <= set(written)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--metrics", "ndgc@10"], "Did you mean ndcg@10"),
        (["--part", "train"], "valid, test"),
        (["--ties", "random"], "pessimistic, mean, optimistic"),
        (["--metric", "hr@10"], "no flag '--metric'"),
        (["--config.train.seed=1"], "reads no config"),
        (["--output", "no/such/folder.json"], "there is no folder no/such"),
        (["runs/nowhere"], "there is no run in runs/nowhere"),
    ],
)
def test_a_wrong_command_is_one_line(two, arguments, named, capsys):
    assert run_command(compare.main, [*map(str, two), *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_no_run_is_one_line(capsys):
    assert run_command(compare.main, []) == 2
    assert "the following arguments are required: run" in capsys.readouterr().err


def test_import_is_light():
    code = "import sys, jaxrec.compare; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert not {"jax", "pandas", "flax"} & set(done.stdout.split())


def test_runs_of_the_library_are_compared_as_they_reported(tmp_path):
    import pandas as pd

    log = synthetic.interactions(
        num_users=60, num_items=50, mean_length=8.0, max_length=15, num_topics=4
    )
    frame = pd.DataFrame(
        {
            "user": np.repeat(log.user_ids, log.lengths),
            "item": log.item_ids[log.items - 1],
            "timestamp": log.timestamps,
        }
    )
    settings = {
        "method": "gru4rec",
        "data": {"name": "toy"},
        "model": {"name": "gru4rec", "width": 8},
        "loss": {"name": "ce"},
        "optim": {"name": "adam"},
        "train": {"batch_size": 32, "max_length": 6, "max_epochs": 1},
    }
    reported = []
    for seed in (0, 1):
        one = copy.deepcopy(settings)
        one["train"]["seed"] = seed
        reported.append(
            train.train(one, tmp_path / f"{seed}", frame=frame, log=lambda line: None)
        )
    result = compare.compare([tmp_path / "0", tmp_path / "1"], metrics=METRICS)
    for row, of in zip(result["runs"], reported, strict=True):
        for name in METRICS:
            # The run added in float32, the comparison in float64.
            mean_of = row["metrics"][name]["mean"]
            assert mean_of == pytest.approx(of["test"][name], abs=1e-6)
    assert result["num_users"] == 60
    assert result["split_sha256"] == reported[0]["split_sha256"]
