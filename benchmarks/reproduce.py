"""Trains a data set's methods to their early stop, and sets them beside the paper.

    python -m benchmarks.reproduce --dataset ml-1m
    python -m benchmarks.reproduce --dataset ml-1m --methods bert4rec --seeds 0,1,2
    python -m benchmarks.reproduce --dataset ml-1m --table-only

Every run is an experiment of configs/ and becomes a record in results/reproduce/ (see
`records`). Runs with a record are skipped, finished ones are only recorded, interrupted
ones go on. After each of them the data set's table.md and table.json are made again,
and its part of docs/reproduction.md.

A method is named after its config, ml1m_<method>.py; `variants` has the endings that
change an option of it, such as sasrec_sampled_ce_300.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import fidelity, markdown, options, pace, records, variants
from benchmarks.published import PUBLISHED, TITLES
from jaxrec import config, experiment, record, train
from jaxrec import workdir as workdirs
from jaxrec.command import run_command
from jaxrec.errors import InputError

DOCUMENT = Path(__file__).parent.parent / "docs" / "reproduction.md"
# Options that change no number of a result: where things are, and what is shown.
FREE = {
    "data": workdirs.FREE["data"],
    "train": tuple({*workdirs.FREE["train"]} - {"max_epochs", "patience"}),
}


def reproduce(
    dataset: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    runs: Path = Path("runs"),
    folder: Path | None = None,
    document: Path = DOCUMENT,
    table_only: bool = False,
    train_fn: Callable[..., dict] = train.train,
    log: Callable[[str], None] = print,
) -> dict:
    """Makes the records that are missing, and the data set's table of all there are.

    Args:
      dataset: a data set of the paper.
      methods: names of configs, or of `variants`.
      seeds: the first seed of every method is run before the second of any.
      runs: the folder of the runs' workdirs, <dataset>-<method>-seed<k>.
      folder: of the data set's records and table; in the repository if not given.
      document: where the table is inserted.
      table_only: train nothing; finished runs are recorded nevertheless.
      train_fn: `train.train`, or what tests put in its place.
      log: takes lines of text.

    Returns:
      What table.json holds.

    Raises:
      InputError: no such data set or method, or a record or run of other options.
      KeyboardInterrupt: stopped by Ctrl-C; the same call goes on.
    """
    folder = folder or records.RESULTS / dataset
    # Before the first run, which may take hours: a wrong name in the last one.
    wanted = {
        (method, seed): settings_of(dataset, method, seed)
        for seed in seeds
        for method in methods
    }
    check_options(dataset, folder)
    for (method, seed), settings in wanted.items():
        path = records.path_of(folder, method, seed)
        workdir = runs / f"{dataset}-{method}-seed{seed}"
        if path.exists():
            log(f"{dataset} {method} seed {seed}: has its record, {path.name}")
            continue
        if not is_finished(workdir, settings):
            if table_only:
                log(f"{dataset} {method} seed {seed}: not run")
                continue
            log(f"{dataset} {method} seed {seed}: trains in {workdir}")
            train_run(train_fn, settings, workdir, log)
        records.save(workdir, path)
        log(f"{dataset} {method} seed {seed}: recorded, {path.name}")
        write_table(dataset, folder, document)
    log(f"table: {folder / 'table.md'}")
    return write_table(dataset, folder, document)


def settings_of(dataset: str, method: str, seed: int) -> dict:
    """The experiment of a method, from its file in configs/.

    Raises:
      InputError: no such data set or method.
    """
    if dataset not in PUBLISHED:
        near = config.suggestion(dataset, PUBLISHED, what="data sets")
        raise InputError(f"the paper has no data set {dataset!r}{near}.")
    name, options = method, [f"--config.train.seed={seed}"]
    if found := variants.variant(method):
        name = found.base
        options += [f"--config.method={method}", *found.options]
    if name not in TITLES:
        near = config.suggestion(name, TITLES, what="methods")
        ways = "Their variants are told by benchmarks/variants.py."
        raise InputError(f"no method {method!r}{near}. {ways}")
    file = f"configs/{dataset.replace('-', '')}_{name}.py"
    settings = config.override(
        config.read(file),
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=file,
    )
    if name != method and settings == {
        **settings_of(dataset, name, seed),
        "method": method,
    }:
        raise InputError(f"{method} is the experiment {name}: use that name.")
    return settings


def is_finished(workdir: Path, settings: Mapping) -> bool:
    """Whether a run of these settings has ended in the folder."""
    path = workdir / "result.json"
    if not path.exists():
        return False
    return not differences(record.read_json(path)["config"], settings)


def train_run(
    train_fn: Callable[..., dict],
    settings: dict,
    workdir: Path,
    log: Callable[[str], None],
) -> None:
    """Trains to the end, from where an earlier call was stopped."""
    has_saved = any((workdir / "checkpoints").glob("[0-9]*"))
    has_ended = (workdir / "result.json").exists()
    try:
        train_fn(settings, workdir, resume=has_saved or has_ended, log=log)
    except KeyboardInterrupt as interrupt:
        saved = "".join(map(str, interrupt.args)).partition(";")[0] or "not saved"
        raise KeyboardInterrupt(
            f"{workdir.name} {saved}; the same command goes on with it"
        ) from None


def check_options(dataset: str, folder: Path) -> None:
    """Raises InputError if a record was made with other options than its config has."""
    for method, of_method in records.read_all(folder).items():
        for seed, one in of_method.items():
            settings = settings_of(dataset, method, seed)
            if changed := differences(one.result["config"], settings):
                raise InputError(
                    f"{one.outcome.path} was made with other options than its config "
                    f"has now: {'; '.join(changed)}. Remove it to run {method} again."
                )


def differences(old: Mapping, new: Mapping) -> list[str]:
    """Options that two configs both have, with different values that matter.

    An option that only one of them has came, or went, with a version of the library,
    whose default is what it had been doing before.
    """
    return [
        f"{section}.{key} was {value!r}, is {new[section][key]!r}"
        for section in config.SECTIONS
        for key, value in old.get(section, {}).items()
        if key in new.get(section, {})
        and key not in FREE.get(section, ())
        and _listed(value) != _listed(new[section][key])
    ]


def write_table(dataset: str, folder: Path, document: Path) -> dict:
    """table.json, table.md and the document's part, from all records there are."""
    paces = pace.read(dataset)
    table = fidelity.make_table(dataset, records.read_all(folder), paces)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(folder / "table.json", table)
    head = (
        f"# {dataset}: the paper's table, made again\n\n"
        f"Generated from the records beside it by\n`{table['command']}`.\n\n"
    )
    (folder / "table.md").write_text(head + markdown.render(table))
    text = document.read_text()
    if f"<!-- begin {dataset} -->" in text:
        link = f"../benchmarks/results/reproduce/{dataset}/"
        part = markdown.render(table, link=link)
        document.write_text(markdown.insert(text, dataset, part))
    return table


def _listed(value):
    """JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser(
        "reproduce",
        "Train a data set's methods and set them beside the paper.",
        epilog="Ctrl-C saves; the same command goes on.",
    )
    parser.add_argument("--dataset", required=True, help=", ".join(PUBLISHED))
    parser.add_argument(
        "--methods",
        default=",".join(TITLES),
        help="such as sasrec_ce,sasrec_sampled_ce_300; by default %(default)s",
    )
    parser.add_argument("--seeds", default="0", help="such as 0,1,2; by default 0")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the runs' folder (runs)"
    )
    parser.add_argument(
        "--table-only",
        action="store_true",
        help="train nothing; record the runs that have ended, and make the table",
    )
    flags = parser.parse_args(argv)
    if not re.fullmatch(r"\d+(, *\d+)*", flags.seeds):
        raise InputError(f"--seeds must be numbers such as 0,1,2: got {flags.seeds!r}.")
    table = reproduce(
        flags.dataset,
        [method.strip() for method in flags.methods.split(",")],
        [int(seed) for seed in flags.seeds.split(",")],
        runs=flags.runs,
        table_only=flags.table_only,
    )
    print(markdown.render(table))


if __name__ == "__main__":
    sys.exit(run_command(main))
