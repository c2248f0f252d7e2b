"""The strict room: warnings are errors, ranks do not promote, 8 simulated devices."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of ml-1m.txt and beauty.txt; tests that need it skip without it."""
    folder = pathlib.Path(
        os.environ.get("JAXREC_DATA", REPOSITORY.parent / "shared" / "data")
    )
    for name in ("ml-1m.txt", "beauty.txt"):
        if not (folder / name).exists():
            pytest.skip(f"{name} is not in {folder}; set JAXREC_DATA to its folder")
    return folder
