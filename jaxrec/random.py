"""Named streams of randomness: a key is (seed, stream, step), never a state."""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
    """The key of one purpose. Another stream never moves this one's draws."""
    # crc32 and not hash(): the latter differs from process to process.
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
