"""The kind of device that programs are made for.

What is chosen by it (the sizes of tiles, chunks, blocks and parts) changes how long a
program takes, in which order it sums and which entries a dropout drops; with
loss.dtype=bfloat16 also how scores and exponentials are rounded, within the bounds of
`softmax.loss_sum`. It is asked of the device that JAX computes on by default, when a
program is traced. And memory that a device's programs are compiled with, which the C
library keeps.
"""

import contextlib
import ctypes

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
