"""A finished or interrupted run, back from its workdir."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrec import config, experiment, steps
from jaxrec import workdir as workdirs
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
    workdirs.check_data(workdir, built)
    like = jax.eval_shape(lambda: steps.init_state(built.recipe).params)
    with Checkpoints(workdir) as checkpoints:
        return built, checkpoints.restore_best(like)
