"""A finished or interrupted run, back from its workdir."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrec import config, datasets, experiment, steps
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
    settings = override(settings, options, frame=frame, source=str(path))
    built = experiment.build(settings, frame)
    workdirs.check_data(workdir, built)
    like = jax.eval_shape(lambda: steps.init_state(built.recipe).params)
    with Checkpoints(workdir) as checkpoints:
        return built, checkpoints.restore_best(like)


def override(
    settings: Mapping, options: Sequence[str], *, frame: Any, source: str
) -> dict:
    """The config of a run with its changes, for data that there are.

    Args:
      settings: the run's own config.
      options, frame: as in `load`.
      source: where the config is from.

    Raises:
      InputError: a wrong option; or the run was trained on a table in memory, and
        neither that nor a file is given.
    """
    changed = config.override(
        settings,
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=source,
    )
    was, now = (
        tuple(of.get("data", {}).get(key, "") for key in ("name", "path"))
        for of in (settings, changed)
    )
    # No file and no public name: nothing else can have been trained on.
    was_in_memory = not was[1] and was[0] not in ("synthetic", *datasets.PUBLIC)
    if was_in_memory and now == was and frame is None:
        raise InputError(
            "the run was trained on a table in memory, which it does not keep: pass "
            "frame= in Python, or save the table and give --config.data.path=FILE "
            "(.parquet, where ids are text: a .csv cannot tell '7' from 7)."
        )
    return changed
