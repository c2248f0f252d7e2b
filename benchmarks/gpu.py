"""What has to be measured where a GPU is at hand, in parts that can be resumed.

    python -m benchmarks.gpu --part correctness,rival --output benchmarks/results

benchmarks/gpu.md says what each part answers. A part is a list of tasks, each of which
writes a record when it is done; a task whose record this device has in --output is
skipped, no task begins after --minutes, and the same command goes on from there. One
that fails is told, with its traceback, and the others go on. --tiny runs every part at
toy sizes on any device, to see that it would run.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    correctness,
    measure,
    memory,
    million_items,
    negatives,
    profile_step,
    ranking_speed,
    reproduce_timed,
    rival,
    roofline,
    sizes,
    tiles,
)
from benchmarks.shapes import METHODS, SHAPES
from jaxrec import record
from jaxrec.command import run_command
from jaxrec.errors import InputError

TINY_METHODS = ("sasrec_ce",)


class Flags(NamedTuple):
    """What a part is told.

    seconds: that are left to it; a task that can stop in between stops then.
    """

    is_tiny: bool
    output: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    seconds: float


class Task(NamedTuple):
    """A measurement and the record that it leaves: output/<folder>/..[-<subject>].json."""

    folder: str
    subject: str
    call: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"{self.folder} {self.subject}".strip()

    def is_done(self, output: Path) -> bool:
        """Whether this device has its record."""
        device = measure.file_name(record.device())
        ending = f"-{self.subject}" if self.subject else ""
        date = "[0-9]" * 4 + "-[0-9][0-9]-[0-9][0-9]"
        return any((output / self.folder).glob(f"{device}-{date}{ending}.json"))


def check(flags: Flags) -> Iterator[Task]:
    """Losses, gradients, attention, ranks and steps against oracles."""
    run = partial(correctness.run, output=flags.output, methods=flags.methods)
    if flags.is_tiny:
        run = partial(run, scale=correctness.SCALES["tiny"], users=8)
    yield Task("correctness", "", run)


def beside_rival(flags: Flags) -> Iterator[Task]:
    """A step beside a plain PyTorch SASRec's."""
    run = partial(rival.run, output=flags.output)
    if flags.is_tiny:
        run = partial(run, datasets=("ml-1m",), batch_size=2, seconds=1)
    yield Task("rival", "", run)


def million(flags: Flags) -> Iterator[Task]:
    """Exact cross-entropy and ranks of a million items; the tiles of the softmax."""
    scale = million_items.SCALES["tiny"] if flags.is_tiny else None
    run = partial(million_items.run, scale=scale, output=flags.output)
    yield Task("million_items", "", run)
    cases = tiles.SCALES["tiny"] if flags.is_tiny else None
    yield Task("tiles", "", partial(tiles.run, cases=cases, output=flags.output))


def sizes_of_steps(flags: Flags) -> Iterator[Task]:
    """A step against every size, an axis a task."""
    scale = sizes.SCALES["tiny"] if flags.is_tiny else None
    for axis in ("catalogue",) if flags.is_tiny else sizes.AXES:
        run = partial(sizes.run, axis, scale=scale, output=flags.output)
        yield Task("sizes", axis, run)


def ranking(flags: Flags) -> Iterator[Task]:
    """Users a second that are ranked, and memory, against the catalogue."""
    scale = ranking_speed.SCALES["tiny"] if flags.is_tiny else None
    run = partial(ranking_speed.run, scale=scale, output=flags.output)
    yield Task("ranking_speed", "", run)


def memory_of_losses(flags: Flags) -> Iterator[Task]:
    """Memory of the full and of the sampled softmax against what one writes first."""
    run_full = partial(memory.run, with_large=False, output=flags.output)
    run_sampled = partial(negatives.run, output=flags.output)
    if flags.is_tiny:
        pairs = (("ml-1m", "sasrec_ce"),)
        run_full = partial(run_full, pairs=pairs, batch_size=2, seconds=1)
        tiny = {"names": ("ml-1m",), "batch_size": 2, "most": 100, "seconds": 1}
        run_sampled = partial(run_sampled, **tiny)
    yield Task("memory", "", run_full)
    yield Task("negatives", "", run_sampled)


def profile(flags: Flags) -> Iterator[Task]:
    """Where the time of a step goes, against the device's limit."""
    run = partial(profile_step.run, methods=flags.methods, output=flags.output)
    if flags.is_tiny:
        rates = roofline.measured(matmul=64, floats=2**12)
        run = partial(run, num_steps=1, users=4, rates=rates)
    for dataset in ("ml-1m",) if flags.is_tiny else SHAPES:
        yield Task("profile_step", dataset, partial(run, dataset))


def reproduce(flags: Flags) -> Iterator[Task]:
    """ML-1M to the early stop, each method and seed a task that can be interrupted."""
    for seed in flags.seeds:
        for method in flags.methods:
            run = partial(
                reproduce_timed.run,
                method,
                seed,
                is_tiny=flags.is_tiny,
                output=flags.output,
            )
            yield Task("reproduce_timed", f"{method}-seed{seed}", run)


PARTS: Mapping[str, Callable[[Flags], Iterator[Task]]] = {
    "correctness": check,
    "rival": beside_rival,
    "million": million,
    "profile": profile,
    "reproduce": reproduce,
    "sizes": sizes_of_steps,
    "ranking": ranking,
    "memory": memory_of_losses,
}


def interrupt_after(seconds: float) -> None:
    """Asks this process to stop, as Ctrl-C does, so that a training run saves itself."""
    if hasattr(signal, "setitimer"):

        def stop(signum, frame):
            del signum, frame
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def run(parts: Sequence[str], flags: Flags) -> int:
    """Does what is not done yet; returns the number of tasks that failed or are left."""
    until = time.monotonic() + flags.seconds
    failed, left = [], []
    for part in parts:
        for task in PARTS[part](flags):
            if task.is_done(flags.output):
                print(f"done before: {task.name}", flush=True)
            elif time.monotonic() >= until:
                left.append(task.name)
            elif not attempt(task, until):
                failed.append(task.name)
    for title, names in (("failed", failed), ("left, give it again", left)):
        if names:
            print(f"{title}: {', '.join(names)}", flush=True)
    return len(failed) + len(left)


def attempt(task: Task, until: float) -> bool:
    """Runs a task; False if it failed or the time ran out."""
    began = time.monotonic()
    print(f"begins: {task.name}", flush=True)
    if task.folder == "reproduce_timed":
        interrupt_after(max(1.0, until - began))
    try:
        task.call()
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
        return False
    finally:
        interrupt_after(0)
    print(f"took {time.monotonic() - began:.0f} s: {task.name}", flush=True)
    return True


def parse(argv: Sequence[str]) -> tuple[list[str], Flags]:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description="Measure on a GPU, part by part.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--part", default=",".join(PARTS), help="with commas between")
    add("--output", type=Path, default=measure.RESULTS)
    add("--minutes", type=float, default=8.0, help="begin no task after so many")
    add("--methods", default=",".join(METHODS), help="of profile and reproduce")
    add("--seeds", default="0", help="of reproduce, with commas between")
    add("--tiny", action="store_true", help="toy sizes, on any device")
    flags = parser.parse_args(argv)
    parts, methods = flags.part.split(","), flags.methods.split(",")
    if flags.tiny:
        methods = [*TINY_METHODS]
    for option, given, known in (
        ("part", parts, PARTS),
        ("methods", methods, METHODS),
    ):
        if unknown := set(given) - {*known}:
            raise InputError(
                f"--{option} takes {', '.join(known)}: got {', '.join(sorted(unknown))}."
            )
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    told = Flags(flags.tiny, flags.output, methods, seeds, 60 * flags.minutes)
    return parts, told


def main(argv: Sequence[str]) -> int:
    """The command; its status is 1 if a task failed or is left."""
    parts, flags = parse(argv)
    # PyTorch shares the device with us, and JAX would take three quarters of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return int(run(parts, flags) > 0)


if __name__ == "__main__":
    sys.exit(run_command(main))
