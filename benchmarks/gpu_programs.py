"""What does XLA make of our programs for an H200? Asked of its compiler, without a GPU.

    python -m pip install -e '.[cuda]'
    python -m benchmarks.gpu_programs

XLA compiles for a GPU that it is told about and does not see. Nothing is run, so there
is no time in it; but what a step has the device launch, how often the host has to wait
for it, how much the kernels read and write and how much memory is reserved are in the
compiled program, as they would be on the device. The bars of memory are of that program
too. benchmarks/gpu.md has what only a device can tell.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import hlo, measure, memory, negatives, options, shapes
from benchmarks.gpu_suite import fused, million
from benchmarks.shapes import METHODS, NAMED, SHAPES
from jaxrec import backend, data, losses, steps
from jaxrec.command import run_command
from jaxrec.errors import InputError
from jaxrec.loop import Run
from jaxrec.ranking import item_mask

QUESTION = "what does XLA make of a step, the loss and the ranks for an H200"
DEVICE = "NVIDIA H200: compiled for it, not run"
# What XLA wants to know of a device, for the chip that NVIDIA sells by that name.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
# Whether cuBLAS or a kernel of XLA's own is the faster for a matmul, XLA finds out by
# timing them. Here it cannot, and would take a kernel of its own, with defaults.
OPTIONS: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}
NUM_STEPS = 16
FUSED_STEP = "step, fused softmax"
BFLOAT16: dict[str, dict[str, Any]] = {
    "model": {"dtype": "bfloat16"},
    "loss": {"dtype": "bfloat16"},
}
NOTES = (
    "kernels: in a step, or a call, library calls and copies among them; XLA may hand "
    "many to the device at once, as a CUDA graph. waits: times that the host cannot go "
    "on before it has a number from the device.",
    "A loop that goes on until the device says stop is counted as one turn: what is "
    "said of such a program (waits of 2 or more) is the least. BERT4Rec's takes one. "
    "Sampled negatives' take more where a sequence has more targets than a block: up "
    "to 3 on Beauty and 4 on ML-1M, so there moved is not to be compared with naive's.",
    "Of a condition the branch that moves less is counted: in these programs the other "
    "is for a target far below other scores (jaxrec/normaliser.py).",
    "moved: what all kernels read and write, each array once a kernel; of a gather or "
    "an update in place, the rows it is about. What a kernel finds in the cache counts "
    "too.",
    "fused: the softmax by a kernel of our own (benchmarks/gpu_suite), which no device "
    "has run; of a step of it the dtype is the encoder's. Its blocks read one array "
    "again and again, mostly from the cache; moved has each array once.",
    "temp: what the program reserves beside its arguments and results, rooms for "
    "library calls of up to 32 MiB among them.",
    "Matmuls are calls of cuBLAS: which of them XLA would replace by kernels of its "
    "own, it finds out by timing on a device.",
)

Compile = Callable[..., jax.stages.Compiled]


def compiler(spec: str = H200) -> Compile:
    """`measure.compiled` for one device of the description, which need not exist.

    Raises:
      InputError: JAX has no plugin for CUDA.
    """
    # Of libraries that are asked for their versions one needs a driver.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        topology = topologies.get_topology_desc(
            "", platform="cuda", target_config=spec, topology="1x1x1"
        )
    except NotImplementedError:
        raise InputError(
            "compiling for a GPU needs JAX's plugin for CUDA, though no GPU: "
            "pip install 'jaxrec[cuda]'."
        ) from None
    on_device = SingleDeviceSharding(topology.devices[0])

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            jnp.shape(x), jnp.result_type(x), sharding=on_device
        )

    def compiled(fn: Callable, *arguments: Any, **of_jit: Any) -> jax.stages.Compiled:
        shapes_ = jax.tree.map(abstract, arguments)
        with mock.patch.object(backend, "is_cpu", lambda: False):
            # A function of its own, or what was traced for another device of the same
            # one would be found again, here or later.
            own = jax.jit(lambda *arguments: fn(*arguments), **of_jit)
            lowered = own.lower(*shapes_)
        return lowered.compile(compiler_options=OPTIONS)

    return compiled


def counted(program: jax.stages.Compiled, times: int = 1) -> dict[str, Any]:
    """The columns of a program, or of one of the `times` steps that it is made of."""
    counts = hlo.count(hlo.parse(program.as_text() or ""))
    return {
        "kernels": measure.shown(counts.kernels / times),
        "waits": measure.shown(counts.waits / times),
        "moved_mb": measure.shown(counts.moved / times / measure.MIB),
        "temp_mb": measure.temp_mb(program),
    }


def made_run(dataset: str, method: str, **changes: Any) -> Run:
    """A run of the paper's config on a made log of enough users for a dispatch."""
    shape = NAMED[dataset]
    chosen = shapes.settings(shape, method, **changes)
    num_users = 128 * NUM_STEPS
    split = data.leave_one_out(shapes.made_log(shape, num_users=num_users))
    return Run(shapes.on_split(split, chosen), time.monotonic())


def step_rows(compile_: Compile, dataset: str) -> Iterator[dict[str, Any]]:
    """A step of each method, in float32 and with bfloat16 where there is a choice.

    Of full cross-entropy also with the softmax of `fused_softmax`, which is a trial.
    """
    for method in METHODS:
        for dtype, changes in (("float32", {}), ("bfloat16", BFLOAT16)):
            if dtype == "bfloat16" and method == "sasrec_bce":
                changes = {"model": changes["model"]}  # its loss has no matmul
            counts = step_counts(compile_, made_run(dataset, method, **changes))
            about = {"dataset": dataset, "program": "step", "method": method}
            yield {**about, "dtype": dtype, **counts}
    for dtype in ("float32", "bfloat16"):  # of the encoder
        changes = {**BFLOAT16, "model": {"dtype": dtype}}
        with fused.THREE_PRODUCTS.setting():
            counts = step_counts(compile_, made_run(dataset, "sasrec_ce", **changes))
        about = {"dataset": dataset, "program": FUSED_STEP, "method": "sasrec_ce"}
        yield {**about, "dtype": dtype, **counts}


def step_counts(compile_: Compile, run: Run) -> dict[str, Any]:
    """The columns of a step of the run's dispatches."""
    built, plan = run.experiment, run.plan(0)
    program = compile_(
        partial(steps.train_steps, recipe=built.recipe, num_rows=run.num_rows),
        *(run.state, built.log, run.train_end_U, built.items),
        *(plan.user_SB[:NUM_STEPS], plan.slot_SB[:NUM_STEPS]),
        donate_argnums=0,
    )
    return counted(program, NUM_STEPS)


def memory_rows(compile_: Compile, dataset: str) -> Iterator[dict[str, Any]]:
    """The step with the scores stored, and the shipped one; as benchmarks.memory."""
    for method in ("sasrec_ce", "bert4rec"):
        run = made_run(dataset, method)
        built, plan = run.experiment, run.plan(0)
        user_B = plan.user_SB[0]
        padded = compile_(
            partial(memory.padded_step, recipe=built.recipe),
            *(run.state, built.log, built.log.offset_U1[user_B]),
            *(run.train_end_U[user_B], built.items),
            donate_argnums=0,
        )
        shipped = compile_(
            partial(steps.train_steps, recipe=built.recipe, num_rows=run.num_rows),
            *(run.state, built.log, run.train_end_U, built.items),
            *(plan.user_SB[:1], plan.slot_SB[:1]),
            donate_argnums=0,
        )
        about = {"dataset": dataset, "method": method}
        row = {**about, "program": "step, padded, scores stored", **counted(padded)}
        yield row
        ours = {**about, "program": "step, shipped", **counted(shipped)}
        ratio = measure.shown(row["temp_mb"] / ours["temp_mb"])
        ours["memory_ratio"] = ratio
        bar = memory.BARS.get((dataset, method))
        if bar is not None:
            ours |= {"memory_bar": bar, "memory_bar_met": ratio >= bar}
        yield ours


def negatives_rows(compile_: Compile, dataset: str) -> Iterator[dict[str, Any]]:
    """The loss of sampled negatives, naive and shipped; as benchmarks.negatives."""
    arguments = negatives.make_arguments(NAMED[dataset], 128)
    for number in negatives.NUM_NEGATIVES[dataset]:
        case = negatives.make_case(NAMED[dataset], number, arguments)
        rows = []
        for name, (function, candidates) in case.programs.items():
            about = {"dataset": dataset, "negatives": number, "program": name}
            program = compile_(function, arguments, candidates)
            rows.append(about | counted(program))
        yield from negatives.judge(rows)


def million_rows(compile_: Compile) -> Iterator[dict[str, Any]]:
    """The loss and the ranks of a million items; as the parts of benchmarks.gpu."""
    scale = million.FULL
    num_rows = scale.num_items + 1
    float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shape = (scale.labels // 128, 128)
    shipped = "cross-entropy and gradients"
    for title, way in (
        (shipped, fused.Way()),
        (shipped, fused.Way("bfloat16")),
        (f"{shipped}, score_dtype=bfloat16", fused.Way("bfloat16", "bfloat16")),
        ("the same, fused, three products", fused.THREE_PRODUCTS),
        ("the same, fused, one product", fused.ONE_PRODUCT),
    ):
        with way.setting():
            program = compile_(
                jax.value_and_grad(partial(million.total_loss, **way.dtypes), (0, 1)),
                *(float32((*shape, scale.width)), float32((num_rows, scale.width))),
                *(jax.ShapeDtypeStruct(shape, jnp.int32), float32(shape)),
                losses.Catalogue(item_mask(num_rows, scale.num_items)),
            )
        about = {"dataset": "a million items", "dtype": way.dtype}
        row: dict[str, Any] = {**about, "labels": scale.labels}
        row |= {"program": title, **counted(program)}
        if not way.is_fused:  # of what is shipped
            is_met = row["temp_mb"] <= million.MEMORY_BAR_MB
            row |= {"temp_bar_mb": million.MEMORY_BAR_MB, "temp_bar_met": is_met}
        yield row
    arguments = jax.eval_shape(partial(million.ranks_arguments, scale))
    program = compile_(partial(million.ranks, scale), *arguments)
    num_batches = scale.users // scale.batch_size
    row = {"dataset": "a million items", "program": "ranks of a batch"}
    row |= {"users": scale.batch_size, "dtype": "float32"}
    yield row | counted(program, num_batches)


PARTS: dict[str, Callable[[Compile], Iterator[dict[str, Any]]]] = {
    "step": lambda compile_: of_each(step_rows, compile_),
    "million": million_rows,
    "memory": lambda compile_: of_each(memory_rows, compile_),
    "negatives": lambda compile_: of_each(negatives_rows, compile_),
}


def of_each(rows: Callable, compile_: Compile) -> Iterator[dict[str, Any]]:
    """The rows of each data set."""
    for name in SHAPES:
        yield from rows(compile_, name)


def run(*, parts: Sequence[str], output: Path = measure.RESULTS) -> None:
    """Compiles, and writes a record for each part."""
    compile_ = compiler()
    for part in parts:
        rows = []
        for row in PARTS[part](compile_):
            measure.tell([row])
            rows.append(row)
        measure.save(
            *("gpu_programs", QUESTION, rows),
            subject=part,
            notes=NOTES,
            output=output,
            device=DEVICE,
        )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("gpu_programs", __doc__)
    text = f"with commas between, of {', '.join(PARTS)}; by default all"
    parser.add_argument("--parts", default=",".join(PARTS), help=text)
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    # Without a device JAX cannot take out again what it has put in there.
    jax.config.update("jax_enable_compilation_cache", False)
    run(parts=options.names("--parts", flags.parts, PARTS), output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
