"""TrainState, and a run's checkpoint on disk, by orbax.

A checkpoint is written beside the old one and takes its place when it is whole, so an
interruption at any moment leaves a state that can be restored, bit for bit.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrec.errors import InputError


class TrainState(NamedTuple):
    """All that a training step changes.

    step: int32, optimiser steps done.
    params: float32 tree.
    opt_state: optax's.
    ema: moving average of params, or None where none is kept.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any


class Checkpoints:
    """The checkpoint of a run: its latest state, its best parameters, its progress.

    The three are one unit, written and replaced together, so that they always agree.
    Progress is what a TrainState cannot hold: plain JSON numbers (epoch, best metric,
    patience used, sums of an unfinished epoch). A context manager; leaving it waits
    until everything is on disk.
    """

    def __init__(self, workdir: str | Path):
        import orbax.checkpoint as ocp

        # Orbax fails in the background, and late, on a relative path.
        folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, create=True, enable_async_checkpointing=False
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "best": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._manager.close()

    @property
    def exists(self) -> bool:
        return self._manager.latest_step() is not None

    def save(self, state: TrainState, best: Any, progress: dict) -> None:
        """Returns once the arrays may be donated; a step that is there is kept."""
        import orbax.checkpoint as ocp

        step = int(state.step)
        if self._manager.latest_step() == step:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            best=ocp.args.StandardSave(best),
            progress=ocp.args.JsonSave(progress),
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, like: TrainState) -> tuple[TrainState, Any, dict]:
        """State, best parameters and progress; `like` gives shapes and dtypes.

        Raises:
          InputError: nothing was saved, or it is of another shape.
        """
        import orbax.checkpoint as ocp

        restored = self._restore(
            like.params,
            state=ocp.args.StandardRestore(_abstract(like)),
            best=ocp.args.StandardRestore(_abstract(like.params)),
            progress=ocp.args.JsonRestore(),
        )
        return restored["state"], restored["best"], restored["progress"]

    def restore_best(self, like: Any) -> Any:
        """The best parameters alone; `like` gives shapes, dtypes. Raises as above."""
        import orbax.checkpoint as ocp

        best = ocp.args.StandardRestore(_abstract(like))
        return self._restore(like, best=best)["best"]

    def _restore(self, params, **items):
        import orbax.checkpoint as ocp

        manager = self._manager
        step = manager.latest_step()
        if step is None:
            raise InputError(
                f"no checkpoint in {manager.directory}: the run was stopped before it "
                "saved one. Train it again."
            )
        try:
            _check_shapes(manager.item_metadata(step)["best"].tree, params)
            return manager.restore(step, args=ocp.args.Composite(**items))
        except InputError as error:
            raise InputError(
                f"the checkpoint {manager.directory}/{step} {error}"
            ) from None
        except (ValueError, KeyError, AttributeError, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".:")
            raise InputError(
                f"the checkpoint {manager.directory}/{step} cannot be restored: "
                f"{reason}. Use the config it was made with, its optimiser and moving "
                "average too."
            ) from error


def _check_shapes(saved_tree, params) -> None:
    """Raises InputError unless the saved parameters have the model's shapes.

    Done before restoring: orbax stops at an array of another shape with other reads in
    flight, and these tell of their end on the terminal.
    """
    saved, needed = _shapes(saved_tree), _shapes(params)
    for name in sorted(saved.keys() | needed.keys()):
        if saved.get(name) != needed.get(name):
            raise InputError(
                f"does not fit this model: {name} has shape {saved.get(name)} in the "
                f"checkpoint, {needed.get(name)} in the model. Use the config it was "
                "made with."
            )


def _shapes(params) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _abstract(tree):
    # Shardings are given, so that a state saved on other devices restores onto these.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x):
        sharding = getattr(x, "sharding", None) or device
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
