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
from benchmarks.gpu_suite.score_kernel import Side
from benchmarks.measure import Variant
from benchmarks.shapes import SHAPES, TINY, Shape
from benchmarks.trainer import Trainer
from jaxrec import data, softmax

NOTES = (
    *candidates.NOTES,
    "fused: scores of one or three products of bfloat16, and gradients' matmuls in "
    "bfloat16, as those of the shipped loss with dtype=bfloat16.",
    "others_error: of the rows of the table that are no target, if there are any.",
    "error of sums: from float64, the largest of its entries, as a share of the sum of "
    "the sizes of the entry's terms, each of which is rounded by 2^-8 at the most.",
)
NUM_STEPS = 16
SUMS_BAR, LOSS_BAR, GRADIENT_BAR = 2**-7, 2**-10, 2**-7


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

    def sides(self) -> tuple[Side, Side]:
        """Random ones; some rows and columns are to count as nothing."""
        rng = np.random.default_rng(0)

        def side(size: int, every: int) -> Side:
            factor_NK = rng.normal(size=(size, self.halves * self.width)) / 4
            offset_N = rng.normal(size=size)
            offset_N[every - 1 :: every] = -np.inf
            return Side(
                jnp.asarray(factor_NK, jnp.bfloat16),
                jnp.asarray(offset_N, jnp.float32),
                # A fifth of all pairs have the same.
                jnp.asarray(rng.integers(0, 5, size), jnp.int32),
            )

        return side(self.rows, 5), side(self.columns, 7)


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
    """How far both kernels are from float64."""
    sides, width = sizes.sides(), sizes.width
    found = score_kernel.sums(*sides, width=width, interpret=interpret)
    alone = score_kernel.weighted_sums(*sides, width=width, interpret=interpret)
    wide = [
        (
            np.asarray(side.factor_NK, np.float64),
            np.asarray(side.offset_N, np.float64),
            np.asarray(side.key_N),
        )
        for side in sides
    ]
    sum_N, out_ND, size_ND = oracles.exponential_sums(*wide, width=width)
    largest = max(
        share(ours, theirs, size)
        for ours, theirs, size in (
            (found[0], sum_N, sum_N),
            (found[1], out_ND, size_ND),
            (alone, out_ND, size_ND),
        )
    )
    row = {"check": f"sums of {sizes.rows:,} x {sizes.columns:,}", **sizes._asdict()}
    return row | failed_above(SUMS_BAR, error=largest)


def share(ours: Any, theirs: Any, size: Any) -> float:
    """The largest difference of an entry, as a share of its size; inf for NaN.

    >>> share(np.array([1.0, 0.0]), np.array([1.5, 0.0]), np.array([2.0, 0.0]))
    0.25
    """
    off = np.abs(np.asarray(ours, np.float64) - theirs)
    # Of nothing, an entry has to be nothing.
    found = np.where(off > 0, np.inf, off)
    np.divide(off, size, where=size > 0, out=found)
    return float(np.where(np.isnan(found), np.inf, found).max())


def failed_above(bar: float, **columns: float) -> Row:
    """The columns, the bar, and whether it has failed.

    >>> failed_above(1.0, error=0.5), "failed" in failed_above(1.0, error=float("nan"))
    ({'error': 0.5, 'bar': 1.0}, True)
    """
    row: Row = {name: measure.shown(x) for name, x in columns.items()}
    row["bar"] = bar
    if not all(x <= bar for x in columns.values()):
        row["failed"] = "the error is above the bar"
    return row


class Way(NamedTuple):
    """A loss: options of `losses.ce`, and whether it has the fused softmax."""

    dtype: str = "float32"
    score_dtype: str = "float32"
    is_fused: bool = False

    @property
    def dtypes(self) -> dict[str, str]:
        return {"dtype": self.dtype, "score_dtype": self.score_dtype}

    def setting(self) -> AbstractContextManager[Any]:
        """In which the loss is traced."""
        if not self.is_fused:
            return nullcontext()
        return mock.patch.object(softmax, "loss_sum", fused_softmax.loss_sum)


THREE_PRODUCTS = Way("bfloat16", "float32", is_fused=True)
ONE_PRODUCT = Way("bfloat16", "bfloat16", is_fused=True)
WAYS = {
    SHIPPED: Way(),
    "shipped, dtype=bfloat16": Way("bfloat16"),
    "shipped, score_dtype=bfloat16 too": Way("bfloat16", "bfloat16"),
    "fused, three products": THREE_PRODUCTS,
    "fused, one product": ONE_PRODUCT,
}


def in_turn(make: Any, about: Row) -> list[Row]:
    """`candidates.in_turn` of make(way) for all ways.

    Where the kernel can run, it has failed if it does not.
    """
    reason = why_not()
    makers = {
        name: partial(make, way)
        for name, way in WAYS.items()
        if reason is None or not way.is_fused
    }
    rows = candidates.in_turn(makers, about)
    for row in rows:
        if "not_run" in row and WAYS[row["candidate"]].is_fused:
            row["failed"] = row.pop("not_run")
    missing = [name for name in WAYS if name not in makers]
    return rows + [{**about, "candidate": name, "not_run": reason} for name in missing]


def loss_rows(case: candidates.Case) -> list[Row]:
    """The loss and both gradients."""
    arguments = candidates.softmax_arguments(case)
    highest = jax.default_matmul_precision("highest")
    exact = candidates.softmax_program(arguments, highest)(*arguments)
    target_N = arguments[2].target_N

    def make(way: Way) -> Variant:
        program = candidates.softmax_program(arguments, way.setting(), **way.dtypes)
        loss_error, *errors = loss_errors(program(*arguments), exact, target_N)
        row = dict(zip(ERRORS, map(measure.shown, errors), strict=True))
        row |= {"loss_error": measure.shown(loss_error)}
        row |= {"temp_mb": measure.temp_mb(program)}
        is_right = loss_error <= LOSS_BAR and all(x <= GRADIENT_BAR for x in errors)
        if way.is_fused and not is_right:
            raise ValueError(f"wrong, its errors are above the bars: {row}")
        times = candidates.times()
        return Variant(row, measure.repeated(program, arguments, times), times)

    return in_turn(make, {"loss": case.name})


# Columns: of the gradients of hidden states and table, and of rows that are no target.
ERRORS = ("hidden_error", "error", "others_error")


def loss_errors(found: Any, exact: Any, target_N: jax.Array) -> tuple[float, ...]:
    """Of the loss, and `ERRORS`.

    Targets have nearly all of a random gradient's norm, whatever the others have.
    """
    (loss, (hidden_ND, table_VD)), (true_loss, (true_ND, true_VD)) = found, exact

    def off(ours: jax.Array, theirs: jax.Array) -> float:
        size = jnp.linalg.norm(theirs)
        return float(jnp.linalg.norm(ours - theirs) / jnp.where(size > 0, size, 1))

    is_other_V1 = jnp.ones((len(table_VD), 1)).at[target_N].set(0)
    return (
        float(abs(loss - true_loss) / true_loss),
        off(hidden_ND, true_ND),
        off(table_VD, true_VD),
        off(table_VD * is_other_V1, true_VD * is_other_V1),
    )


def step_rows(name: str, shape: Shape, batch_size: int, encoder: str) -> list[Row]:
    """Dispatches of training with full cross-entropy, the encoder in a precision."""
    split = data.leave_one_out(shapes.made_log(shape, num_users=NUM_STEPS * batch_size))

    def make(way: Way) -> Variant:
        chosen = shapes.settings(
            shape,
            "sasrec_ce",
            model={"dtype": encoder},
            loss=way.dtypes,
            train={"batch_size": batch_size},
        )
        with way.setting():
            trainer = Trainer(split, chosen, num_steps=NUM_STEPS)
        row = {"temp_mb": measure.temp_mb(trainer.program)}
        return Variant(row, trainer, trainer.num_steps)

    return in_turn(make, {"step": name, "encoder": encoder})


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
