"""Runs the drivers: which settings, in which order, and what has been measured."""

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.errors import InputError

ROOT = Path(__file__).parents[2]
OURS = "jaxrec"
TITLES = {
    OURS: "jaxrec",
    "rectools": "RecTools",
    "paper": "the paper's code",
    "replay": "RePlay",
}


_BFLOAT16, _COMPILE = ("--dtype", "bfloat16"), ("--compile",)
_SCORES = ("--score-dtype", "bfloat16")


class Setting(NamedTuple):
    """A way to run a system: arguments of its driver and environment variables."""

    name: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}

    @property
    def is_float32(self) -> bool:
        """What it multiplies; see --dtype in drivers/protocol.py."""
        return _BFLOAT16[-1] not in self.arguments

    @property
    def is_compiled(self) -> bool:
        """Whether the training step goes through torch.compile, which no peer does."""
        return _COMPILE[0] in self.arguments


AS_INSTALLED = Setting("as installed")
# PyTorch frees what a step allocated, glibc gives it back to the system, and the next
# step takes it again page by page, which costs a quarter to a third of its time.
KEEP = {
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "THP_MEM_ALLOC_ENABLE": "1",
}
KEEPS_MEMORY = Setting("memory kept", (), KEEP)
LOADERS = Setting("memory kept, 2 loaders", ("--workers", "2"), KEEP)
BUCKETS = Setting("memory kept, buckets of 32", ("--bucket-size", "32"), KEEP)
# Lightning's mixed precision, a peer in its fastest way to run float32. (RePlay's
# buckets cannot: they put bfloat16 in an array of float32.)
OUR_BFLOAT16 = Setting("bfloat16", _BFLOAT16)
OUR_SCORES = Setting("bfloat16, scores too", (*_BFLOAT16, *_SCORES))
# What THP_MEM_ALLOC_ENABLE is to PyTorch: a dispatch takes its memory by 2 MiB.
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
OUR_HUGE = Setting("huge pages", (), HUGE)
OUR_HUGE_SCORES = Setting(f"huge pages, {OUR_SCORES.name}", OUR_SCORES.arguments, HUGE)
MIXED = Setting("memory kept, bf16-mixed", _BFLOAT16, KEEP)
MIXED_LOADERS = Setting(
    "memory kept, 2 loaders, bf16-mixed", (*_BFLOAT16, *LOADERS.arguments), KEEP
)
# torch.compile of the training step: no option of theirs, but a Lightning callback does
# it. (Float32 factors multiplied in bfloat16, --matmul, are no faster: LOG.md.)
COMPILED = Setting("memory kept, torch.compile", _COMPILE, KEEP)
MIXED_COMPILED = Setting(
    "memory kept, torch.compile, bf16-mixed", (*_BFLOAT16, *_COMPILE), KEEP
)
_IN_FLOAT32 = (AS_INSTALLED, KEEPS_MEMORY)
_LIGHTNING = (*_IN_FLOAT32, LOADERS, COMPILED, MIXED, MIXED_LOADERS, MIXED_COMPILED)
SETTINGS = {
    OURS: (AS_INSTALLED, OUR_HUGE, OUR_BFLOAT16, OUR_SCORES, OUR_HUGE_SCORES),
    "rectools": _LIGHTNING,
    "paper": _LIGHTNING,
    "replay": (*_IN_FLOAT32, BUCKETS, COMPILED, MIXED),
}


class Task(NamedTuple):
    """One measurement."""

    round: int
    method: str
    system: str
    setting: Setting

    @property
    def key(self) -> list:
        return [self.round, self.method, self.system, self.setting.name]


class Measured(NamedTuple):
    """What a driver printed for a task, or why it could not: {"not_run": why}."""

    task: Task
    line: dict[str, Any]

    @property
    def has_run(self) -> bool:
        return "not_run" not in self.line

    @property
    def step_s(self) -> float:
        return statistics.median(self.line["step_seconds"])

    @property
    def seconds_per_epoch(self) -> float:
        return self.step_s * self.line["steps_per_epoch"]

    @property
    def tokens_per_s(self) -> float:
        return self.line["tokens_per_step"] / self.step_s


def tasks(
    systems: Iterable[str],
    methods: Sequence[str],
    num_rounds: int,
    once: Collection[str] = (),
) -> Iterator[Task]:
    """In the order of measuring: what is compared is measured close together.

    Args:
      once: methods that are in the first round alone.
    """
    systems = list(systems)
    for round_ in range(num_rounds):
        for method in methods:
            if round_ > 0 and method in once:
                continue
            for system in systems:
                for setting in SETTINGS[system]:
                    yield Task(round_, method, system, setting)


class Bench(NamedTuple):
    """How drivers are run.

    python: of each system, the interpreter that has it.
    arguments: of every driver; see drivers/protocol.py.
    """

    python: Mapping[str, str]
    arguments: Sequence[str]

    def measure(self, task: Task) -> Measured:
        """Runs a driver in a new process.

        Raises:
          InputError: it failed; the message is the end of what it said.
        """
        command = [self.python[task.system], "-m", f"benchmarks.drivers.{task.system}"]
        command += [*self.arguments, "--method", task.method, *task.setting.arguments]
        variables = {**os.environ, **task.setting.variables, "JAX_PLATFORMS": "cpu"}
        variables.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiling is measured
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True
        )
        if done.returncode == -signal.SIGKILL:
            killed = "it was killed, as Linux does where memory runs out"
            return Measured(task, {"not_run": killed})
        if done.returncode != 0:
            said = " ".join(done.stderr.split()[-60:])
            raise InputError(
                f"the driver of {task.system} ended with status {done.returncode}: "
                f"{said}. Run it by itself: {' '.join(command)}"
            )
        return Measured(task, json.loads(done.stdout.splitlines()[-1]))


class Kept:
    """The measurements of an unfinished command, a line each in a file.

    Args:
      path: of the file.
      about: what has to be equal for a measurement to be used again.
    """

    def __init__(self, path: Path, about: dict):
        self.path, self.about = path, about
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [json.loads(line) for line in lines]
        self.found = {
            json.dumps(one["key"]): one["line"] for one in kept if one["about"] == about
        }

    def get(self, task: Task) -> Measured | None:
        line = self.found.get(json.dumps(task.key))
        return None if line is None else Measured(task, line)

    def add(self, one: Measured) -> None:
        self.found[json.dumps(one.task.key)] = one.line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"about": self.about, "key": one.task.key, "line": one.line}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def measure_all(
    todo: Iterable[Task],
    measure: Callable[[Task], Measured],
    kept: Kept,
    until: float,
) -> list[Measured] | None:
    """Every measurement, taken from `kept` or made; None if the time ran out first.

    Args:
      measure: such as a Bench's.
      until: by time.monotonic(); no measurement begins later.
    """
    done: list[Measured] = []
    for task in todo:
        one = kept.get(task)
        if one is None and task.round > 0:  # what could not run once is not tried again
            first = kept.get(task._replace(round=0))
            if first is not None and not first.has_run:
                one = Measured(task, first.line)
        if one is None:
            if time.monotonic() >= until:
                return None
            began = time.time()
            one = measure(task)
            one.line["clock_s"] = [began, time.time()]
            kept.add(one)
            cost = f"{one.seconds_per_epoch:8.1f} s" if one.has_run else "  not run"
            name = f"{TITLES[task.system]}, {task.setting.name}"
            print(f"{task.round + 1}  {task.method:<20}{name:<46}{cost}", flush=True)
        done.append(one)
    return done
