"""A finished or interrupted run, back from its workdir."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrec import config, experiment, record, steps
from jaxrec.checkpoint import Checkpoints
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment


def load(
    workdir: str | Path, options: Sequence[str] = (), *, frame: Any = None
) -> tuple[Experiment, Any]:
    """The experiment of a run and its best parameters.

    Args:
      workdir: the run's folder.
      options: changes to its config, such as "--config.data.path=moved/log.csv".
      frame: a table of interactions in memory, if that is what it was trained on.

    Raises:
      InputError: no run, nothing saved yet, or not the data it was trained on.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"there is no run in {workdir}: it has no config.json. Give the workdir of "
            "a run of jaxrec.train."
        )
    settings = config.from_json(path.read_text(), source=str(path))
    settings = config.override(
        settings,
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=str(path),
    )
    built = experiment.build(settings, frame)
    check_data(workdir, built)
    like = jax.eval_shape(lambda: steps.init_state(built.recipe).params)
    with Checkpoints(workdir) as checkpoints:
        return built, checkpoints.restore_best(like)


def check_data(workdir: Path, built: Experiment) -> None:
    """Raises InputError unless the run was started on this very split."""
    old = record.read_json(workdir / "data.json")["split_sha256"]
    new = built.split.sha256()
    if old != new:
        raise InputError(
            f"the run in {workdir} was started on other data: its split has the hash "
            f"{old[:12]}, this one {new[:12]}. Restore the file, or set "
            "--config.data.path to where it is."
        )
