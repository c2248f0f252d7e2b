"""Ours against the paper's: a data set's rows and claims, from its records alone.

A method's value for a user is the mean over the method's seeds; intervals and tests
are over users, with each user's values of both methods kept together.
"""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks import records
from benchmarks.published import PUBLISHED, TITLES, TOLERANCES, seconds_to_best
from benchmarks.records import Record
from benchmarks.variants import title, variant
from jaxrec import significance

METRICS = ("hr@10", "ndcg@10", "mrr@10", "hr@100", "ndcg@100")
# A claim stands or falls by the first, which also stops training; the second is shown.
CLAIMED = ("ndcg@10", "hr@10")
LEVEL = 0.05
NOT_RUN = "not run"

# (better, worse), as the paper has it; the last three make up the order.
BEATS = (
    ("sasrec_ce", "sasrec_bce"),
    ("sasrec_sampled_ce", "sasrec_bce"),
    ("sasrec_ce", "bert4rec"),
    ("sasrec_sampled_ce", "bert4rec"),
    ("bert4rec", "sasrec_bce"),
)
ORDER = BEATS[2:]
# Beyond the paper: does SASRec+ 3000 gain from never pushing the window's items down?
BEYOND = (
    ("sasrec_ce_exclude_window", "sasrec_ce"),
    ("sasrec_sampled_ce", "sasrec_ce_exclude_window"),
)
# (faster, slower) to the best epoch.
FASTER = (("sasrec_ce", "bert4rec"), ("sasrec_sampled_ce", "bert4rec"))

Runs = Mapping[int, Record]


def make_table(
    dataset: str, found: Mapping[str, Runs], paces: Mapping[str, Mapping[str, float]]
) -> dict:
    """Rows and claims of a data set, as table.json holds them.

    Args:
      dataset: its name, such as "ml-1m".
      found: records by method and seed, from `records.read_all`.
      paces: seconds of an epoch by device and method, from `pace.read`; times are by
        those of one device.

    Returns:
      Plain numbers, rounded to 6 decimals: metrics are fractions in [0, 1], times
      seconds. A method of the paper without a record has a row without "test", and a
      claim about it the status "not run".
    """
    methods = [*TITLES, *sorted(found.keys() - TITLES.keys(), key=_by_number)]
    one = next((run for runs in found.values() for run in runs.values()), None)
    tested = claims(dataset, found, BEATS)
    device, of_device = one_pace(found, paces)
    table: dict = {
        "question": f"do the paper's numbers on {dataset} come out again?",
        "command": f"python -m benchmarks.reproduce --dataset {dataset} --table-only",
        "dataset": dataset,
        "users": one.outcome.num_users if one else None,
        "split_sha256": one.result["split_sha256"] if one else None,
        "popularity": one.result["test_popularity"] if one else None,
        "rows": [row(dataset, method, found.get(method, {})) for method in methods],
        "claims": [*tested.values(), order([tested[pair] for pair in ORDER])],
        "beyond": [*claims(dataset, found, BEYOND).values()],
        "changes": changes(dataset, found),
        "times": [time_claim(dataset, *pair, found, of_device) for pair in FASTER],
        "pace_of": device,
    }
    return {key: _rounded(value) for key, value in table.items()}


def row(dataset: str, method: str, runs: Runs) -> dict:
    """A method: its metrics, how far it is from the published row, and its runs."""
    start: dict = {"method": method, "title": title(method), "seeds": sorted(runs)}
    test = {name: measure(runs, name) for name in METRICS} if runs else {}
    if published := PUBLISHED.get(dataset, {}).get(method):
        start["published"] = published._asdict()
        tolerances = TOLERANCES.get(dataset, {})
        start["against_paper"] = {
            name: against(test.get(name), value, tolerances.get(name))
            for name, value in published.metrics.items()
        }
    if not runs:
        return start
    return {
        **start,
        "num_params": next(iter(runs.values())).result["num_params"],
        "test": test,
        "runs": [run_facts(runs[seed]) for seed in sorted(runs)],
    }


def measure(runs: Runs, name: str) -> dict:
    """A metric over users: mean, 95% interval, standard error; and over seeds."""
    value_U = records.user_means(runs, name)
    mean, low, high = significance.bootstrap_interval(value_U)
    by_seed = records.values(runs, name).mean(axis=1).tolist()
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "standard_error": significance.standard_error(value_U),
        "by_seed": by_seed,
        "spread": statistics.stdev(by_seed) if len(by_seed) > 1 else None,
    }


def against(
    measured: Mapping | None, published: float, tolerance: float | None
) -> dict:
    """The difference from a published number, in standard errors and to its bar.

    >>> measured = {"mean": 0.5, "standard_error": 0.25, "by_seed": [0.5], "spread": 0}
    >>> found = against(measured, 0.75, 0.25)
    >>> found["in_standard_errors"], found["status"]
    (-1.0, 'met')

    Args:
      measured: from `measure`, or None if there is no run.
      published: a fraction.
      tolerance: of the difference, either way; None where no bar is set.

    Returns:
      The bar's status, "met", "missed", "no bar" or "not run"; and the difference, ours
      less the published: by itself, in standard errors of a mean over users, and in
      standard errors between seeds, sd * sqrt(1 + 1 / num_seeds) since the published
      number is taken for one run. None stands for a division by no error, and by the
      spread of fewer than three seeds, which tells next to nothing.
    """
    start = {"published": published, "tolerance": tolerance}
    if measured is None:
        return {**start, "status": NOT_RUN}
    difference = measured["mean"] - published
    num_seeds, spread = len(measured["by_seed"]), measured["spread"]
    errors = {
        "in_standard_errors": measured["standard_error"],
        "in_seed_errors": spread * (1 + 1 / num_seeds) ** 0.5
        if spread is not None and num_seeds > 2
        else None,
    }
    if tolerance is None:
        status = "no bar"
    else:
        status = "met" if abs(difference) <= tolerance else "missed"
    return {
        **start,
        "status": status,
        "difference": difference,
        **{key: difference / error if error else None for key, error in errors.items()},
    }


def run_facts(run: Record) -> dict:
    """What a reader wants to know of a run beside its metrics."""
    result = run.result
    return {
        "seed": result["seed"],
        "best_epoch": result["best_epoch"],
        "epochs": result["epochs"],
        "is_stopped_early": result["epochs"] - result["best_epoch"]
        >= result["config"]["train"]["patience"],
        "train_s": result["seconds"]["train"],
        "to_best_s": records.seconds_to_best(run),
        "device": result["device"],
        "date": result["date"],
        "commit": result["commit"],
    }


def claims(
    dataset: str, found: Mapping[str, Runs], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], dict]:
    """That the first of each pair beats the second: tested together, by Holm."""
    by_pair = {pair: beats(dataset, *pair, found) for pair in pairs}
    tested = [claim for claim in by_pair.values() if "effects" in claim]
    for name in CLAIMED:
        effects = [claim["effects"][name] for claim in tested]
        adjusted = significance.holm([effect["p"] for effect in effects])
        for effect, p in zip(effects, adjusted, strict=True):
            effect["p_holm"] = float(p)
    for claim in tested:
        claim.update(verdict(claim["effects"][CLAIMED[0]]))
    return by_pair


def beats(dataset: str, better: str, worse: str, found: Mapping[str, Runs]) -> dict:
    """One method against another over the same users; no verdict yet."""
    claim = {
        "claim": f"{title(better)} beats {title(worse)}",
        "better": better,
        "worse": worse,
    }
    if missing := [method for method in (better, worse) if method not in found]:
        return {**claim, "status": NOT_RUN, "missing": missing}
    effects = {name: paired(dataset, better, worse, name, found) for name in CLAIMED}
    seeds = [sorted(found[method]) for method in (better, worse)]
    return {**claim, "seeds": seeds, "effects": effects}


def changes(dataset: str, found: Mapping[str, Runs]) -> list[dict]:
    """What one option changes: each variant that was run, against its base.

    Differences are of the variant less the base, over the seeds that both have.
    """
    tested = []
    for method in sorted(found, key=_by_number):
        one = variant(method)
        if one is None or not (
            shared := found[method].keys() & found.get(one.base, {}).keys()
        ):
            continue
        both = {
            name: {seed: found[name][seed] for seed in shared}
            for name in (method, one.base)
        }
        effects = {
            name: paired(dataset, method, one.base, name, both) for name in CLAIMED
        }
        tested.append(
            {"variant": one.title, "seeds": sorted(shared), "effects": effects}
        )
    return tested


def paired(
    dataset: str, better: str, worse: str, name: str, found: Mapping[str, Runs]
) -> dict:
    """Difference of a metric with interval, size and p; and the paper's difference."""
    a_U, b_U = (records.user_means(found[method], name) for method in (better, worse))
    difference, low, high = significance.paired_bootstrap(a_U, b_U)
    paper = PUBLISHED.get(dataset, {})
    published = None
    if better in paper and worse in paper:
        published = paper[better].metrics[name] - paper[worse].metrics[name]
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "effect_size": significance.effect(a_U, b_U),
        "p": significance.permutation_test(a_U, b_U),
        "published": published,
    }


def verdict(effect: Mapping) -> dict:
    """Whether a claimed difference is there: "holds", or "fails" and how."""
    if effect["p_holm"] >= LEVEL:
        return {"status": "fails", "reason": "no difference is seen"}
    if effect["difference"] < 0:
        return {"status": "fails", "reason": "it is the other way round"}
    return {"status": "holds"}


def order(parts: list[dict]) -> dict:
    """That every part holds: as large as the smallest, as sure as the least sure."""
    claim = {"claim": "Both SASRec+ beat BERT4Rec, which beats SASRec (BCE)"}
    missing = sorted({name for part in parts for name in part.get("missing", ())})
    if missing:
        return {**claim, "status": NOT_RUN, "missing": missing}
    failed = [part["claim"] for part in parts if part["status"] == "fails"]
    effects = {
        name: {
            "difference": min(part["effects"][name]["difference"] for part in parts),
            "p_holm": max(part["effects"][name]["p_holm"] for part in parts),
        }
        for name in CLAIMED
    }
    if failed:
        reason = f"it is not so that {'; nor that '.join(failed)}"
        return {**claim, "effects": effects, "status": "fails", "reason": reason}
    return {**claim, "effects": effects, "status": "holds"}


def one_pace(
    found: Mapping[str, Runs], paces: Mapping[str, Mapping[str, float]]
) -> tuple[str, Mapping[str, float]]:
    """The paces that times are compared by: of one device, whatever runs were made on.

    Args:
      found, paces: as in `make_table`.

    Returns:
      A device and its paces: the one that most of the methods have a pace on, and of
      several the one that most runs were made on. ("", {}) if there is none.
    """
    runs = [run.result["device"] for of in found.values() for run in of.values()]

    def fitness(device: str) -> tuple[int, int, str]:
        return len(found.keys() & paces[device].keys()), runs.count(device), device

    best = max(paces, key=fitness, default="")
    return best, paces.get(best, {})


def time_claim(
    dataset: str,
    faster: str,
    slower: str,
    found: Mapping[str, Runs],
    epoch_s: Mapping[str, float],
) -> dict:
    """Training seconds to the best epoch of two methods, validation not in them.

    The mean best epoch over a method's seeds, which is no matter of the device, at the
    pace of the methods on one, measured in turn at one commit.

    Args:
      epoch_s: seconds of an epoch by method, from `one_pace`.
    """
    claim: dict = {
        "claim": f"{title(faster)} reaches its best epoch sooner than {title(slower)}"
    }
    pair = faster, slower
    if {*pair} <= PUBLISHED.get(dataset, {}).keys():
        theirs = [seconds_to_best(dataset, method) for method in pair]
        claim["published_ratio"] = theirs[0] / theirs[1]
    if missing := [method for method in pair if method not in found]:
        return {**claim, "status": NOT_RUN, "missing": missing}
    if missing := [f"the pace of {name}" for name in pair if name not in epoch_s]:
        return {**claim, "status": NOT_RUN, "missing": missing}
    seconds = {
        name: epoch_s[name]
        * statistics.mean(run.result["best_epoch"] for run in found[name].values())
        for name in pair
    }
    ratio = seconds[faster] / seconds[slower]
    status = "holds" if ratio < 1 else "fails"
    return {**claim, "seconds": seconds, "ratio": ratio, "status": status}


def _by_number(method: str) -> tuple[str, int]:
    prefix, number = method.rpartition("_")[::2]
    return (prefix, int(number)) if number.isdecimal() else (method, 0)


def _rounded(value):
    """Floats to 6 decimals: another library's last bits do not change a file."""
    if isinstance(value, dict):
        return {str(key): _rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return round(value, 6) if isinstance(value, float) else value
