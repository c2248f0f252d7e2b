"""A table of `fidelity` as Markdown, and its place in a document."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from jaxrec.errors import InputError

NOT_RUN = "not run"
HEADINGS = {
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr@10": "MRR@10",
    "hr@100": "HR@100",
    "ndcg@100": "NDCG@100",
}
WITH_INTERVAL = ("hr@10", "ndcg@10")


def render(table: Mapping, *, link: str = "") -> str:
    """Where it stands in a line; then quality, distance to the paper, claims and runs.

    Args:
      table: from `fidelity.make_table`.
      link: put before the file names of records, such as "results/".
    """
    parts = [
        headline(table),
        quality(table),
        distance(table),
        claimed(table),
        changed(table),
        times(table),
        runs(table, link),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(table: Mapping) -> str:
    """How many bars are met and how many claims hold; what is not run is counted.

    The order is no claim of its own: it is what three of them say together.
    """
    bars = [
        against
        for row in table["rows"]
        for against in row.get("against_paper", {}).values()
        if against["tolerance"] is not None
    ]
    counts = {
        name: Counter(one["status"] for one in ones)
        for name, ones in (
            ("Bars", bars),
            ("Claims of quality", table["claims"][:-1]),
            ("The order", table["claims"][-1:]),
            ("Claims of time", table["times"]),
        )
    }
    counted = (
        f"{name}: {', '.join(f'{n} {status}' for status, n in sorted(of.items()))}"
        for name, of in counts.items()
        if of
    )
    return "; ".join(counted) + "."


def quality(table: Mapping) -> str:
    """Test metrics of every method, popularity last."""
    lines = []
    for row in table["rows"]:
        name, seeds = row["title"], ", ".join(map(str, row["seeds"])) or NOT_RUN
        cells = (
            [_measured(row["test"], key) for key in HEADINGS] if row["seeds"] else []
        )
        lines.append([name, seeds, *cells])
    if table["popularity"]:
        floor = [fraction(table["popularity"][key]) for key in HEADINGS]
        lines.append(["Popularity", "", *floor])
    users = f", {table['users']:,} users" if table["users"] else ""
    return (
        f"**Quality on the test part**{users}, ranked over the whole catalogue; in "
        "brackets the 95% bootstrap interval over users, ± the standard deviation "
        "between seeds. SASRec+ and a number: so many negatives a sequence, shared by "
        "16 sequences (`loss.share`) or dealt (`loss.draw`) where it says so. "
        "Popularity counts the training part.\n\n"
        + _grid(["method", "seeds", *HEADINGS.values()], lines)
    )


def distance(table: Mapping) -> str:
    """Ours less the published number, and the bar it has to keep; "" if none is."""
    lines = []
    for row in table["rows"]:
        for key, against in row.get("against_paper", {}).items():
            start = [row["title"], HEADINGS[key], fraction(against["published"])]
            if against["status"] == NOT_RUN:
                lines.append([*start, NOT_RUN])
                continue
            errors = [against["in_standard_errors"], against["in_seed_errors"]]
            ours, difference = row["test"][key]["mean"], against["difference"]
            cells = [fraction(ours), signed(difference)]
            cells += ["" if x is None else signed(x, "{:.1f}".format) for x in errors]
            lines.append([*start, *cells, _bar(against)])
    if not lines:
        return ""
    header = ["method", "metric", "paper", "ours", "difference", "in SE", "in seed SE"]
    return (
        "**Distance to the paper.** SE: standard error of our mean over users, from "
        "which the paper's cannot be far; both are of the same users. Seed SE: of our "
        "mean against one run, from the spread between three seeds or more. The bar is "
        "on the difference, above as much as below.\n\n"
        + _grid([*header, "bar"], lines)
    )


def claimed(table: Mapping) -> str:
    """The paper's claims as paired tests over users, and a question beyond them."""
    return (
        "**The claims.** Differences over the same users with 95% bootstrap intervals; "
        "size: mean over standard deviation of the users' differences; p: two-sided "
        "permutation test, adjusted by Holm within a column. A claim holds by NDCG@10 "
        "with p < .05, of the runs whose seeds it names and for more users than these; "
        "what other seeds would change, it cannot say."
        f"\n\n{_claims(table['claims'])}\n\n"
        "**Beyond the paper.** SASRec+ 3000 never draws an item of the window as a "
        "negative, SASRec+ has them all in its softmax: what does that alone change?"
        f"\n\n{_claims(table['beyond'])}"
    )


def _claims(claims: Iterable[Mapping]) -> str:
    lines = []
    for claim in claims:
        if claim["status"] == NOT_RUN:
            lines.append([claim["claim"], _verdict(claim)])
            continue
        ndcg, hit = claim["effects"]["ndcg@10"], claim["effects"]["hr@10"]
        size = f"{ndcg['effect_size']:+.2f}" if "effect_size" in ndcg else ""
        paper = signed(ndcg["published"]) if ndcg.get("published") is not None else ""
        seeds = [", ".join(map(str, seeds)) for seeds in claim.get("seeds", ())]
        cells = [" / ".join(seeds), _interval(ndcg), size]
        cells += [probability(ndcg["p_holm"]), paper]
        cells += [_interval(hit), probability(hit["p_holm"])]
        lines.append([claim["claim"], _verdict(claim), *cells])
    header = ["claim", "verdict", "seeds", "NDCG@10: difference", "size", "p", "paper"]
    return _grid([*header, "HR@10: difference", "p"], lines)


def changed(table: Mapping) -> str:
    """What one option changes, from the variants that were run; "" if none was."""
    lines = []
    for change in table["changes"]:
        ndcg, hit = change["effects"]["ndcg@10"], change["effects"]["hr@10"]
        cells = [change["variant"], ", ".join(map(str, change["seeds"]))]
        cells += [_interval(ndcg), probability(ndcg["p"])]
        lines.append([*cells, _interval(hit), probability(hit["p"])])
    if not lines:
        return ""
    header = ["variant", "seeds", "NDCG@10: difference", "p", "HR@10: difference", "p"]
    return (
        "**What one option changes.** Each variant less the method as it stands above, "
        "over the same users; p of a two-sided permutation test, not adjusted. One "
        "pair of runs also differs by chance as two seeds do.\n\n"
        + _grid(header, lines)
    )


def times(table: Mapping) -> str:
    """Training time to the best epoch, one method against another."""
    lines = []
    for claim in table["times"]:
        paper = claim.get("published_ratio")
        ratio, seconds = claim.get("ratio"), claim.get("seconds", {})
        lines.append(
            [
                claim["claim"],
                _verdict(claim),
                " / ".join(f"{value:,.0f} s" for value in seconds.values()),
                "" if ratio is None else f"{ratio:.2f}",
                "" if paper is None else f"{paper:.2f}",
            ]
        )
    return (
        "**Training time to the best epoch**, the mean over a method's seeds, without "
        "validation: the epochs until then, at the pace of the methods in turn on "
        f"{table['pace_of'] or 'a device'} (`python -m benchmarks.pace`). The paper's "
        "ratio is of its training times, which hold validation, up to its best "
        "epochs.\n\n" + _grid(["claim", "verdict", "seconds", "ratio", "paper"], lines)
    )


def runs(table: Mapping, link: str) -> str:
    """Every run made, with its record; "" if none is."""
    lines = []
    for row in table["rows"]:
        for run in row.get("runs", ()):
            file = f"{row['method']}-seed{run['seed']}.json"
            lines.append(
                [
                    row["title"],
                    f"[{run['seed']}]({link}{file})",
                    fraction(row["test"]["ndcg@10"]["by_seed"][_place(row, run)]),
                    f"{run['best_epoch']}",
                    f"{row['published']['best_epoch']}" if "published" in row else "",
                    f"{run['epochs']}{'' if run['is_stopped_early'] else ' (limit)'}",
                    f"{run['train_s']:,.0f}",
                    f"{run['to_best_s']:,.0f}",
                    run["device"],
                ]
            )
    if not lines:
        return ""
    header = ["method", "seed", "NDCG@10", "best epoch", "the paper's", "epochs run"]
    header += ["training, s", "to the best, s", "device"]
    return (
        "**Every run.** A seed links to its record; (limit): ended by the limit of "
        "epochs, not by early stopping. Seconds are by the clock of a machine that had "
        "other work too, at different commits: no two rows' can be compared.\n\n"
        + _grid(header, lines)
    )


def insert(document: str, name: str, text: str) -> str:
    """The document with the text between its two markers of that name.

    >>> insert("a <!-- begin x -->old<!-- end x --> b", "x", "new")
    'a <!-- begin x -->\\nnew\\n<!-- end x --> b'

    Raises:
      InputError: the document does not have both markers, once.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    place = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    changed, count = place.subn(
        lambda match: f"{match[1]}\n{text.strip()}\n{match[2]}", document
    )
    if count != 1:
        raise InputError(
            f"a generated text needs one place, from {begin} to {end}: found {count}."
        )
    return changed


def fraction(value: float) -> str:
    """
    >>> fraction(0.18085), fraction(1.0)
    ('.1809', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")


def signed(value: float, form: Callable[[float], str] = fraction) -> str:
    """
    >>> signed(0.0012), signed(-0.25, "{:.1f}".format)
    ('+.0012', '−0.2')
    """
    return ("−" if value < 0 else "+") + form(abs(value))


def probability(p: float) -> str:
    """
    >>> probability(0.0321), probability(0.0005), probability(1.0)
    ('.032', '< .001', '1.000')
    """
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _measured(test: Mapping, key: str) -> str:
    measured = test[key]
    text = fraction(measured["mean"])
    if key in WITH_INTERVAL:
        text += f" [{fraction(measured['low'])}, {fraction(measured['high'])}]"
    if measured["spread"] is not None:
        text += f" ± {fraction(measured['spread'])}"
    return text


def _interval(effect: Mapping) -> str:
    text = signed(effect["difference"])
    if "low" in effect:
        text += f" [{signed(effect['low'])}, {signed(effect['high'])}]"
    return text


def _bar(against: Mapping) -> str:
    status, tolerance = against["status"], against["tolerance"]
    if tolerance is None:
        return status
    text = f"**{status}**" if status == "missed" else status
    return f"{text} (± {fraction(tolerance)})"


def _verdict(claim: Mapping) -> str:
    if claim["status"] == NOT_RUN:
        return f"{NOT_RUN}: {', '.join(claim['missing'])}"
    status = claim["status"] if claim["status"] == "holds" else f"**{claim['status']}**"
    return f"{status}: {claim['reason']}" if "reason" in claim else status


def _place(row: Mapping, run: Mapping) -> int:
    return row["seeds"].index(run["seed"])


def _grid(header: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table; short lines are filled up."""
    rows = [header, ["---"] * len(header)]
    rows += [line + [""] * (len(header) - len(line)) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
