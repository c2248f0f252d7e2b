"""Encoders: items of a history in, one hidden state a position out.

Every encoder is a Flax Linen module with the same two doors:

    hidden_RTD = encoder.apply({"params": params}, tokens_RT, position_RT, segment_RT,
                               train=..., rngs={"dropout": key})
    table_VD = encoder.apply({"params": params}, method="table")

A row holds one sequence or several, one after another: `segment_RT` numbers the
sequences of a row from 1 (0 is padding), and no state ever passes from one segment to
another. One sequence a row is segment = (token > 0). The score of item v at a position
is <hidden, table[v]>: the head is tied to the item embedding and has no bias, as in
the paper's code. Row 0 of the table is PAD; encoders with the cloze objective have one
more row, MASK, after the items.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.errors import InputError

PAD = 0
_EMBEDDING_STDDEV = 0.02

Array = jax.Array
Initializer = Any


def mask_id(num_items: int) -> int:
    """The row of the item table that stands for a hidden item (cloze only)."""
    return num_items + 1


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Zeroes entries of x with probability round(rate * 2^16) / 2^16, scales the rest.

    Two draws share one 32-bit random word: on a CPU that takes half the time of
    `jax.random.bernoulli`, which draws a float an entry, and attention draws the most.

    Args:
      key: consumed.
      x: any shape and float dtype.
      rate: in [0, 1).

    Returns:
      x's shape and dtype, with the same mean.
    """
    threshold = round(rate * 2**16)
    if not 0 <= threshold < 2**16:
        raise InputError(f"a dropout rate must be in [0, 1): got {rate}.")
    words = jax.random.bits(key, (-(-x.size // 2),), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size]
    keep = (draws >= threshold).reshape(x.shape)
    scale = jnp.asarray(2**16 / (2**16 - threshold), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


class Dropout(nn.Module):
    """`dropout` under the "dropout" stream; the identity unless train."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if not train or self.rate == 0.0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


class ItemEmbedding(nn.Module):
    """The item table [V, D]: PAD is a row of zeros, the rest N(0, 0.02)."""

    num_rows: int
    width: int

    def setup(self):
        self.table_VD = self.param("table", _table_init, (self.num_rows, self.width))

    def __call__(self, tokens_RT: Array) -> Array:
        return self.table_VD[tokens_RT]


def _table_init(key: Array, shape: tuple[int, int]) -> Array:
    table_VD = _EMBEDDING_STDDEV * jax.random.normal(key, shape, jnp.float32)
    return table_VD.at[PAD].set(0.0)


def attention_mask(segment_RT: Array, *, is_causal: bool) -> Array:
    """Who may look at whom: bool [R, 1, T, M], True in a segment, and back if causal.

    Padding is segment 0 and sees only padding, so every row of the mask has a True.
    """
    mask_RTM = segment_RT[:, :, None] == segment_RT[:, None, :]
    if is_causal:
        length = segment_RT.shape[1]
        mask_RTM &= jnp.tril(jnp.ones((length, length), bool))[None]
    return mask_RTM[:, None]


class Attention(nn.Module):
    """Multi-head attention with dropout on the probabilities.

    softmax(Q K^T / sqrt(K)) V with biased projections; the softmax is float32.

    Attributes:
      num_heads: divides the width of the input.
      dropout: rate on the attention probabilities.
      dtype: of the computation; parameters are float32.
      projection_init: of query, key and value; the output projection is N(0, 0.02).
    """

    num_heads: int
    dropout: float
    dtype: Any
    projection_init: Initializer

    @nn.compact
    def __call__(
        self, query_RTD: Array, memory_RTD: Array, mask_R1TM: Array, *, train: bool
    ) -> Array:
        width = query_RTD.shape[-1]
        if width % self.num_heads:
            raise InputError(
                "model.width must be a multiple of model.num_heads: got "
                f"width={width}, num_heads={self.num_heads}."
            )
        heads = (self.num_heads, width // self.num_heads)

        def project(name: str, x_RTD: Array) -> Array:
            dense = nn.Dense(
                width, dtype=self.dtype, kernel_init=self.projection_init, name=name
            )
            return dense(x_RTD).reshape(*x_RTD.shape[:-1], *heads)

        query_RTHK = project("query", query_RTD) * jnp.asarray(
            heads[1] ** -0.5, self.dtype
        )
        key_RMHK = project("key", memory_RTD)
        value_RMHK = project("value", memory_RTD)
        score_RHTM = jnp.einsum(
            "rthk,rmhk->rhtm", query_RTHK, key_RMHK, preferred_element_type=jnp.float32
        )
        score_RHTM = jnp.where(mask_R1TM, score_RHTM, jnp.finfo(jnp.float32).min)
        probability_RHTM = jax.nn.softmax(score_RHTM, axis=-1).astype(self.dtype)
        probability_RHTM = Dropout(self.dropout)(probability_RHTM, train=train)
        mixed_RTHK = jnp.einsum("rhtm,rmhk->rthk", probability_RHTM, value_RMHK)
        return _dense(width, self.dtype, "output")(mixed_RTHK.reshape(query_RTD.shape))


def _dense(width: int, dtype: Any, name: str) -> nn.Dense:
    init = nn.initializers.normal(_EMBEDDING_STDDEV)
    return nn.Dense(width, dtype=dtype, kernel_init=init, name=name)


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    # float32 whatever the compute dtype: the paper's epsilons (1e-8, 1e-12) are far
    # below the resolution of bfloat16. Two-pass variance: E[x^2] - E[x]^2 cancels.
    return nn.LayerNorm(
        epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def _normalised(x_RTD: Array, epsilon: float, name: str) -> Array:
    """LN(x) in x's dtype, with the parameters of the calling module's `name`."""
    return _layer_norm(epsilon, name)(x_RTD.astype(jnp.float32)).astype(x_RTD.dtype)


# The paper's code leaves torch's packed [3D, D] projection at its Xavier-uniform
# default: bound sqrt(6 / (D + 3D)), which a [D, D] kernel has at scale 1/2.
_packed_xavier_uniform = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class SASRecBlock(nn.Module):
    """One block as the paper's code builds it.

    q = LN(x); x = q + Attention(q, x, x); x = LN(x); x = x + drop(W2 relu(drop(W1 x))).
    Only the query is normalised, and the residual starts from the normalised query.
    """

    num_heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_RTD: Array, mask_R1TM: Array, *, train: bool) -> Array:
        width = x_RTD.shape[-1]
        query_RTD = _normalised(x_RTD, 1e-8, "attention_norm")
        attention = Attention(
            self.num_heads,
            self.dropout,
            self.dtype,
            _packed_xavier_uniform,
            name="attention",
        )
        x_RTD = query_RTD + attention(query_RTD, x_RTD, mask_R1TM, train=train)
        x_RTD = _normalised(x_RTD, 1e-8, "feed_forward_norm")
        y_RTF = _dense(width, self.dtype, "inner")(x_RTD)
        y_RTF = nn.relu(Dropout(self.dropout)(y_RTF, train=train))
        y_RTD = _dense(width, self.dtype, "outer")(y_RTF)
        return x_RTD + Dropout(self.dropout)(y_RTD, train=train)


class PreNormBlock(nn.Module):
    """x += drop(Attention(LN(x))); x += drop(W2 gelu(W1 LN(x))), inner width 4D."""

    num_heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_RTD: Array, mask_R1TM: Array, *, train: bool) -> Array:
        width = x_RTD.shape[-1]
        y_RTD = _normalised(x_RTD, 1e-6, "attention_norm")
        attention = Attention(
            self.num_heads,
            self.dropout,
            self.dtype,
            nn.initializers.xavier_uniform(),
            name="attention",
        )
        y_RTD = attention(y_RTD, y_RTD, mask_R1TM, train=train)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        y_RTD = _normalised(x_RTD, 1e-6, "feed_forward_norm")
        y_RTF = nn.gelu(_dense(4 * width, self.dtype, "inner")(y_RTD))
        y_RTD = _dense(width, self.dtype, "outer")(y_RTF)
        return x_RTD + Dropout(self.dropout)(y_RTD, train=train)


class SASRec(nn.Module):
    """Causal self-attention over the history, as the paper's code builds it.

    x = drop(E[token] sqrt(D) + P[position]), blocks, LN. On ML-1M at the defaults:
    282,048 parameters, the PAD row counted.

    Attributes:
      num_items: items are 1..num_items.
      width: D, divided by num_heads.
      num_layers: blocks.
      num_heads: of the attention.
      dropout: rate after the embedding, on attention probabilities and twice in the
        feed-forward layer.
      num_positions: rows of the position table; no window may be longer.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32.

    Source: Kang & McAuley, ICDM 2018, with the paper's deviations.
    """

    num_items: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 1
    dropout: float = 0.1
    num_positions: int = 200
    dtype: str = "float32"

    objective = "next_item"
    block = SASRecBlock
    final_norm_epsilon = 1e-8

    def setup(self):
        self.item_embedding = ItemEmbedding(self.num_items + 1, self.width)
        init = nn.initializers.normal(_EMBEDDING_STDDEV)
        shape = (self.num_positions, self.width)
        self.position_table = self.param("position_table", init, shape)
        self.embedding_dropout = Dropout(self.dropout)
        self.blocks = [
            self.block(self.num_heads, self.dropout, jnp.dtype(self.dtype))
            for _ in range(self.num_layers)
        ]
        self.final_norm = _layer_norm(self.final_norm_epsilon, "final_norm")

    def table(self) -> Array:
        """The item table [num_items + 1, D], which scores the hidden states too."""
        return self.item_embedding.table_VD

    def __call__(
        self, tokens_RT: Array, position_RT: Array, segment_RT: Array, *, train: bool
    ) -> Array:
        dtype = jnp.dtype(self.dtype)
        is_real_RT1 = (segment_RT > 0)[..., None]
        x_RTD = self.item_embedding(tokens_RT) * self.width**0.5
        x_RTD = x_RTD + self.position_table[position_RT]
        x_RTD = self.embedding_dropout(x_RTD.astype(dtype), train=train)
        mask_R1TM = attention_mask(segment_RT, is_causal=True)
        for block in self.blocks:
            x_RTD = block(x_RTD * is_real_RT1.astype(dtype), mask_R1TM, train=train)
        x_RTD = x_RTD * is_real_RT1.astype(dtype)
        return self.final_norm(x_RTD.astype(jnp.float32))


class PreNormSASRec(SASRec):
    """SASRec with plain pre-norm transformer blocks (GELU, inner width 4D)."""

    block = PreNormBlock
    final_norm_epsilon = 1e-6


class BERT4RecBlock(nn.Module):
    """x = LN(x + drop(Attention(x))); x = LN(x + drop(W2 gelu(W1 x))), as in BERT."""

    num_heads: int
    inner_width: int
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_RTD: Array, mask_R1TM: Array, *, train: bool) -> Array:
        attention = Attention(
            self.num_heads,
            self.attention_dropout,
            self.dtype,
            nn.initializers.normal(_EMBEDDING_STDDEV),
            name="attention",
        )
        y_RTD = attention(x_RTD, x_RTD, mask_R1TM, train=train)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        x_RTD = _normalised(x_RTD, 1e-12, "attention_norm")
        y_RTF = _dense(self.inner_width, self.dtype, "inner")(x_RTD)
        y_RTF = nn.gelu(y_RTF, approximate=False)
        y_RTD = _dense(x_RTD.shape[-1], self.dtype, "outer")(y_RTF)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        return _normalised(x_RTD, 1e-12, "feed_forward_norm")


class BERT4Rec(nn.Module):
    """Bidirectional attention over a history with hidden items, as the paper has it.

    x = drop(LN(E[token] + P[position] + t)), post-norm blocks. t is BERT's token-type
    vector: one learnt vector added everywhere. The head is the bare table, without
    BERT's dense layer, norm and bias.

    Attributes:
      num_items: items are 1..num_items, MASK is num_items + 1.
      inner_width: F, of the feed-forward layer.
      attention_dropout: rate on the attention probabilities.
      The others as in `SASRec`.

    Source: Sun et al., CIKM 2019, with the paper's deviations.
    """

    num_items: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    inner_width: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.1
    num_positions: int = 200
    dtype: str = "float32"

    objective = "cloze"

    def setup(self):
        self.item_embedding = ItemEmbedding(mask_id(self.num_items) + 1, self.width)
        init = nn.initializers.normal(_EMBEDDING_STDDEV)
        shape = (self.num_positions, self.width)
        self.position_table = self.param("position_table", init, shape)
        self.type_D = self.param("type_embedding", init, (self.width,))
        self.embedding_norm = _layer_norm(1e-12, "embedding_norm")
        self.embedding_dropout = Dropout(self.dropout)
        self.blocks = [
            BERT4RecBlock(
                self.num_heads,
                self.inner_width,
                self.dropout,
                self.attention_dropout,
                jnp.dtype(self.dtype),
            )
            for _ in range(self.num_layers)
        ]

    def table(self) -> Array:
        """The item table [num_items + 2, D], which scores the hidden states too."""
        return self.item_embedding.table_VD

    def __call__(
        self, tokens_RT: Array, position_RT: Array, segment_RT: Array, *, train: bool
    ) -> Array:
        x_RTD = self.item_embedding(tokens_RT) + self.position_table[position_RT]
        x_RTD = self.embedding_norm(x_RTD + self.type_D[None, None])
        x_RTD = self.embedding_dropout(x_RTD.astype(self.dtype), train=train)
        mask_R1TM = attention_mask(segment_RT, is_causal=False)
        for block in self.blocks:
            x_RTD = block(x_RTD, mask_R1TM, train=train)
        return x_RTD.astype(jnp.float32)


class GRULayer(nn.Module):
    """One GRU over each row, its state cleared where a segment begins.

    r = sig(W_r x + U_r h); z = sig(W_z x + U_z h); n = tanh(W_n x + r * (U_n h));
    h = (1 - z) n + z h, each product with its bias, as torch has it; every parameter is
    U(-1/sqrt(D), 1/sqrt(D)).
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x_RTD: Array, is_start_RT: Array) -> Array:
        init = _symmetric_uniform(self.width**-0.5)

        def dense(name: str) -> nn.Dense:
            return nn.Dense(
                3 * self.width,
                dtype=self.dtype,
                kernel_init=init,
                bias_init=init,
                name=name,
            )

        # The input's share of all three gates is one matmul, outside the recurrence.
        gates_RTF = dense("input")(x_RTD)
        recurrent = dense("recurrent")

        def step(module, hidden_RD, inputs):
            gates_RF, is_start_R = inputs
            hidden_RD = jnp.where(is_start_R[:, None], 0, hidden_RD)
            reset_x, update_x, new_x = jnp.split(gates_RF, 3, axis=-1)
            reset_h, update_h, new_h = jnp.split(module(hidden_RD), 3, axis=-1)
            reset_RD = nn.sigmoid(reset_x + reset_h)
            update_RD = nn.sigmoid(update_x + update_h)
            new_RD = nn.tanh(new_x + reset_RD * new_h)
            hidden_RD = (1 - update_RD) * new_RD + update_RD * hidden_RD
            return hidden_RD, hidden_RD

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        start_RD = jnp.zeros_like(gates_RTF[:, 0, : self.width])
        _, hidden_RTD = scan(recurrent, start_RD, (gates_RTF, is_start_RT))
        return hidden_RTD


def _symmetric_uniform(bound: float) -> Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class GRU4Rec(nn.Module):
    """Recurrent layers over item embeddings with the tied head, as the paper has it.

    Attributes:
      num_items: items are 1..num_items.
      width: D, of embeddings and state.
      num_layers: GRU layers, dropout between them.
      dropout: rate between layers; without effect on one layer, as in torch.
      dtype: "float32" or "bfloat16", of the computation; parameters are float32.

    Source: the paper's code; Hidasi et al., ICLR 2016, for the idea.
    """

    num_items: int
    width: int = 64
    num_layers: int = 1
    dropout: float = 0.1
    dtype: str = "float32"

    objective = "next_item"
    num_positions = None

    def setup(self):
        self.item_embedding = ItemEmbedding(self.num_items + 1, self.width)
        dtype = jnp.dtype(self.dtype)
        self.layers = [GRULayer(self.width, dtype) for _ in range(self.num_layers)]
        self.between = Dropout(self.dropout)

    def table(self) -> Array:
        """The item table [num_items + 1, D], which scores the hidden states too."""
        return self.item_embedding.table_VD

    def __call__(
        self, tokens_RT: Array, position_RT: Array, segment_RT: Array, *, train: bool
    ) -> Array:
        del segment_RT  # a segment begins at position 0
        x_RTD = self.item_embedding(tokens_RT).astype(self.dtype)
        for i, layer in enumerate(self.layers):
            if i > 0:
                x_RTD = self.between(x_RTD, train=train)
            x_RTD = layer(x_RTD, position_RT == 0)
        return x_RTD.astype(jnp.float32)


ENCODERS = {
    "sasrec": SASRec,
    "sasrec_pre_norm": PreNormSASRec,
    "bert4rec": BERT4Rec,
    "gru4rec": GRU4Rec,
}


def num_parameters(params: Any) -> int:
    """Scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
