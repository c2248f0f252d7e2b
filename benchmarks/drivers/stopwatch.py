"""Times the steps of a PyTorch Lightning trainer; for the drivers of such systems."""

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch  # pyright: ignore[reportMissingImports]

from benchmarks.drivers import protocol

if find_spec("lightning"):  # the same library under its two names: as the system has it
    import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]
else:
    import pytorch_lightning as pl  # pyright: ignore[reportMissingImports]


class Stopwatch(pl.Callback):
    """When each step ended, and what its batch held; ends the training in time.

    Args:
      labels: of a batch, and the one that stands for no target.
      steps, seconds: to measure at the least, after the warm-up.
    """

    def __init__(self, labels: Callable, steps: int, seconds: float):
        self.labels, self.steps, self.seconds = labels, steps, seconds
        self.end_s: list[float] = []
        self.targets: list[int] = []
        self.positions: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.end_s.append(time.perf_counter())
        labels, ignored = self.labels(batch)
        self.targets.append(int((labels != ignored).sum()))
        self.positions.append(labels.numel())
        measured = self.step_seconds
        if len(measured) >= self.steps and sum(measured) >= self.seconds:
            trainer.should_stop = True

    @property
    def warm_up(self) -> int:
        """Steps of the warm-up, so far."""
        for n in range(protocol.WARM_UP_STEPS, len(self.end_s)):
            if self.end_s[n - 1] - self.end_s[0] >= protocol.WARM_UP_SECONDS:
                return n
        return len(self.end_s)

    @property
    def step_seconds(self) -> list[float]:
        """From end to end, so that a wait for data counts; without the warm-up."""
        end_s = self.end_s[self.warm_up - 1 :]
        return [b - a for a, b in zip(end_s, end_s[1:], strict=False)]

    def step_seconds_at(self, positions: float) -> list[float]:
        """The same, as if every batch had so many positions, padding included."""
        of_step = self.positions[self.warm_up :]
        return [
            seconds * positions / size
            for seconds, size in zip(self.step_seconds, of_step, strict=True)
        ]

    @property
    def tokens_per_step(self) -> float:
        return statistics.fmean(self.targets[self.warm_up :])


class Compiler(pl.Callback):
    """Sends the training step through torch.compile.

    It is told that lengths vary, and compiles the paper's code anew for each of them
    nevertheless (TORCH_LOGS=recompiles tells).
    """

    def on_fit_start(self, trainer, pl_module):
        pl_module.log = torch.compiler.disable(pl_module.log)  # cannot be traced
        pl_module.training_step = torch.compile(pl_module.training_step, dynamic=True)


def trainer(stopwatch: Stopwatch, task) -> pl.Trainer:
    """Trains on the CPU and does nothing else: no log, no file.

    Args:
      task: of `protocol.parse`.
    """
    torch.set_num_threads(protocol.num_cores())
    if task.matmul == "bfloat16":
        torch.set_float32_matmul_precision("medium")
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if task.dtype == "bfloat16" else "32-true",
        callbacks=[stopwatch, *([Compiler()] if task.compile else [])],
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
