"""benchmarks.gpu_programs: programs for a GPU that is not there."""

import importlib.util

import jax.numpy as jnp
import pytest

from benchmarks import gpu_programs, hlo, measure
from jaxrec.errors import InputError

HAS_PLUGIN = any(
    importlib.util.find_spec("jax_plugins") is not None
    and importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") is not None
    for version in (12, 13)
)
needs_plugin = pytest.mark.skipif(not HAS_PLUGIN, reason="JAX has no plugin for CUDA")
# Without a device it keeps programs in its cache that it cannot take out again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation")


@pytest.mark.skipif(HAS_PLUGIN, reason="JAX has a plugin for CUDA")
def test_without_the_plugin_one_line_says_what_to_do():
    with pytest.raises(InputError, match=r"pip install 'jaxrec\[cuda\]'"):
        gpu_programs.compiler()


@needs_plugin
def test_a_program_is_a_gpu_s():
    """One kernel reads 2 x 4 MiB and writes 4."""
    program = gpu_programs.compiler()(jnp.add, *2 * [jnp.ones((1024, 1024))])
    counts = hlo.count(hlo.parse(program.as_text() or ""))
    assert counts == hlo.Counts(1, 0, 12 * measure.MIB)


@needs_plugin
def test_steps_in_either_dtype(monkeypatch):
    monkeypatch.setattr(gpu_programs, "METHODS", ["sasrec_ce"])
    monkeypatch.setattr(gpu_programs, "NUM_STEPS", 2)
    found = list(gpu_programs.step_rows(gpu_programs.compiler(), "tiny"))
    assert [row["dtype"] for row in found] == 2 * ["float32", "bfloat16"]
    assert [gpu_programs.FUSED_STEP == row["program"] for row in found] == (
        [False, False, True, True]
    )
    assert all(row["kernels"] > 50 and row["moved_mb"] > 0 for row in found)
