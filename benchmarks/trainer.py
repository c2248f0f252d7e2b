"""The training loop's own programs, one dispatch at a time, to be timed."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import shapes
from jaxrec import models
from jaxrec.data import Split
from jaxrec.loop import Run


class Trainer:
    """Calls the compiled dispatch of a run again and again; the state goes on.

    Args:
      split: what to train on.
      chosen: the config.
      num_steps: of one dispatch, the epoch's first ones; None for the training loop's.
      change: of the experiment's recipe, to try another.

    Attributes:
      run: the training loop's; program: its dispatch, compiled; plan: of epoch 0.
    """

    def __init__(
        self,
        split: Split,
        chosen: Mapping[str, Any],
        *,
        num_steps: int | None,
        change: Any = None,
    ):
        experiment = shapes.on_split(split, chosen)
        if change is not None:
            recipe = change(experiment.recipe)
            experiment = shapes.with_recipe(experiment, recipe)
        self.run = Run(experiment, time.monotonic())
        self.plan = self.run.plan(0)
        if num_steps is None:
            num_steps = self.run.dispatch_sizes(self.plan)[0]
        self.num_steps = min(num_steps, len(self.plan.user_SB))
        self.part = (
            self.plan.user_SB[: self.num_steps],
            self.plan.slot_SB[: self.num_steps],
        )
        self.program = self.run.compile(self.part[0].shape, self.run.num_rows)
        self.shared = (experiment.log, self.run.train_end_U, experiment.items)
        self.weight: Any = None

    def __call__(self) -> Any:
        """Dispatches the steps; returns their loss, which can be waited for."""
        state, (loss, self.weight) = self.program(
            self.run.state, *self.shared, *self.part
        )
        self.run.state = state
        return loss

    def place(self, slot_B: np.ndarray, *, num_rows: int) -> None:
        """Begins every batch's windows at those slots of the rows, in place of the
        plan's."""
        user_SB, slot_SB = self.part
        slot_SB = np.broadcast_to(slot_B.astype(np.int32), slot_SB.shape)
        self.part, self.run.num_rows = (user_SB, slot_SB), num_rows
        self.program = self.run.compile(slot_SB.shape, num_rows)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.plan.user_SB)

    @property
    def tokens_per_step(self) -> float:
        """Positions with a target, the mean of the steps called last."""
        return float(jax.device_get(self.weight)) / self.num_steps

    @property
    def num_parameters(self) -> int:
        return models.num_parameters(self.run.state.params)
