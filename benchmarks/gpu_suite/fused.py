"""Is a softmax whose scores stay in registers faster, alone and in a training step?

What is shipped takes turns with `fused_softmax`, a kernel of our own. Where it wins
clearly, and `error` is that of the shipped loss with bfloat16 or less, this record is
the reason to move it into jaxrec.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

from benchmarks import measure, shapes
from benchmarks.gpu_suite import candidates, fused_softmax
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
)
NUM_STEPS = 16
# Of the gradient of the table. bfloat16 rounds its terms by 2^-8 at the most.
MOST_ERROR = 2**-6


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


def loss_rows(case: candidates.Case) -> list[Row]:
    """The loss and both gradients."""
    arguments = candidates.softmax_arguments(case)
    exact_VD = candidates.exact_gradient(arguments)

    def make(dtype: str, products: int | None) -> Variant:
        program = candidates.softmax_program(arguments, setting(products), dtype)
        variant = candidates.with_error(program, arguments, exact_VD)
        error = variant.row["error"]
        if not error <= MOST_ERROR:
            raise ValueError(f"wrong: error {error}, expected {MOST_ERROR} at the most")
        return variant

    makers = {name: partial(make, *way) for name, way in WAYS.items()}
    return candidates.in_turn(makers, {"loss": case.name})


def step_rows(name: str, shape: Shape, batch_size: int) -> list[Row]:
    """Dispatches of training with full cross-entropy, encoder in either precision."""
    split = data.leave_one_out(shapes.made_log(shape, num_users=NUM_STEPS * batch_size))
    makers: dict[str, Callable[[], Variant]] = {}
    for encoder in ("float32", "bfloat16"):
        for way, (dtype, products) in WAYS.items():
            title = way if encoder == "float32" else f"{way}; encoder bfloat16"
            changes = {
                "model": {"dtype": encoder},
                "loss": {"dtype": dtype},
                "train": {"batch_size": batch_size},
            }
            makers[title] = partial(step_variant, split, shape, changes, products)
    return candidates.in_turn(makers, {"step": name}, seconds=90)


def step_variant(
    split: data.Split, shape: Shape, changes: dict[str, Any], products: int | None
) -> Variant:
    """A dispatch, compiled with the fused softmax or with the shipped one."""
    chosen = shapes.settings(shape, "sasrec_ce", **changes)
    with setting(products):
        trainer = Trainer(split, chosen, num_steps=NUM_STEPS)
    row = {"temp_mb": measure.temp_mb(trainer.program)}
    return Variant(row, trainer, trainer.num_steps)


def tasks(flags: Flags) -> Iterator[Task]:
    """The losses of `candidates`, then steps."""
    for case in candidates.cases(flags):
        yield Task(case.name, partial(loss_rows, case))
    for name, shape in ({"tiny": TINY} if flags.is_tiny else SHAPES).items():
        batch_size = 8 if flags.is_tiny else 128
        task = partial(step_rows, name, shape, batch_size)
        yield Task(f"a step of {name}", task)
