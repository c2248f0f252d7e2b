"""Waiting for a device, and memory that the C library has and the program has not."""

import ctypes
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import backend

BLOCKS, WORDS = 2_000, 8_000  # of 64 kB, which glibc takes from its heap


def resident_mb() -> float | None:
    """Of this process's own memory, by the system's account, if it keeps one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line for line in lines if line.startswith("RssAnon")]
    return int(found[0].split()[1]) / 1024 if found else None


def test_what_is_free_goes_back_to_the_system():
    is_glibc = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    if not is_glibc or resident_mb() is None or "LD_PRELOAD" in os.environ:
        pytest.skip("glibc's own heap, on Linux")
    blocks = [np.ones(WORDS) for _ in range(BLOCKS)]
    last = blocks[-1]  # at the end of the heap, which cannot shrink past it
    held = resident_mb()
    del blocks
    backend.release_memory()
    assert held - resident_mb() > 0.8 * BLOCKS * WORDS * 8 / 2**20
    assert last.sum() == WORDS


@pytest.mark.parametrize("error", [None, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    """One without the function; and none, on Windows with a TypeError."""

    def load(name):
        if error is not None:
            raise error
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    backend.release_memory()


def test_a_signal_is_answered_while_the_device_works(monkeypatch):
    class Slow:
        def is_ready(self):
            return False

    def handler_runs(seconds):
        assert 0 < seconds <= 0.05
        raise KeyboardInterrupt

    monkeypatch.setattr(backend.time, "sleep", handler_runs)
    with pytest.raises(KeyboardInterrupt):
        backend.wait((Slow(),))
    backend.wait(tuple(jax.block_until_ready([jnp.ones(2)])))
