"""The strict room: warnings are errors, ranks do not promote, 8 simulated devices."""

import os
import pathlib

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
# Compiling is most of the suite's time. So LLVM's optimisations are left out (XLA's own
# stay), here and in what tests start; and jax 0.10 compiles fusions the older way, in
# one piece, which takes two thirds of the time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 has it
# all as it is for users.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
is_quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("1", "true")
jax.config.update("jax_disable_most_optimizations", is_quick)
if is_quick and jax.__version_info__ < (0, 11):  # XLA aborts at a flag it does not know
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
# What is compiled outlives the run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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
