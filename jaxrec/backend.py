"""The kind of device that programs are made for.

What is chosen by it (the sizes of tiles, chunks, blocks and parts) changes how long a
program takes, in which order it sums and which entries a dropout drops; with
loss.dtype=bfloat16 also how scores and exponentials are rounded, within the bounds of
`softmax.loss_sum`. It is asked of the device that JAX computes on by default, when a
program is traced. And what is about the device and no program: waiting for it, and
memory that programs were compiled with.
"""

import contextlib
import ctypes
import time
from collections.abc import Iterable
from typing import Any

import jax


def is_cpu() -> bool:
    """Whether JAX computes on the CPU by default."""
    return jax.default_backend() == "cpu"


def release_memory() -> None:
    """Gives the system back what is free, where the C library can (glibc).

    It keeps what compiling has freed for later, and a step, which takes its memory in a
    few large pieces, would come on top.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def wait(arrays: Iterable[Any]) -> None:
    """Until the device has them; a signal's handler is called meanwhile.

    A plain wait is inside the runtime, and Python calls no handler until it ends.
    """
    began, arrays = time.monotonic(), [*arrays]
    while not all(x.is_ready() for x in arrays):
        # Often enough to be late by a fiftieth, and seldom enough to cost nothing.
        time.sleep(min(0.05, 1e-4 + 0.02 * (time.monotonic() - began)))
