"""Layer normalisation and GELU against their formulas in float64."""

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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_x_times_the_normal_distribution(dtype):
    x = jnp.linspace(-8, 8, 401).astype(dtype)
    out, vjp = jax.vjp(layers.gelu, x)
    (x_grad,) = vjp(jnp.ones_like(out))
    assert out.dtype == x_grad.dtype == dtype
    x = np.asarray(x, float)
    below = (1 + erf(x / math.sqrt(2))) / 2
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    atol = 2e-6 if dtype == jnp.float32 else 0.06
    np.testing.assert_allclose(np.asarray(out, float), x * below, atol=atol)
    expected = below + x * density
    np.testing.assert_allclose(np.asarray(x_grad, float), expected, atol=atol)
