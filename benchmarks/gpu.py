"""Measures everything that a GPU is needed for, in parts that can be resumed.

    python -m benchmarks.gpu --list
    python -m benchmarks.gpu                     # all that has no record yet
    python -m benchmarks.gpu --parts correctness,step
    python -m benchmarks.gpu --tiny              # toy sizes, on any device

benchmarks/gpu.md says what the parts answer and need. Each is a process of its own, of
nine minutes at the most, with a record in results/gpu/ that is written after every task
of it; what this device and commit have a record of is skipped, so that the same command
goes on. A task that fails is recorded with its error, and the others go on.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import measure, options
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.part import Flags, Part, told
from benchmarks.gpu_suite.parts import PARTS
from jaxrec import record
from jaxrec.command import run_command
from jaxrec.errors import InputError

ROOT = Path(__file__).parents[1]
PART_S = 9 * 60.0
# A part is asked to stop so long before it is made to: a training run saves itself.
GRACE_S = 30.0
DONE, NOT_DONE, BAD_INPUT = 0, 1, 2


def run_part(name: str, part: Part, flags: Flags) -> int:
    """Does the tasks of a part that have no record, in this process.

    Returns:
      DONE, or NOT_DONE if a task failed.

    Raises:
      InputError: there is no accelerator, and the sizes are not those of --tiny.
    """
    if measure.on_cpu() and not flags.is_tiny:
        raise InputError(
            "the suite needs a GPU, and JAX finds the CPU alone. Install its plugin, "
            "pip install 'jaxrec[cuda]', or see with --tiny whether everything runs."
        )
    about = {
        "question": part.question,
        "command": f"python -m benchmarks.gpu --parts {name}",
        "commit": flags.commit,
        "date": record.date(),
        "device": record.device(),
        "versions": record.versions(),
        "notes": list(part.notes),
    }
    journal = Journal(flags.folder, name, about, again=flags.again)
    todo = [task for task in part.tasks(flags) if not journal.is_done(task.name)]
    if not todo:
        print(f"{name}: has its record, {journal.path.name}", flush=True)
        return DONE
    journal.begin(task.name for task in todo)
    for task in todo:
        print(f"{name}: {task.name}", flush=True)
        began = time.monotonic()
        try:
            rows = list(task.rows())
        except Exception as error:
            traceback.print_exc()
            rows = [{"failed": told(error)}]
        journal.put(task.name, rows)
        measure.tell(rows)
        print(f"{name}: {task.name} took {time.monotonic() - began:.0f} s", flush=True)
    failed = [task.name for task in todo if not journal.is_done(task.name)]
    for task in failed:
        print(f"{name}: FAILED: {task}", flush=True)
    print(journal.path, flush=True)
    return NOT_DONE if failed else DONE


def run_apart(name: str, argv: Sequence[str], seconds: float) -> int:
    """Does a part in a new process: a device's error, or its memory, ends with it.

    Returns:
      Its exit status; NOT_DONE if it had to be stopped.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", *argv, "--parts", name, "--here"]
    variables = dict(os.environ)
    # PyTorch shares the device with us, and JAX would take three quarters of it.
    variables.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiling is measured
    with subprocess.Popen(command, cwd=ROOT, env=variables) as process:
        try:
            return process.wait(max(1.0, seconds - GRACE_S))
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {seconds - GRACE_S:.0f} s", flush=True)
            process.send_signal(signal.SIGINT)
            wait_or_kill(process)
            return NOT_DONE
        except KeyboardInterrupt:
            wait_or_kill(process)  # Ctrl-C went to both
            raise


def wait_or_kill(process: subprocess.Popen) -> None:
    """Gives a process that was asked to stop some time to do so."""
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def run(names: Sequence[str], flags: Flags, argv: Sequence[str], minutes: float) -> int:
    """Does the parts, one after another; returns the number of those not done.

    Args:
      argv: of this command, for the processes of the parts.
      minutes: after which no part begins, and the one that runs is stopped.
    """
    until = time.monotonic() + 60 * minutes
    status, not_done = DONE, []
    for name in names:
        seconds = min(PART_S, until - time.monotonic())
        # What no part can run with is told once.
        if status != BAD_INPUT and seconds > GRACE_S:
            status = run_apart(name, argv, seconds)
            if status == DONE:
                continue
        not_done.append(name)
    if status != BAD_INPUT:
        told_of(not_done)
    return len(not_done)


def told_of(not_done: Sequence[str]) -> None:
    """Says how it ended."""
    if not_done:
        print(f"not done: {', '.join(not_done)}; the same command goes on", flush=True)
    else:
        print("every part has its record: python -m benchmarks.page", flush=True)


def listing() -> str:
    """The parts, with the minutes that they are guessed to take on one H200."""
    return "\n".join(
        f"{name:<28} {part.minutes:>2g} min  {part.question}"
        for name, part in PARTS.items()
    )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], Flags]:
    """The flags, the names of the parts, and what parts are told.

    Raises:
      InputError: an unknown part, seeds that are no numbers, or no such checkout.
    """
    parser = options.parser(
        "gpu", "Measure on a GPU, part by part; the same command goes on."
    )
    add = parser.add_argument
    add("--list", action="store_true", help="the parts, and nothing else")
    add("--parts", default=",".join(PARTS), help="with commas between; by default all")
    add("--minutes", type=options.amount, default=math.inf, help="end after so many")
    add("--again", action="store_true", help="measure what has a record, too")
    add("--tiny", action="store_true", help="toy sizes, on any device; always again")
    add("--output", type=options.folder, help="of records (benchmarks/results)")
    add("--seeds", default="0,1,2", help="of the runs to their early stop")
    add("--paper-repo", type=Path, help="a checkout of the paper's code, as a rival")
    add(
        "--torch-python",
        type=options.interpreter,
        default=sys.executable,
        help="has PyTorch, for the rivals",
    )
    add("--commit", help="of this tree, where git does not tell")
    add("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    names = options.names("--parts", given.parts, PARTS)
    seeds = given.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"--seeds must be numbers such as 0,1,2: got {given.seeds!r}.")
    repo = given.paper_repo
    if repo is not None and not (repo / "src" / "models.py").is_file():
        raise InputError(
            f"--paper-repo must be a checkout of antklen/sasrec-bert4rec-recsys23: "
            f"{repo}/src/models.py is not there."
        )
    tiny_output = ROOT / ".cache" / "gpu-tiny"
    output = given.output or (tiny_output if given.tiny else measure.RESULTS)
    flags = Flags(
        output=output.resolve(),
        seeds=(0,) if given.tiny else tuple(map(int, seeds)),
        paper_repo=None if repo is None else repo.resolve(),
        torch_python=given.torch_python,
        commit=given.commit or record.commit(),
        is_tiny=given.tiny,
        again=given.again or given.tiny,
    )
    return given, names, flags


def main(argv: Sequence[str]) -> int:
    """The command; its status is 1 if a part is not done."""
    given, names, flags = parse(argv)
    if given.list:
        print(listing())
        return 0
    cache = "jax_compilation_cache_dir"
    if given.tiny and getattr(jax.config, cache) is None:
        # A dry run compiles for most of its time, and the same things again and again.
        jax.config.update(cache, str(flags.output / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if given.here or given.tiny:
        not_done = [
            name for name in names if run_part(name, PARTS[name], flags) != DONE
        ]
        if not given.here:
            told_of(not_done)
        return NOT_DONE if not_done else DONE
    return int(run(names, flags, argv, given.minutes) > 0)


if __name__ == "__main__":
    sys.exit(run_command(main))
