"""Memory that the C library has and the program has not."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from jaxrec import backend

BLOCKS, WORDS = 2_000, 8_000  # of 64 kB, which glibc takes from its heap


def resident_mb() -> float:
    """Of this process's own memory, by the system's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(
    not (
        Path("/proc/self/status").exists()
        and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    ),
    reason="glibc on Linux alone",
)
def test_what_is_free_goes_back_to_the_system():
    blocks = [np.ones(WORDS) for _ in range(BLOCKS)]
    last = blocks[-1]  # at the end of the heap, which cannot shrink past it
    held = resident_mb()
    del blocks
    backend.release_memory()
    assert held - resident_mb() > 0.8 * BLOCKS * WORDS * 8 / 2**20
    assert last.sum() == WORDS


@pytest.mark.parametrize("library", [object(), None])
def test_another_c_library_is_left_alone(monkeypatch, library):
    def load(name):
        if library is None:
            raise OSError
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    backend.release_memory()
