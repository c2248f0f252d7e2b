"""What a report says of runs on one split: intervals, slices, the log, examples.

Each is found from what there is: the ranks of a finished run, its data where they still
load, its model where it was saved. What cannot be found is noted with the reason.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec import datasets, metrics, popularity, runs, slices
from jaxrec.data import Holdout, Split
from jaxrec.errors import InputError
from jaxrec.held_out import HeldOut
from jaxrec.outcomes import Outcome
from jaxrec.pages.evidence import POPULARITY, Evidence
from jaxrec.pages.profiles import Profile, profile
from jaxrec.recommender import Recommender
from jaxrec.significance import Interval

Values = Mapping[str, np.ndarray]


class Example(NamedTuple):
    """A held-out row, and what would have been shown at that point, in ids as text.

    history: the last items before the hidden one, oldest first; num_history: of all.
    target: the hidden item.
    lists: by run, best first.
    ranks: by run, of the target; None where it is in the history and so filtered.
    """

    user: str
    history: list[str]
    num_history: int
    target: str
    lists: dict[str, list[str]]
    ranks: dict[str, int | None]


@dataclasses.dataclass(eq=False)
class Findings:
    """Of runs on one split.

    Attributes:
      runs: finished or not.
      metrics: those that all finished runs have.
      headline: one or two of them, the monitored one first.
      intervals: by run and metric; "popularity" among the runs where data loads.
      leads: by run and headline metric, the difference to popularity.
      slices: by run as `slices.means`, "popularity" among them.
      profile: of the log.
      beyond: by run, then of its lists ("model"), those of "popularity" and the "lead"
        of the first over the second, by metric, see `beyond`; numbers or Intervals.
        Diversity is in the run's own space, popularity's too.
      examples: drawn, not chosen.
      comparison: what `compare.compare` returns.
      missing: (name of run or runs, what is not there, why).
    """

    runs: list[Evidence]
    metrics: list[str] = dataclasses.field(default_factory=list)
    headline: list[str] = dataclasses.field(default_factory=list)
    intervals: dict[str, dict[str, Interval]] = dataclasses.field(default_factory=dict)
    leads: dict[str, dict[str, Interval]] = dataclasses.field(default_factory=dict)
    slices: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    profile: Profile | None = None
    beyond: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    examples: list[Example] = dataclasses.field(default_factory=list)
    comparison: dict | None = None
    missing: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> list[Evidence]:
        return [run for run in self.runs if run.result is not None]

    def note(self, run: str, what: str, why: object) -> None:
        self.missing.append((run, what, " ".join(str(why).split())))


class Wanted(NamedTuple):
    """How much to look for.

    num_examples, num_recommended: rows to show, and items to show for each.
    num_slices: groups of rows of nearly equal size.
    beyond_k: length of the lists that metrics beyond the rank are of; None for none.
    seed: of the draw of examples.
    """

    num_examples: int = 6
    num_recommended: int = 5
    num_slices: int = 4
    beyond_k: int | None = None
    seed: int = 0


def find(
    group: Sequence[Evidence],
    wanted: Wanted,
    *,
    options: Sequence[str] = (),
    frame: Any = None,
    log: Callable[[str], None] = lambda line: None,
) -> Findings:
    """All that can be found of runs on one split.

    Args:
      group: see `evidence.by_split`.
      wanted: how much.
      options: changes to the runs' configs, such as "--config.data.path=moved.csv".
      frame: a table of interactions in memory, if that is what they were trained on.
      log: is told what is being done.
    """
    found = Findings(list(group))
    for run in group:
        for what, why in run.missing:
            found.note(run.name, what, why)
    if not found.finished:
        return found
    named = [list((run.result or {}).get("test", {})) for run in found.finished]
    found.metrics = [name for name in named[0] if all(name in x for x in named)]
    if not found.metrics:
        found.note("", "results", "the runs have no metric in common.")
        return found
    found.headline = headline(found.metrics, found.finished[0].monitor)
    split = _add_models(found, wanted, options, frame, log)
    split = split or _load_split(found, options, frame)
    outcomes = {run.name: run.outcome for run in found.finished if run.outcome}
    values = {name: _values(of, found.metrics) for name, of in outcomes.items()}
    user_N = next((outcome.user_N for outcome in outcomes.values()), None)
    if split is not None:
        log("ranking by popularity")
        user_N, floor = split.test.user, _floor(split, found)
        found.leads = {
            name: {
                metric: slices.interval(of[metric] - floor[metric], user_N)
                for metric in found.headline
            }
            for name, of in values.items()
        }
        values[POPULARITY] = floor
        found.slices = _sliced(split, found.headline, values, wanted.num_slices)
        found.profile = profile(split)
    found.intervals = {
        name: {metric: slices.interval(x_N, user_N) for metric, x_N in of.items()}
        for name, of in values.items()
        if user_N is not None
    }
    return found


def headline(names: Sequence[str], monitor: str) -> list[str]:
    """The monitored metric, and the hit rate of its length, or else the next metric.

    >>> headline(["hr@10", "ndcg@10", "hr@100"], "ndcg@10")
    ['ndcg@10', 'hr@10']
    """
    first = monitor if monitor in names else next(iter(names), None)
    if first is None:
        return []
    likely = [f"hr@{first.partition('@')[2]}", *names]
    return [first, *[name for name in likely if name in names and name != first][:1]]


def _values(outcome: Outcome, names: Sequence[str]) -> Values:
    """The metrics of each row as the run was judged, float64 [N] by name."""
    rank_N = outcome.filtered_N if outcome.is_filtered else outcome.unfiltered_N
    return _of_ranks(rank_N, names, outcome.num_items)


def _of_ranks(rank_N: np.ndarray, names: Sequence[str], num_items: int) -> Values:
    import jax.numpy as jnp

    parsed = {name: metrics.parse(name) for name in names}
    rank_N = metrics.uncut(rank_N, num_items)
    return {
        name: np.asarray(metric_fn(jnp.asarray(rank_N), k), float)
        for name, (metric_fn, k) in parsed.items()
    }


def _floor(split: Split, found: Findings) -> Values:
    ranks = popularity.ranks(split, split.test)
    rank_N = ranks.filtered if found.runs[0].is_filtered else ranks.unfiltered
    return _of_ranks(rank_N, found.metrics, split.dataset.num_items)


def _sliced(
    split: Split, names: Sequence[str], of_rows: Mapping[str, Values], num_slices: int
) -> dict[str, list[dict]]:
    """Slices by run: rows of equal edges in all of them."""
    sliced: dict[str, list[dict]] = {name: [] for name in of_rows}
    for by, value in slices.VALUES.items():
        of_N = value(split, split.test)
        edges = slices.quantile_edges(of_N, num_slices)
        for name, values in of_rows.items():
            shown = {metric: values[metric] for metric in names}
            sliced[name] += slices.means(by, of_N, edges, shown, split.test.user)
    return sliced


def _load_split(found: Findings, options: Sequence[str], frame: Any) -> Split | None:
    """The runs' split without a model; noted if it cannot be loaded any more."""
    run = found.finished[0]
    try:
        settings = runs.override(
            run.settings, options, frame=frame, source=str(run.path)
        )
        split = datasets.load(**settings["data"], frame=frame)
        if split.sha256() != run.split_sha256:
            raise InputError(
                f"the data are not those of the run: their split has the hash "
                f"{split.sha256()[:12]}, the run's {run.split_sha256[:12]}."
            )
    except (InputError, OSError) as error:
        what = "slices, distributions of the log and intervals of popularity"
        found.note("", what, error)
        return None
    return split


def _add_models(
    found: Findings,
    wanted: Wanted,
    options: Sequence[str],
    frame: Any,
    log: Callable[[str], None],
) -> Split | None:
    """Adds what takes the runs' models, one after the other; returns their split."""
    split, row_E, lists = None, np.zeros(0, int), {}
    for run in found.finished:
        if run.path.suffix == ".json":
            why = "a record holds no parameters: give the run's folder."
            found.note(run.name, "examples", why)
            continue
        if not run.is_finished:
            why = "the parameters are of a later epoch than the result."
            found.note(run.name, "examples", why)
            continue
        log(f"loading the data and the model of {run.name}")
        try:
            built, params = runs.load(run.path, options, frame=frame)
        except (InputError, OSError) as error:
            found.note(run.name, "examples", error)
            continue
        split = split or built.split
        row_E = _draw(len(split.test.user), wanted)
        rows = Holdout(*(x[row_E] for x in built.split.test))
        k = min(wanted.num_recommended, built.split.dataset.num_items)
        if len(row_E):
            filter_seen = built.evaluation.filter_seen
            recommender = Recommender(built, params)
            _, lists[run.name] = recommender.lists(rows, k=k, filter_seen=filter_seen)
        if wanted.beyond_k is not None:
            log(f"recommending to every test row by {run.name}")
            _add_beyond(found, run, HeldOut(built, params, beyond_k=wanted.beyond_k))
    if split is not None:
        found.examples = _examples(split, row_E, lists, found)
    return split


def _draw(num_rows: int, wanted: Wanted) -> np.ndarray:
    rng = np.random.default_rng(wanted.seed)
    size = min(wanted.num_examples, num_rows)
    return np.sort(rng.choice(num_rows, size, replace=False))


def _add_beyond(found: Findings, run: Evidence, held_out: HeldOut) -> None:
    of_lists, of_all = held_out.list_values, held_out.catalogue_values
    floor = of_lists["popularity"]
    lead = {metric: x_N - floor[metric] for metric, x_N in of_lists["model"].items()}
    found.beyond[run.name] = {
        key: {**of_all.get(key, {})}
        | {
            metric: slices.interval(value_N, held_out.holdout.user)
            for metric, value_N in values.items()
        }
        for key, values in {**of_lists, "lead": lead}.items()
    }


def _examples(
    split: Split, row_E: np.ndarray, lists: Mapping[str, np.ndarray], found: Findings
) -> list[Example]:
    dataset, test = split.dataset, split.test
    outcomes = {run.name: run.outcome for run in found.finished}

    def ids(items: np.ndarray) -> list[str]:
        return [str(one) for one in dataset.item_ids[items[items > 0] - 1].tolist()]

    def rank(name: str, row: int) -> int | None:
        outcome = outcomes[name]
        if outcome is None:
            return None
        of_N = outcome.filtered_N if outcome.is_filtered else outcome.unfiltered_N
        return int(of_N[row]) if of_N[row] <= outcome.num_items else None

    examples = []
    for place, row in enumerate(row_E.tolist()):
        user, end = int(test.user[row]), int(test.end[row])
        history = dataset.items[dataset.offsets[user] : end]
        examples.append(
            Example(
                user=str(dataset.user_ids[user]),
                history=ids(history[-8:]),
                num_history=len(history),
                target=ids(test.target[row : row + 1])[0],
                lists={name: ids(item_EK[place]) for name, item_EK in lists.items()},
                ranks={name: rank(name, row) for name in lists},
            )
        )
    return examples
