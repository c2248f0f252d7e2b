"""Layer normalisation with a backward pass of its own. Pure functions.

Autodiff goes back through the mean, the variance and the quotient one by one, and keeps
what each of them needs. Here the input and its two moments are kept, and the gradient
is written down: fewer passes over what is many times as large as the parameters.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale_D: Array, bias_D: Array, epsilon: float) -> Array:
    """scale (x - mean) / sqrt(var + epsilon) + bias, over the last axis.

    The variance is that of the D entries, in two passes: E[x^2] - E[x]^2 cancels.

    Args:
      x: float32 [..., D]. scale_D, bias_D: float32.

    Source: Ba et al., arXiv 1607.06450, equation 4.
    """
    return _forward(x, scale_D, bias_D, epsilon)[0]


def _forward(x, scale_D, bias_D, epsilon: float):
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    z = (x - mean) * inverse
    y = _along(scale_D, x) * z + _along(bias_D, x)
    return y, (x, mean, inverse, scale_D)


def _backward(epsilon: float, saved, grad):
    """dx = (g - E[g] - z E[g z]) / sqrt(var + epsilon), where g = scale dy.

    z is x less its mean, over the same root.
    """
    del epsilon
    x, mean, inverse, scale_D = saved
    z = (x - mean) * inverse
    z_grad = _along(scale_D, x) * grad
    # A barrier, or the means are made part of what uses them, entry by entry.
    along_one, along_z = jax.lax.optimization_barrier(
        (
            z_grad.mean(axis=-1, keepdims=True),
            (z_grad * z).mean(axis=-1, keepdims=True),
        )
    )
    x_grad = inverse * (z_grad - along_one - z * along_z)
    others = tuple(range(x.ndim - 1))
    return x_grad, (grad * z).sum(axis=others), grad.sum(axis=others)


def _along(parameter_D: Array, x: Array) -> Array:
    """[1, ..., D], of as many axes as x: ranks are not promoted silently."""
    return parameter_D.reshape((1,) * (x.ndim - 1) + parameter_D.shape)


layer_norm.defvjp(_forward, _backward)
