"""Is a softmax whose scores stay in registers right, and faster, alone and in a step?

First `score_kernel` itself against float64 NumPy, then what is shipped in turn with
`fused_softmax`, which is made of it. Where that wins clearly, this record is the reason
to move it into jaxrec.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, shapes
from benchmarks.gpu_suite import candidates, fused_softmax, oracles, score_kernel
from benchmarks.gpu_suite.candidates import SHIPPED
from benchmarks.gpu_suite.part import Flags, Row, Task
from benchmarks.measure import Variant
from benchmarks.shapes import SHAPES, TINY, Shape
from benchmarks.trainer import Trainer
from jaxrec import data, softmax

NOTES = (
    *candidates.NOTES,
    "fused: scores of one or three products of bfloat16, and gradients' matmuls in "
    "bfloat16, as those of the shipped loss with dtype=bfloat16.",
    "error of sums: from float64, the largest of its entries, as a share of the sum of "
    "the sizes of the entry's terms, each of which is rounded by 2^-8 at the most.",
)
NUM_STEPS = 16
SUMS_BAR = 2**-7


def why_not() -> str | None:
    """Why the kernel cannot run on this device; None if it can."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability == "9.0":
        return None
    return f"needs a GPU of compute capability 9.0: this has {capability or 'none'}"


class Sums(NamedTuple):
    """Sizes of a call of `score_kernel.sums`."""

    rows: int
    columns: int
    width: int
    halves: int

    def arguments(self) -> tuple[jax.Array, ...]:
        """Random ones; some rows and columns are to count as nothing."""
        rng = np.random.default_rng(0)
        factors = self.halves * self.width
        left_NK = rng.normal(size=(self.rows, factors)) / 4
        right_VK = rng.normal(size=(self.columns, factors)) / 4
        row_N, column_V = rng.normal(size=self.rows), rng.normal(size=self.columns)
        row_N[4::9], column_V[1::7] = -np.inf, -np.inf
        return (
            *(jnp.asarray(x, jnp.bfloat16) for x in (left_NK, right_VK)),
            *(jnp.asarray(x, jnp.float32) for x in (row_N, column_V)),
        )


# Of the softmax's own shapes, and with tiles that are not whole.
SUMS = (
    Sums(5, 3, 64, 1),
    Sums(20, 400, 192, 2),
    Sums(14_000, 3_417, 64, 2),
    Sums(3_417, 14_000, 64, 2),
    Sums(800, 54_543, 64, 1),
    Sums(520, 100_003, 128, 2),
)


def sums_row(sizes: Sums, interpret: Any = None) -> Row:
    """How far the kernel is from float64."""
    arguments = sizes.arguments()
    options = {"width": sizes.width}
    found = score_kernel.sums(*arguments, **options, interpret=interpret)
    wide = (np.asarray(x, np.float64) for x in arguments)
    sum_N, out_ND, size_ND = oracles.exponential_sums(*wide, **options)
    largest = 0.0
    for ours, theirs, size in zip(
        found, (sum_N, out_ND), (sum_N, size_ND), strict=True
    ):
        off = np.abs(np.asarray(ours, np.float64) - theirs)
        # Of nothing, an entry has to be nothing; NaN is an error too.
        share = np.divide(off, size, where=size > 0, out=np.where(off > 0, np.inf, off))
        largest = np.fmax(largest, np.nan_to_num(share, nan=np.inf).max())
    row = {"check": f"sums of {sizes.rows:,} x {sizes.columns:,}", **sizes._asdict()}
    row |= {"error": measure.shown(float(largest)), "bar": SUMS_BAR}
    if not largest <= SUMS_BAR:
        row["failed"] = "the error is above the bar"
    return row


def setting(products: int | None) -> AbstractContextManager[Any]:
    """In which a loss is traced with the fused softmax; or with what is shipped."""
    if products is None:
        return nullcontext()
    loss_sum = partial(fused_softmax.loss_sum, products=products)
    return mock.patch.object(softmax, "loss_sum", loss_sum)


# By name: the dtype of the loss, and the products of a fused score.
WAYS: dict[str, tuple[str, int | None]] = {
    SHIPPED: ("float32", None),
    "shipped, dtype=bfloat16": ("bfloat16", None),
    "fused, three products": ("bfloat16", 3),
    "fused, one product": ("bfloat16", 1),
}


def in_turn(make: Any, about: Row, seconds: float) -> list[Row]:
    """`candidates.in_turn` of make(dtype, products) for all ways.

    Where the kernel can run, it has failed if it does not.
    """
    reason = why_not()
    makers = {
        name: partial(make, *way)
        for name, way in WAYS.items()
        if reason is None or way[1] is None
    }
    rows = candidates.in_turn(makers, about, seconds=seconds)
    for row in rows:
        if "not_run" in row:
            row["failed"] = row.pop("not_run")
    missing = [name for name in WAYS if name not in makers]
    return rows + [{**about, "candidate": name, "not_run": reason} for name in missing]


def loss_rows(case: candidates.Case) -> list[Row]:
    """The loss and both gradients."""
    arguments = candidates.softmax_arguments(case)
    exact_VD = candidates.exact_gradient(arguments)

    def make(dtype: str, products: int | None) -> Variant:
        program = candidates.softmax_program(arguments, setting(products), dtype)
        return candidates.with_error(program, arguments, exact_VD)

    return in_turn(make, {"loss": case.name}, 45)


def step_rows(
    name: str, shape: Shape, batch_size: int, encoder: str, seconds: float = 45
) -> list[Row]:
    """Dispatches of training with full cross-entropy, the encoder in a precision."""
    split = data.leave_one_out(shapes.made_log(shape, num_users=NUM_STEPS * batch_size))

    def make(dtype: str, products: int | None) -> Variant:
        chosen = shapes.settings(
            shape,
            "sasrec_ce",
            model={"dtype": encoder},
            loss={"dtype": dtype},
            train={"batch_size": batch_size},
        )
        with setting(products):
            trainer = Trainer(split, chosen, num_steps=NUM_STEPS)
        row = {"temp_mb": measure.temp_mb(trainer.program)}
        return Variant(row, trainer, trainer.num_steps)

    return in_turn(make, {"step": name, "encoder": encoder}, seconds)


def tasks(flags: Flags) -> Iterator[Task]:
    """The kernel, the losses of `candidates`, and steps."""
    for sizes in SUMS[:1] if flags.is_tiny else SUMS:
        yield Task(f"sums {tuple(sizes)}", partial(sums_task, sizes))
    for case in candidates.cases(flags):
        yield Task(case.name, partial(loss_rows, case))
    for name, shape in ({"tiny": TINY} if flags.is_tiny else SHAPES).items():
        batch_size = 8 if flags.is_tiny else 128
        for encoder in ("float32", "bfloat16"):
            task = partial(step_rows, name, shape, batch_size, encoder)
            yield Task(f"a step of {name}, {encoder}", task)


def sums_task(sizes: Sums) -> list[Row]:
    """`sums_row`, where the kernel can run."""
    reason = why_not()
    return [sums_row(sizes) if reason is None else {"check": "sums", "not_run": reason}]
