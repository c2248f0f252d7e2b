"""The training loop: dispatches, epochs, validation, patience, checkpoints, signals."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import backend, batches, evaluator, models, steps
from jaxrec.batches import Plan
from jaxrec.checkpoint import Checkpoints, TrainState
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment
from jaxrec.writers import Writer


@dataclasses.dataclass
class Progress:
    """Where a run stands: what a TrainState cannot hold, as JSON numbers.

    Attributes:
      epoch: epochs finished.
      steps_done: steps of the unfinished epoch that are done.
      loss_sum, weight_sum: of those steps.
      best_value, best_epoch: of the monitored metric; the epoch counts from 1.
      epoch_s: seconds in planning the unfinished epoch and in its steps.
      train_s, compile_s, total_s: seconds in steps, in compiling them and validation,
        and in all, the reading of the data and the last ranking included.
    """

    epoch: int = 0
    steps_done: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    best_value: float = -math.inf
    best_epoch: int = 0
    epoch_s: float = 0.0
    train_s: float = 0.0
    compile_s: float = 0.0
    total_s: float = 0.0

    def to_json(self) -> dict:
        fields = dataclasses.asdict(self)
        if self.best_epoch == 0:
            del fields["best_value"]  # JSON has no infinity
        return fields


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turns the first SIGINT or SIGTERM into an entry of the list it yields.

    The loop looks at it between dispatches and stops where the state can be saved. A
    second signal acts as it would have without us. Outside the main thread, where
    Python allows no handlers, signals are left alone.
    """
    received: list[int] = []
    previous = {}

    def handle(signum, frame):
        received.append(signum)
        print("stopping; once more to stop at once", file=sys.stderr)
        for name, handler in previous.items():
            signal.signal(name, handler)

    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[name] = signal.signal(name, handle)
        except ValueError:
            break
    try:
        yield received
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


# Operations of a dispatch and its steps, at the most, where a config does not say. A
# run is stopped and saved between dispatches, and on a CPU each takes the memory of its
# steps anew, which on ML-1M takes half as long as a step (benchmarks/LOG.md). That of a
# GPU is a guess: nothing was timed there.
_CPU_WORK, _GPU_WORK = 1.5e12, 1e14
_MOST_STEPS = 64
# Operations that take as long as Adam's passes over one parameter do.
_PARAMETER_WORK = 1000


class Work(NamedTuple):
    """What the operations of a training step go by.

    num_tokens: places in the rows of the encoder.
    num_parameters: the table's among them.
    table_size: V D.
    candidates_size: numbers in the rows of the table that a token competes with.
    """

    num_tokens: int
    num_parameters: int
    table_size: int
    candidates_size: int

    @property
    def operations(self) -> float:
        """A matmul forward and two backward with all that a token meets, and Adam."""
        met = self.num_parameters - self.table_size + self.candidates_size
        return 6.0 * self.num_tokens * met + _PARAMETER_WORK * self.num_parameters

    @property
    def steps(self) -> int:
        """Those that keep a device busy for some seconds, a GPU for less."""
        most = _CPU_WORK if backend.is_cpu() else _GPU_WORK
        return int(min(max(most / max(self.operations, 1.0), 1), _MOST_STEPS))


def dispatch_sizes(num_steps: int, most: int) -> list[int]:
    """Cuts an epoch into dispatches of at most `most` steps and few different sizes.

    Each size is compiled once. A size from most / 2 up that divides the epoch is
    preferred; else the last dispatch is shorter.

    >>> dispatch_sizes(48, 16), dispatch_sizes(45, 16), dispatch_sizes(37, 16)
    ([16, 16, 16], [15, 15, 15], [16, 16, 5])
    """
    most = max(1, min(most, num_steps))
    divisors = [d for d in range(most, most // 2, -1) if num_steps % d == 0]
    size = divisors[0] if divisors else most
    whole, rest = divmod(num_steps, size)
    return [size] * whole + ([rest] if rest else [])


class Pending(NamedTuple):
    """A dispatch that was not waited for: its steps, and (loss, weight) summed."""

    num_steps: int
    sums: tuple[jax.Array, jax.Array]


class Run:
    """One run of an experiment: where it stands, and how it goes on.

    Args:
      experiment: what to train.
      began: when the command did, by time.monotonic().
    """

    checkpoints: Checkpoints

    def __init__(self, experiment: Experiment, began: float):
        self.experiment, self.began = experiment, began
        self.user_N, self.length_N = training_users(experiment)
        self.train_end_U = jnp.asarray(experiment.split.train_end, jnp.int32)
        valid = evaluator.subset(
            experiment.split.valid,
            experiment.evaluation.max_valid_users,
            seed=experiment.training.seed,
        )
        self.valid = experiment.evaluator.cut(valid)
        # One row count for all epochs but the rare one that needs more, a function of
        # the plans alone: a resumed run compiles, and draws, the same.
        self.num_rows = max(self.plan(epoch).num_rows for epoch in range(3))
        self.planned: dict[int, Plan] = {}  # by epoch, ahead of it
        self.compiled: dict[tuple[int, int], jax.stages.Compiled] = {}
        self.progress = Progress()
        # Dispatches that the device may still be at, and when it was last seen.
        self.pending: list[Pending] = []
        self.seen_at = time.monotonic()
        # One program: eagerly, each initialiser would be compiled on its own.
        self.init = jax.jit(partial(steps.init_state, experiment.recipe))
        self.state_shapes: TrainState = jax.eval_shape(self.init)
        self.saved_at = time.monotonic()

    @cached_property
    def state(self) -> TrainState:
        """Made when it is asked for: compiling, which comes first, needs its shapes."""
        return self.init()

    @cached_property
    def best(self) -> Any:
        """The best parameters so far, at first those that training begins with."""
        # A copy, since the state's own buffers are donated to the next step.
        return jax.tree.map(jnp.copy, self.state.params)

    def start(self) -> None:
        """Makes the state, unless there is one."""
        _ = self.best
        backend.release_memory()

    def restore(self, checkpoints: Checkpoints) -> None:
        """Goes on from what was saved, if anything was, and saves there from now on."""
        self.checkpoints = checkpoints
        if checkpoints.exists:
            self.state, best, saved = checkpoints.restore(self.state_shapes)
            self.best = jax.tree.map(jnp.copy, best)
            compile_s = self.progress.compile_s
            self.progress = Progress(**saved)
            self.progress.compile_s += compile_s
            self.began -= self.progress.total_s

    def plan(self, epoch: int) -> Plan:
        return batches.plan_epoch(
            self.user_N,
            self.length_N,
            seed=self.experiment.training.seed,
            epoch=epoch,
            batch_size=self.experiment.training.batch_size,
            row_length=self.experiment.recipe.max_length,
            stratify=self.experiment.training.stratify,
        )

    @property
    def is_finished(self) -> bool:
        training, progress = self.experiment.training, self.progress
        return progress.steps_done == 0 and (
            progress.epoch >= training.max_epochs
            or progress.epoch - progress.best_epoch >= training.patience
        )

    def fit(self, writers: Sequence[Writer], interrupted: list[int]):
        """Epochs until patience or max_epochs ends them; returns the best parameters.

        Args:
          writers: take the numbers of each epoch, and of each dispatch if they `tick`.
          interrupted: see `interruptible`.
        """
        self.start()
        while not self.is_finished:
            if interrupted:  # while something was compiled
                self.stop()
            self.train_epoch(writers, interrupted)
            values = self.end_epoch()
            for writer in writers:
                writer.write(int(self.state.step), values)
            if interrupted:
                self.stop()
            self.save_if_due()
        self.save()
        return self.best

    def compile_epoch(self) -> None:
        """Compiles what the first epoch needs."""
        backend.release_memory()  # what reading the data has left over
        plan = self.plan(0)
        sizes = self.dispatch_sizes(plan)
        for size in set(sizes):
            self.compile((size, plan.user_SB.shape[1]), self.num_rows)

    def compile_validation(self) -> None:
        """Compiles the ranking of the validation rows."""
        started = time.monotonic()
        params = self.state_shapes.params
        self.experiment.evaluator.compile(params, self.valid)
        backend.release_memory()
        self.progress.compile_s += time.monotonic() - started

    def dispatch_sizes(self, plan: Plan) -> list[int]:
        most = self.experiment.training.steps_per_dispatch
        if most is None:
            most = self.work.steps
        return dispatch_sizes(len(plan.user_SB), most)

    @cached_property
    def work(self) -> Work:
        """Of a step."""
        recipe, params = self.experiment.recipe, self.state_shapes.params
        encoder = recipe.encoder
        table = jax.eval_shape(
            lambda x: encoder.apply({"params": x}, method="table"), params
        )
        num_rows, width = table.shape
        num_candidates = recipe.objective.num_negatives or num_rows
        return Work(
            self.num_rows * recipe.max_length,
            models.num_parameters(params),
            num_rows * width,
            num_candidates * width,
        )

    def train_epoch(self, writers: Sequence[Writer], interrupted: list[int]) -> None:
        """The steps of an epoch that are not done yet.

        The next epoch is planned while the device is at this one's last steps: it waits
        for the host before the first epoch alone. Either way planning is in `epoch_s`.
        """
        progress = self.progress
        began = time.monotonic()
        plan = self.planned.pop(progress.epoch, None) or self.plan(progress.epoch)
        progress.epoch_s += time.monotonic() - began
        num_steps = len(plan.user_SB)
        first = 0
        for size in self.dispatch_sizes(plan):
            # Of a dispatch that was cut otherwise where the run began, what is left.
            part = slice(max(first, progress.steps_done), first + size)
            first += size
            if first <= progress.steps_done:
                continue
            self.dispatch(
                plan.user_SB[part],
                plan.slot_SB[part],
                max(self.num_rows, plan.num_rows),
            )
            progress.steps_done = first
            if progress.weight_sum > 0:
                rate = progress.weight_sum / progress.epoch_s
                waited_for = first - sum(one.num_steps for one in self.pending)
                for writer in writers:
                    writer.tick(waited_for / num_steps, rate)
            if first < num_steps:
                if interrupted:
                    self.stop()
                self.save_if_due()
        # After the last epoch too: whether it is the last is known once it is ranked.
        self.planned = {progress.epoch + 1: self.plan(progress.epoch + 1)}
        self.settle()

    def dispatch(self, user_SB: np.ndarray, slot_SB: np.ndarray, num_rows: int) -> None:
        """S steps in one call of the device, which is not waited for.

        But for the one before it, so that the host is never far ahead.
        """
        arguments = (self.experiment.log, self.train_end_U, self.experiment.items)
        call = self.compile(user_SB.shape, num_rows)
        if not self.pending:
            self.seen_at = time.monotonic()
        self.state, sums = call(self.state, *arguments, user_SB, slot_SB)
        self.pending.append(Pending(len(user_SB), sums))
        self.settle(keep=1)

    def settle(self, keep: int = 0) -> None:
        """Adds up what the pending dispatches did, but for the last `keep` of them."""
        progress = self.progress
        while len(self.pending) > keep:
            sums = self.pending.pop(0).sums
            backend.wait(sums)
            loss_sum, weight_sum = map(float, jax.device_get(sums))
            now = time.monotonic()
            progress.epoch_s += now - self.seen_at
            self.seen_at = now
            progress.loss_sum += loss_sum
            progress.weight_sum += weight_sum
            if not math.isfinite(loss_sum):
                raise FloatingPointError(
                    f"the loss is {loss_sum} in epoch {progress.epoch + 1}, at or "
                    f"before step {int(self.state.step)}. Lower optim.learning_rate or "
                    "set optim.clip_norm; the last checkpoint is as it was."
                )

    def compile(self, shape: tuple[int, ...], num_rows: int) -> jax.stages.Compiled:
        """The program of a dispatch, compiled once for each shape."""
        key = (shape[0], num_rows)
        if key not in self.compiled:
            self.settle()  # or compiling would be in the time of the steps
            started = time.monotonic()
            experiment = self.experiment
            function = partial(
                steps.train_steps, recipe=experiment.recipe, num_rows=num_rows
            )
            plan = jax.ShapeDtypeStruct(shape, jnp.int32)
            arguments = (experiment.log, self.train_end_U, experiment.items)
            jitted = jax.jit(function, donate_argnums=0)
            lowered = jitted.lower(self.state_shapes, *arguments, plan, plan)
            self.compiled[key] = lowered.compile()
            backend.release_memory()
            self.progress.compile_s += time.monotonic() - started
        return self.compiled[key]

    def end_epoch(self) -> dict:
        """Ranks the validation rows and keeps the best; returns the epoch's numbers."""
        progress = self.progress
        # A small epoch may hide no item, by chance: its loss is a sum of nothing.
        loss = progress.loss_sum / (progress.weight_sum or 1)
        tokens_per_s = progress.weight_sum / progress.epoch_s
        train_s = progress.epoch_s
        progress.epoch += 1
        progress.train_s += train_s
        progress.steps_done = 0
        progress.loss_sum = progress.weight_sum = progress.epoch_s = 0.0
        started = time.monotonic()
        values = self.validate()
        valid_s = time.monotonic() - started
        value = values[self.experiment.evaluation.monitor]
        is_best = value > progress.best_value
        if is_best:
            progress.best_value = value
            progress.best_epoch = progress.epoch
            self.best = jax.tree.map(jnp.copy, self.params)
        progress.total_s = time.monotonic() - self.began
        return {
            "epoch": progress.epoch,
            "loss": loss,
            **{f"valid/{name}": value for name, value in values.items()},
            "is_best": is_best,
            "tokens_per_s": tokens_per_s,
            "train_s": train_s,
            "valid_s": valid_s,
            "total_s": progress.total_s,
        }

    @property
    def params(self) -> Any:
        """What is validated and kept: parameters, or their average if there is one."""
        return self.state.params if self.state.ema is None else self.state.ema

    def validate(self) -> dict[str, float]:
        """The metrics of the validation rows."""
        experiment = self.experiment
        ranks = experiment.evaluator.ranks(self.params, self.valid)
        return evaluator.summary(
            ranks,
            experiment.evaluation.reported,
            filter_seen=experiment.evaluation.filter_seen,
            num_items=experiment.split.dataset.num_items,
        )

    def save(self) -> None:
        self.settle()
        self.progress.total_s = time.monotonic() - self.began
        self.checkpoints.save(self.state, self.best, self.progress.to_json())
        self.saved_at = time.monotonic()

    def save_if_due(self) -> None:
        due = self.saved_at + self.experiment.training.checkpoint_every_s
        if time.monotonic() >= due:
            self.save()

    def stop(self) -> None:
        self.save()
        raise KeyboardInterrupt(
            f"saved in epoch {self.progress.epoch + 1} after step "
            f"{int(self.state.step)}; go on with --resume, in Python resume=True"
        )


def training_users(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """The users that make a training sample, and the tokens of each one's window."""
    split = experiment.split
    is_next_item = experiment.encoder.objective == "next_item"
    length_U = np.minimum(
        split.train_lengths - is_next_item, experiment.recipe.max_length
    )
    user_N = np.flatnonzero(length_U > 0)
    if len(user_N) == 0:
        raise InputError(
            f"no user of {split.dataset.name} has the {1 + is_next_item} training "
            "interactions that make a training sample. Lower the filters."
        )
    return user_N, length_U[user_N]
