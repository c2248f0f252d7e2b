"""Layers against their formulas in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxrec import layers
from jaxrec.layer_norm import layer_norm

EPSILON = 1e-8
# Some ten float32 operations of 6e-8 each, on values of about one.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def operands(shape=(3, 4, 7), *, offset=0.0):
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(2, *shape)).astype(np.float32)
    scale_D, bias_D = rng.normal(size=(2, shape[-1])).astype(np.float32)
    return x + np.float32(offset), scale_D, bias_D, grad


def formula(x, scale_D, bias_D, epsilon=EPSILON):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return scale_D * centred / np.sqrt(variance + epsilon) + bias_D


def slopes(fn, arrays, grad, step=1e-6):
    """d <fn(arrays), grad> by each entry, from differences in float64."""
    found = []
    for i, array in enumerate(arrays):
        slope = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy() for x in arrays]
                moved[i][place] += sign * step
                sides.append((fn(*moved) * grad).sum())
            slope[place] = (sides[0] - sides[1]) / (2 * step)
        found.append(slope)
    return found


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 4, 7)])
def test_value_and_gradients_are_those_of_the_formula(shape):
    *arrays, grad = operands(shape)
    out, vjp = jax.vjp(functools.partial(layer_norm, epsilon=EPSILON), *arrays)
    doubles = [x.astype(float) for x in arrays]
    np.testing.assert_allclose(out, formula(*doubles), **TOLERANCE)
    expected = slopes(formula, doubles, grad.astype(float))
    for mine, other in zip(vjp(grad), expected, strict=True):
        np.testing.assert_allclose(mine, other, **TOLERANCE)


def test_the_epsilon_is_added_to_the_variance():
    x = np.array([[1.0, -1.0], [0.0, 0.0]], np.float32)
    one_D, zero_D = np.ones(2, np.float32), np.zeros(2, np.float32)
    out, vjp = jax.vjp(lambda x: layer_norm(x, one_D, zero_D, 3.0), x)
    np.testing.assert_allclose(out, [[0.5, -0.5], [0, 0]], rtol=1e-6)
    # Where all entries are equal, LN is (x - mean) / sqrt(epsilon).
    (x_grad,) = vjp(jnp.asarray([[0, 0], [1.0, 0]]))
    np.testing.assert_allclose(x_grad[1], np.array([0.5, -0.5]) / 3**0.5, rtol=1e-6)


def test_a_large_mean_does_not_cancel_the_variance():
    """E[x^2] - E[x]^2 of entries about 1000 would be off by the variance itself."""
    *arrays, _ = operands(offset=1000.0)
    expected = formula(*(x.astype(float) for x in arrays))
    # Entries of 1000 are rounded by 3e-5.
    np.testing.assert_allclose(layer_norm(*arrays, EPSILON), expected, atol=5e-4)


@pytest.mark.parametrize("is_x64", [False, True])
def test_parameters_and_results_are_float32(is_x64):
    """Also where JAX's floats are float64 by default."""
    with jax.enable_x64(is_x64):
        x = jnp.ones((2, 5), jnp.bfloat16)
        module = layers.LayerNorm(EPSILON)
        variables = module.init(jax.random.key(0), x)
        out, vjp = jax.vjp(lambda variables: module.apply(variables, x), variables)
        leaves = jax.tree.leaves((variables, out, vjp(out)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_x_times_the_normal_distribution(dtype):
    x = jnp.linspace(-8, 8, 401).astype(dtype)
    out, vjp = jax.vjp(layers.gelu, x)
    (x_grad,) = vjp(jnp.ones_like(out))
    assert out.dtype == x_grad.dtype == dtype
    x = np.asarray(x, float)
    below = (1 + erf(x / math.sqrt(2))) / 2
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    # bfloat16 is rounded once, at the end: half of 2^-7 of a number, at the most.
    tolerance = {"atol": 1e-6, "rtol": 1e-6 if dtype == jnp.float32 else 2**-8}
    np.testing.assert_allclose(np.asarray(out, float), x * below, **tolerance)
    expected = below + x * density
    np.testing.assert_allclose(np.asarray(x_grad, float), expected, **tolerance)


def test_attention_takes_a_memory_of_another_width():
    query_RTD, memory_RTD = jnp.ones((2, 6, 8)), jnp.ones((2, 6, 12))
    segment_RT = jnp.ones((2, 6), jnp.int32)
    module = layers.Attention(
        num_heads=2,
        dropout=0.0,
        is_causal=True,
        dtype=jnp.float32,
        projection_init=jax.nn.initializers.ones,
    )
    arrays = query_RTD, memory_RTD, segment_RT
    out, variables = module.init_with_output(jax.random.key(0), *arrays, train=False)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    kernels = {name: found["kernel"] for name, found in shapes.items()}
    assert kernels == {"query": (8, 8), "key": (12, 8), "value": (12, 8)} | {
        "output": (8, 8)
    }
    # The value of every position is 12 everywhere, and so is their mean.
    kernel_DF = variables["params"]["output"]["kernel"]
    expected = jnp.broadcast_to(12 * kernel_DF.sum(axis=0), out.shape)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
