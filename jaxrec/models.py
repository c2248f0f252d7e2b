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

from jaxrec.layers import (
    EMBEDDING_STDDEV,
    PAD,
    Attention,
    Dense,
    Dropout,
    Initializer,
    ItemEmbedding,
    LayerNorm,
    gelu,
    normalised,
)

__all__ = [
    "BERT4Rec",
    "ENCODERS",
    "GRU4Rec",
    "PAD",
    "PreNormSASRec",
    "SASRec",
    "mask_id",
    "num_parameters",
]

Array = jax.Array


def mask_id(num_items: int) -> int:
    """The row of the item table that stands for a hidden item (cloze only)."""
    return num_items + 1


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
    def __call__(self, x_RTD: Array, segment_RT: Array, *, train: bool) -> Array:
        width = x_RTD.shape[-1]
        query_RTD = normalised(x_RTD, 1e-8, "attention_norm")
        attention = Attention(
            self.num_heads,
            self.dropout,
            is_causal=True,
            dtype=self.dtype,
            projection_init=_packed_xavier_uniform,
            name="attention",
        )
        x_RTD = query_RTD + attention(query_RTD, x_RTD, segment_RT, train=train)
        x_RTD = normalised(x_RTD, 1e-8, "feed_forward_norm")
        y_RTF = Dense(width, self.dtype, name="inner")(x_RTD)
        y_RTF = nn.relu(Dropout(self.dropout)(y_RTF, train=train))
        y_RTD = Dense(width, self.dtype, name="outer")(y_RTF)
        return x_RTD + Dropout(self.dropout)(y_RTD, train=train)


class PreNormBlock(nn.Module):
    """x += drop(Attention(LN(x))); x += drop(W2 gelu(W1 LN(x))), inner width 4D."""

    num_heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_RTD: Array, segment_RT: Array, *, train: bool) -> Array:
        width = x_RTD.shape[-1]
        y_RTD = normalised(x_RTD, 1e-6, "attention_norm")
        attention = Attention(
            self.num_heads,
            self.dropout,
            is_causal=True,
            dtype=self.dtype,
            projection_init=nn.initializers.xavier_uniform(),
            name="attention",
        )
        y_RTD = attention(y_RTD, y_RTD, segment_RT, train=train)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        y_RTD = normalised(x_RTD, 1e-6, "feed_forward_norm")
        y_RTF = nn.gelu(Dense(4 * width, self.dtype, name="inner")(y_RTD))
        y_RTD = Dense(width, self.dtype, name="outer")(y_RTF)
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
        init = nn.initializers.normal(EMBEDDING_STDDEV)
        shape = (self.num_positions, self.width)
        self.position_table = self.param("position_table", init, shape)
        self.embedding_dropout = Dropout(self.dropout)
        self.blocks = [
            self.block(self.num_heads, self.dropout, jnp.dtype(self.dtype))
            for _ in range(self.num_layers)
        ]
        self.final_norm = LayerNorm(self.final_norm_epsilon)

    def table(self) -> Array:
        """The item table [num_items + 1, D], which scores the hidden states too."""
        return self.item_embedding.table_VD

    def __call__(
        self, tokens_RT: Array, position_RT: Array, segment_RT: Array, *, train: bool
    ) -> Array:
        dtype = jnp.dtype(self.dtype)
        x_RTD = self.item_embedding(tokens_RT) * self.width**0.5
        x_RTD = x_RTD + self.position_table[position_RT]
        x_RTD = self.embedding_dropout(x_RTD.astype(dtype), train=train)
        for block in self.blocks:
            x_RTD = block(x_RTD, segment_RT, train=train)
        return self.final_norm(x_RTD)


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
    def __call__(self, x_RTD: Array, segment_RT: Array, *, train: bool) -> Array:
        attention = Attention(
            self.num_heads,
            self.attention_dropout,
            is_causal=False,
            dtype=self.dtype,
            projection_init=nn.initializers.normal(EMBEDDING_STDDEV),
            name="attention",
        )
        y_RTD = attention(x_RTD, x_RTD, segment_RT, train=train)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        x_RTD = normalised(x_RTD, 1e-12, "attention_norm")
        y_RTF = gelu(Dense(self.inner_width, self.dtype, name="inner")(x_RTD))
        y_RTD = Dense(x_RTD.shape[-1], self.dtype, name="outer")(y_RTF)
        x_RTD = x_RTD + Dropout(self.dropout)(y_RTD, train=train)
        return normalised(x_RTD, 1e-12, "feed_forward_norm")


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
        init = nn.initializers.normal(EMBEDDING_STDDEV)
        shape = (self.num_positions, self.width)
        self.position_table = self.param("position_table", init, shape)
        self.type_D = self.param("type_embedding", init, (self.width,))
        self.embedding_norm = LayerNorm(1e-12)
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
        for block in self.blocks:
            x_RTD = block(x_RTD, segment_RT, train=train)
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

        def dense(name: str) -> Dense:
            return Dense(3 * self.width, self.dtype, init, init, name=name)

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
