"""The kind of device that programs are made for.

What is chosen by it (the sizes of tiles, chunks and parts) changes how long a program
takes and in which order it sums, not what it computes.
"""

import jax


def is_cpu() -> bool:
    """Whether JAX computes on the CPU by default."""
    return jax.default_backend() == "cpu"
