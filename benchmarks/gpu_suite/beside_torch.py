"""Is a training step faster than that of a plain PyTorch SASRec on the same device?

The rival is what one writes with torch.nn (`torch_sasrec`), or with --paper-repo the
paper's own model: padded windows, the scores of every position and item,
cross_entropy, Adam, in a process of its own, so that neither side minds the other's
libraries. Its batches lie on the device before the clock starts, its float32 matmuls
may use TF32, as ours do on recent GPUs, and it is timed as it is, with the scores of
targets alone, compiled by torch.compile, and in CUDA graphs; Adam is the fused one.
Ours is dispatches of the training loop, which cut and pack their windows as they go.
All take turns on the same users.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, shapes
from benchmarks.gpu_suite.part import Flags, Row, Task
from benchmarks.measure import Variant
from benchmarks.shapes import SHAPES, TINY, Shape
from benchmarks.trainer import Trainer
from jaxrec import batches, data

ROOT = Path(__file__).parents[2]
# On one H200, milliseconds of a step.
STEP_BARS_MS = {"ml-1m": 0.30, "beauty": 0.30}
CASES = {**SHAPES, "100,000 items": SHAPES["beauty"]._replace(num_items=100_000)}
# Steps of a dispatch, as many as the training loop's of ML-1M, and dispatches of one
# timing.
NUM_STEPS, DISPATCHES = 48, 3
BATCH_SIZE = 128
NOTES = (
    "time_ratio: times as long as jaxrec in float32 takes.",
    "memory is the program's arguments, results and temporaries for jaxrec, and the "
    "most that the allocator had handed out in a step for PyTorch.",
    "PAD is a class of the rivals' softmax and not of ours; a position without a "
    "target counts in no loss. 100,000 items: with the lengths of Beauty.",
)


def tasks(flags: Flags) -> Iterator[Task]:
    """Each shape beside the plain model, and beside the paper's if it is there."""
    for kind in ("plain", "paper") if flags.paper_repo else ("plain",):
        for name, shape in ({"tiny": TINY} if flags.is_tiny else CASES).items():
            beside = " beside the paper's model" if kind == "paper" else ""
            yield Task(name + beside, partial(compare, name, shape, kind, flags))


def compare(name: str, shape: Shape, kind: str, flags: Flags) -> list[Row]:
    """Ours, encoder and loss in either precision, and every setting of the rival's."""
    batch_size = 8 if flags.is_tiny else BATCH_SIZE
    num_steps = 2 if flags.is_tiny else NUM_STEPS
    log = shapes.made_log(shape, num_users=num_steps * batch_size)
    split = data.leave_one_out(log)
    about = {"dataset": name, "method": "sasrec_ce", "batch": batch_size}
    variants, trainer = [], None
    for dtype in ("bfloat16", "float32"):
        chosen = shapes.settings(
            shape,
            "sasrec_ce",
            model={"dtype": dtype},
            loss={"dtype": dtype},
            train={"batch_size": batch_size},
        )
        trainer = Trainer(split, chosen, num_steps=num_steps)
        row = {**about, "system": "jaxrec", "setting": dtype}
        row["memory_mb"] = measure.program_mb(trainer.program)
        call = partial(dispatches, trainer)
        variants.insert(0, Variant(row, call, DISPATCHES * trainer.num_steps))
        call()  # takes its memory before the rival does
    assert trainer is not None
    missing: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        np.savez(path, **padded_batches(trainer), allow_pickle=False)
        with TorchProcess(path, shape, kind, flags) as rival:
            for i, told in enumerate(rival.settings):
                row = {**about, "system": rival.system, **told}
                if "not_run" in told:
                    missing.append(row)
                    continue
                call = partial(rival.run, i)
                variants.append(Variant(row, call, DISPATCHES * trainer.num_steps))
            rows = measure.in_turn(variants, rounds=9, seconds=60)
    return [*judged(name, rows), *missing]


def judged(name: str, rows: list[Row]) -> list[Row]:
    """How the others compare with the first; and the first with its bar, on a GPU."""
    for row in rows[1:]:
        row["time_ratio"] = measure.shown(row["ms"] / rows[0]["ms"])
    if name in STEP_BARS_MS and not measure.on_cpu():
        bar = STEP_BARS_MS[name]
        rows[0] |= {"bar_ms": bar, "bar_met": rows[0]["ms"] <= bar}
    return rows


def dispatches(trainer: Trainer) -> Any:
    """As many as a rival's call has repetitions; the last one's loss."""
    for _ in range(DISPATCHES - 1):
        trainer()
    return trainer()


def padded_batches(trainer: Trainer) -> dict[str, np.ndarray]:
    """The trainer's own windows as tokens and targets, int32 [steps, B, L]."""
    built = trainer.run.experiment
    found = [
        batches.next_item(
            batches.windows(
                built.log,
                built.log.offset_U1[user_B],
                trainer.run.train_end_U[user_B],
                length=built.recipe.max_length + 1,
            )
        )
        for user_B in trainer.part[0]
    ]
    return {
        "tokens_SBL": np.stack([np.asarray(one.tokens_BL) for one in found]),
        "target_SBL": np.stack([np.asarray(one.target_BL) for one in found]),
    }


class TorchProcess:
    """`torch_sasrec` in a process of its own, which answers every line with another.

    Attributes:
      system: its name and version.
      settings: rows of what it can run, `setting` and `memory_mb`, or `not_run`.
    """

    def __init__(self, path: Path, shape: Shape, kind: str, flags: Flags):
        device = "cpu" if measure.on_cpu() else "cuda"
        command = [flags.torch_python, "-m", "benchmarks.gpu_suite.torch_sasrec"]
        command += [str(path), "--num-items", str(shape.num_items), "--device", device]
        command += ["--width", str(shape.width), "--times", str(DISPATCHES)]
        if kind == "paper":
            command += ["--paper-repo", str(flags.paper_repo)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )

    def __enter__(self) -> "TorchProcess":
        try:
            first = self.answer()
        except BaseException:
            self.__exit__()
            raise
        self.system, self.settings = first["system"], first["settings"]
        return self

    def __exit__(self, *exception: object) -> None:
        del exception
        self.process.kill()
        self.process.communicate()  # closes the pipes and waits

    def run(self, setting: int) -> float:
        """Every batch so many times; the last one's loss."""
        assert self.process.stdin is not None
        print(setting, file=self.process.stdin, flush=True)
        return self.answer()["loss"]

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise RuntimeError(f"the process of PyTorch ended with status {status}")
        found = json.loads(line)
        if "failed" in found:
            raise RuntimeError(f"PyTorch: {found['failed']}")
        return found
