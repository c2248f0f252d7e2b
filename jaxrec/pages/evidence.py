"""What a run left in its folder, read without its data, whole or not.

The counterpart of `outcomes.read`, which wants a finished run and refuses all else.
"""

import collections
import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from jaxrec import config, outcomes, record
from jaxrec.errors import InputError
from jaxrec.outcomes import Outcome

POPULARITY = "popularity"  # a name on a page that no run may have


@dataclasses.dataclass(eq=False)
class Evidence:
    """One run.

    Attributes:
      path: its folder, or the .json of a committed record.
      name: of the run among others.
      settings: its config.
      data: what data.json or the result says of the data.
      epochs: the lines of metrics.jsonl, first epoch first.
      result: what result.json holds; None if the run has not come so far.
      outcome: the result with its ranks; None where there are none.
      missing: (what cannot be said of the run, why).
    """

    path: Path
    name: str
    settings: dict
    data: dict
    epochs: list[dict]
    result: dict | None = None
    outcome: Outcome | None = None
    missing: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether its result is of its last epoch."""
        return self.result is not None and self.num_epochs <= self.result["epochs"]

    @property
    def num_epochs(self) -> int:
        return len(self.epochs) or (self.result or {}).get("epochs", 0)

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far; None before the first."""
        best = [line["epoch"] for line in self.epochs if line["is_best"]]
        return best[-1] if best else (self.result or {}).get("best_epoch")

    @property
    def seed(self) -> int:
        return self.settings.get("train", {}).get("seed", 0)

    @property
    def dataset(self) -> str:
        return str(self.data.get("name", "unknown data"))

    @property
    def split_sha256(self) -> str:
        return (self.result or self.data).get("split_sha256", "")

    @property
    def is_filtered(self) -> bool:
        return self.settings.get("eval", {}).get("filter_seen", True)

    @property
    def monitor(self) -> str:
        """The metric that chose the best epoch."""
        return self.settings.get("eval", {}).get("monitor", "ndcg@10")


def read(path: str | Path) -> Evidence:
    """What there is of a run.

    Args:
      path: a run's workdir; or a committed record, `<name>.json` beside
        `<name>.ranks.npz` and `<name>.metrics.jsonl`.

    Returns:
      The run, with the reasons for what is missing of it.

    Raises:
      InputError: there is no run, or a file of it is damaged.
    """
    path = Path(path)
    path = path.parent if path.name == "result.json" else path
    is_record = path.suffix == ".json" and path.is_file()
    result_path = path if is_record else path / "result.json"
    config_path = path / "config.json"
    if not (result_path.is_file() or config_path.is_file()):
        raise InputError(
            f"there is no run in {path}: it has neither config.json nor result.json. "
            "Give the workdir of a run of jaxrec.train, or a record such as "
            "sasrec_ce-seed0.json."
        )
    result = record.read_json(result_path) if result_path.is_file() else None
    metrics = (
        path.with_suffix(".metrics.jsonl") if is_record else path / "metrics.jsonl"
    )
    data_path = path / "data.json"
    run = Evidence(
        path=path,
        name="",
        settings=(
            config.from_json(config_path.read_text(), source=str(config_path))
            if config_path.is_file()
            else _section(result, "config", result_path)
        ),
        data=(
            _section(result, "data", result_path)
            if result is not None
            else record.read_json(data_path)
            if data_path.is_file()
            else {}
        ),
        epochs=read_epochs(metrics) if metrics.is_file() else [],
        result=result,
    )
    run.name = f"{run.settings.get('method', path.name)}-seed{run.seed}"
    if not run.epochs:
        run.missing.append(("learning curves", f"{metrics} holds no epoch."))
    _add_outcome(run)
    return run


def _section(result, name: str, path: Path) -> dict:
    """A section of a result; an InputError if it is none of ours."""
    if not (isinstance(result, dict) and isinstance(result.get(name), dict)):
        raise InputError(
            f"{path} must be a result of jaxrec.train: it has no {name}. Restore it, "
            "or train again."
        )
    return result[name]


def _add_outcome(run: Evidence) -> None:
    if run.result is None:
        why = "the run is not finished: there is no result yet."
        run.missing.append(("results and all that follows from them", why))
        return
    try:
        run.outcome = outcomes.read(run.path)
    except InputError as error:
        what = "intervals, comparison and slices"
        run.missing.append((what, str(error)))


def read_epochs(path: Path) -> list[dict]:
    """The epochs of a metrics.jsonl; a last line that is half written is left out.

    Raises:
      InputError: another line is no epoch; it is named.
    """
    lines = path.read_text().splitlines()
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
            epochs.append({**epoch, "epoch": epoch["epoch"], "loss": epoch["loss"]})
        except (json.JSONDecodeError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(
                    f"{path}, line {number}, must be the numbers of an epoch: got "
                    f"{line[:40]!r}. Restore it, or remove it to leave out the curves."
                ) from None
    return epochs


def read_all(paths: Iterable[str | Path]) -> list[Evidence]:
    """Several runs, each with a name of its own: of its path where others have it too.

    Raises:
      InputError: as `read`, or a run is given twice, or none.
    """
    runs = [read(path) for path in paths]
    if not runs:
        raise InputError("a report needs at least one run: give its workdir.")
    twice = collections.Counter(run.path.resolve() for run in runs).most_common(1)[0]
    if twice[1] > 1:
        raise InputError(f"{twice[0]} is given {twice[1]} times: give it once.")
    count = collections.Counter(run.name for run in runs)
    taken = {POPULARITY, *(name for name in count if count[name] == 1)}
    endings = shortest_endings([run.path.resolve() for run in runs], taken)
    for run, ending in zip(runs, endings, strict=True):
        run.name = run.name if run.name in taken else ending
    return runs


def shortest_endings(paths: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """Of each path so much of its end that no other path has, and that is not taken.

    >>> shortest_endings([Path("/runs/a"), Path("/runs/b"), Path("/old/b")])
    ['a', 'runs/b', 'old/b']
    """
    return [
        next(
            ending
            for n in range(1, len(path.parts) + 1)
            if (ending := str(Path(*path.parts[-n:]))) not in taken
            and all(x is path or x.parts[-n:] != path.parts[-n:] for x in paths)
        )
        for path in paths
    ]


def by_split(runs: Sequence[Evidence]) -> list[list[Evidence]]:
    """Runs of one split and one way of ranking together, in the order of the first."""
    groups: dict[tuple, list[Evidence]] = {}
    for run in runs:
        key = (run.split_sha256 or str(run.path), run.is_filtered)
        groups.setdefault(key, []).append(run)
    return list(groups.values())
