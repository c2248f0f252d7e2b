"""Layers that encoders are made of: Flax Linen modules without an opinion."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec import attention, dropout, layer_norm
from jaxrec.errors import InputError

PAD = 0
EMBEDDING_STDDEV = 0.02

Array = jax.Array
Initializer = Any


class Dropout(nn.Module):
    """`dropout.dropout` under the "dropout" stream; the identity unless train."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if not train or self.rate == 0.0:
            return x
        return dropout.dropout(self.make_rng("dropout"), x, self.rate)


class ItemEmbedding(nn.Module):
    """The item table [V, D]: PAD is a row of zeros, the rest N(0, 0.02)."""

    num_rows: int
    width: int

    def setup(self):
        self.table_VD = self.param("table", _table_init, (self.num_rows, self.width))

    def __call__(self, tokens_RT: Array) -> Array:
        return self.table_VD[tokens_RT]


def _table_init(key: Array, shape: tuple[int, int]) -> Array:
    table_VD = EMBEDDING_STDDEV * jax.random.normal(key, shape, jnp.float32)
    return table_VD.at[PAD].set(0.0)


@jax.custom_vjp
def affine(x_ND: Array, kernel_DF: Array, bias_F: Array) -> Array:
    """x W + b, of one dtype.

    The barrier of its backward pass keeps XLA from fusing what made x and the gradient
    into the transposed copies that it hands to the matmul of dW: on a CPU such a copy,
    written column by column, takes longer than the matmul.
    """
    return jnp.dot(x_ND, kernel_DF) + bias_F[None]


def _affine_forward(x_ND, kernel_DF, bias_F):
    return affine(x_ND, kernel_DF, bias_F), (x_ND, kernel_DF)


def _affine_backward(saved, grad_NF):
    x_ND, kernel_DF = saved
    x_ND, grad_NF = jax.lax.optimization_barrier((x_ND, grad_NF))
    kernel_grad_DF = jax.lax.dot_general(x_ND, grad_NF, (((0,), (0,)), ((), ())))
    return jnp.dot(grad_NF, kernel_DF.T), kernel_grad_DF, grad_NF.sum(axis=0)


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """x W + b over the last axis: `nn.Dense`, its parameters too, with `affine`.

    Attributes:
      features: F.
      dtype: of the computation; parameters are float32.
      kernel_init, bias_init: N(0, 0.02) and zeros.
    """

    features: int
    dtype: Any
    kernel_init: Initializer = nn.initializers.normal(EMBEDDING_STDDEV)
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _projected(x, *_weights(self, x.shape[-1]), self.dtype)


class Weights(nn.Module):
    """The kernel [D, F] and the bias [F] of a `Dense`, for what joins several."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        return _weights(self, width)


def _weights(module: Dense | Weights, width: int) -> tuple[Array, Array]:
    kernel_DF = module.param("kernel", module.kernel_init, (width, module.features))
    return kernel_DF, module.param("bias", module.bias_init, (module.features,))


def _projected(x: Array, kernel_DF: Array, bias_F: Array, dtype: Any) -> Array:
    """`affine` over the last axis, in the dtype."""
    x_ND = x.reshape(-1, x.shape[-1]).astype(dtype)
    y_NF = affine(x_ND, kernel_DF.astype(dtype), bias_F.astype(dtype))
    return y_NF.reshape(*x.shape[:-1], len(bias_F))


class Attention(nn.Module):
    """Multi-head `attention.attend` with biased projections.

    Attributes:
      num_heads: divides the width of the input.
      dropout: rate on the attention probabilities.
      is_causal: positions see none after them.
      dtype: of the computation; parameters are float32.
      projection_init: of query, key and value; the output projection is N(0, 0.02).
    """

    num_heads: int
    dropout: float
    is_causal: bool
    dtype: Any
    projection_init: Initializer

    @nn.compact
    def __call__(
        self, query_RTD: Array, memory_RTD: Array, segment_RT: Array, *, train: bool
    ) -> Array:
        width = query_RTD.shape[-1]
        if width % self.num_heads:
            raise InputError(
                "model.width must be a multiple of model.num_heads: got "
                f"width={width}, num_heads={self.num_heads}."
            )
        heads = (self.num_heads, width // self.num_heads)

        def project(x_RTD: Array, *names: str) -> list[Array]:
            """What is projected from the same x is one matmul."""
            weights = [
                Weights(width, self.projection_init, name=name)(x_RTD.shape[-1])
                for name in names
            ]
            kernel_DF = jnp.concatenate([kernel for kernel, _ in weights], axis=1)
            bias_F = jnp.concatenate([bias for _, bias in weights])
            y_RTF = _projected(x_RTD, kernel_DF, bias_F, self.dtype)
            return [
                y_RTD.reshape(*x_RTD.shape[:-1], *heads)
                for y_RTD in jnp.split(y_RTF, len(names), axis=-1)
            ]

        # An equal one that is another array is one matmul more, and as right.
        if query_RTD is memory_RTD:
            query, key, value = project(query_RTD, "query", "key", "value")
        else:
            (query,) = project(query_RTD, "query")
            key, value = project(memory_RTD, "key", "value")
        has_dropout = train and self.dropout > 0
        mixed_RTHK = attention.attend(
            query,
            key,
            value,
            segment_RT,
            is_causal=self.is_causal,
            rate=self.dropout,
            dropout_key=self.make_rng("dropout") if has_dropout else None,
        )
        output = Dense(width, self.dtype, name="output")
        return output(mixed_RTHK.reshape(query_RTD.shape))


class LayerNorm(nn.Module):
    """`layer_norm.layer_norm` with the scale and the bias of `nn.LayerNorm`.

    float32 whatever the compute dtype: the paper's epsilons (1e-8, 1e-12) are far below
    the resolution of bfloat16.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x = x.astype(jnp.float32)
        return layer_norm.layer_norm(x, scale_D, bias_D, self.epsilon)


def normalised(x_RTD: Array, epsilon: float, name: str) -> Array:
    """LN(x) in x's dtype, with the parameters of the calling module's `name`."""
    return LayerNorm(epsilon, name=name)(x_RTD).astype(x_RTD.dtype)


def gelu(x: Array) -> Array:
    """x P(Z < x) of a standard normal Z, computed in float32, in x's dtype.

    By erf, as torch has it: `nn.gelu(approximate=False)` is made of erfc, which takes a
    CPU longer, for digits far to the left, where this is off by 1.5e-7 of x.

    Source: Hendrycks & Gimpel, arXiv 1606.08415, section 2.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(0.5**0.5 * wide))).astype(x.dtype)
