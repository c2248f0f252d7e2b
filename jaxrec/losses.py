"""Losses of hidden states against the item table, in nats.

One contract for all:

    loss(hidden_BLD, table_VD, target_BL, weight_BL, candidates) -> (sum, weight)

`sum` is the weighted sum over positions and `weight` the sum of weights, both float32
scalars: whoever holds every shard of a batch divides once. Positions of weight 0 cost
nothing and have zero gradient. The score of item v is <hidden, table[v]>, computed in
float32 whatever the encoder's dtype (recent GPUs multiply float32 in TF32, which is
JAX's default there). `candidates` is what the target competes with:

    Catalogue   every allowed item, less some of each sequence's own   (ce, sampled_ce)
    Shared      S drawn items, shared by the positions of a sequence,
                or by those of several sequences                       (sampled_ce)
    Separate    S drawn items a position                               (bce, gbce)

No loss stores scores of size [B, L, V] or gathers [B, S, D] or [B, L, S, D] at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import binary, indices, sampled_softmax, softmax

Array = jax.Array


class Catalogue(NamedTuple):
    """The target competes with all of `allowed`, less `excluded` of its sequence.

    allowed_V: bool, one a row of the table; PAD and MASK are normally False.
    excluded_BX: int32 ids left out for a whole sequence, 0-padded, or None. The target
      of a position is never left out of it.
    """

    allowed_V: Array
    excluded_BX: Array | None = None


class Shared(NamedTuple):
    """Sets of S items, each shared by all positions of one or several sequences.

    negative_GS: int32. G divides B: set g is for the sequences from g B / G on.
    dropped_BX: int32, places in its set, 0..S-1, that do not compete with a sequence; S
      fills the rest. None if all compete.
    """

    negative_GS: Array
    dropped_BX: Array | None = None


class Separate(NamedTuple):
    """negative_BLS: int32, S items for each position."""

    negative_BLS: Array


def compact(weight_BL: Array) -> tuple[Array, Array]:
    """The flat indices of positions with a weight, first, and their number.

    Returns:
      index_N int32 [B * L], filled up with B * L, and the count, int32.
    """
    has_weight_N = weight_BL.reshape(-1) > 0
    rank_N = jnp.cumsum(has_weight_N, dtype=jnp.int32)
    size = len(rank_N)
    index_N = indices.inverse(jnp.where(has_weight_N, rank_N - 1, size), size)
    return index_N, rank_N[-1]


def ce(
    hidden_BLD: Array,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Catalogue,
    *,
    dtype: str = "float32",
) -> tuple[Array, Array]:
    """Full softmax cross-entropy, scores in memory for some positions at a time.

    sum_n w_n (logsumexp_{v in C_n} s_nv - s_n,target), s = hidden table^T, where C_n is
    the allowed items less the excluded ones of n's sequence, and always the target.

    Only positions with a weight are computed; how is told in `softmax`.

    Args:
      hidden_BLD: float, any dtype; cast to float32.
      table_VD: float32.
      target_BL: int32, row of the table; ignored where the weight is 0.
      weight_BL: float32; a constant, without a gradient.
      candidates: see `Catalogue`.
      dtype: of the matmuls of the gradients, "float32" or "bfloat16"; see
        `softmax.loss_sum`.

    Returns:
      (sum, weight), float32 scalars; sum is in nats.

    >>> import jax.numpy as jnp
    >>> same = jnp.zeros((1, 2, 4))  # equal scores: log of the number of candidates
    >>> loss, weight = ce(same, jnp.ones((9, 4)), jnp.ones((1, 2), jnp.int32),
    ...                   jnp.ones((1, 2)), Catalogue(jnp.arange(9) > 0))
    >>> round(float(loss / weight), 4), round(float(jnp.log(8)), 4)
    (2.0794, 2.0794)
    """
    length, width = hidden_BLD.shape[1:]
    index_N, count = compact(weight_BL)

    def compacted(x_N):
        return jnp.asarray(x_N).at[index_N].get(mode="fill", fill_value=0)

    positions = softmax.Positions(
        target_N=compacted(target_BL.reshape(-1)),
        weight_N=compacted(weight_BL.reshape(-1)),
        sequence_N=jnp.minimum(index_N, weight_BL.size - 1) // length,
        count=count,
    )
    loss_sum = softmax.loss_sum(
        compacted(hidden_BLD.astype(jnp.float32).reshape(-1, width)),
        table_VD,
        positions,
        candidates.allowed_V,
        candidates.excluded_BX,
        dtype=dtype,
    )
    return loss_sum, weight_BL.sum(dtype=jnp.float32)


def sampled_ce(
    hidden_BLD: Array,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Shared | Catalogue,
    *,
    dtype: str = "float32",
) -> tuple[Array, Array]:
    """Softmax cross-entropy of the target against S sampled negatives.

    sum_n w_n (logsumexp(s_n,target, s_n,j for j in the negatives) - s_n,target),
    without a correction for the sampling (logQ), as in the paper. Negatives shared by
    many positions make their scores one [positions, D] x [D, S] matmul.

    When S is most of the catalogue it is cheaper to leave the other items out of the
    whole: candidates that come as a `Catalogue` less the items not drawn are the same
    loss, and `ce` computes it.

    Args, Returns: as in `ce`.

    Source: Klenitskiy & Vasilev, RecSys 2023, section 3.2.
    """
    if isinstance(candidates, Catalogue):
        return ce(hidden_BLD, table_VD, target_BL, weight_BL, candidates, dtype=dtype)

    hidden_BLD = hidden_BLD.astype(jnp.float32)
    sets = _sets(hidden_BLD, table_VD, target_BL, weight_BL, candidates)
    loss_sum = sampled_softmax.loss_sum(*sets, dtype=dtype)
    return loss_sum, weight_BL.sum(dtype=jnp.float32)


def _sets(hidden_BLD, table_VD, target_BL, weight_BL, candidates: Shared):
    """The positions of each set in one row, those with a weight first."""
    num_sets = len(candidates.negative_GS)
    num_sequences, length = target_BL.shape
    assert num_sequences % num_sets == 0, "sets that are shared unevenly"
    most = num_sequences // num_sets * length
    weight_GM = weight_BL.reshape(num_sets, most)
    set_G1 = jnp.arange(num_sets)[:, None]
    source_GM, count_G = jax.vmap(compact)(weight_GM)

    def compacted(x_GM):
        return jnp.asarray(x_GM).at[set_G1, source_GM].get(mode="fill", fill_value=0)

    dropped_BX = candidates.dropped_BX
    if dropped_BX is not None:
        dropped_BX = jnp.asarray(dropped_BX)
    sets = sampled_softmax.Sets(
        count_G,
        compacted(target_BL.reshape(num_sets, most)),
        compacted(weight_GM),
        jnp.asarray(candidates.negative_GS),
        jnp.minimum(source_GM, most - 1) // length,
        None
        if dropped_BX is None
        else dropped_BX.reshape(num_sets, most // length, -1),
    )
    hidden_GMD = compacted(hidden_BLD.reshape(num_sets, most, -1))
    return hidden_GMD, table_VD, sets


def bce(
    hidden_BLD: Array,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Separate,
) -> tuple[Array, Array]:
    """Binary cross-entropy of the target and S negatives a position: mean over 1 + S.

    sum_n w_n (softplus(-s_n,target) + sum_j softplus(s_nj)) / (1 + S). S = 1 is the
    original SASRec, at half its scale.

    Args, Returns: as in `ce`.

    Source: Kang & McAuley, ICDM 2018, equation 10; the scale is the paper's code's.
    """
    return gbce(hidden_BLD, table_VD, target_BL, weight_BL, candidates, beta=1.0)


def gbce(
    hidden_BLD: Array,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Separate,
    *,
    beta: float,
) -> tuple[Array, Array]:
    """Generalised BCE: the target's probability is sigmoid(s)^beta.

    sum_n w_n (beta softplus(-s_n,target) + sum_j softplus(s_nj)) / (1 + S): since
    -log sigmoid(s)^beta = beta softplus(-s), float32 suffices, and no score has to be
    transformed in float64 as the published code does.

    Args:
      beta: in (0, 1]; see `gbce_beta`. The others as in `ce`.

    Source: Petrov & Macdonald, "gSASRec", RecSys 2023, equations 12-14.
    """
    index_N, count = compact(weight_BL)
    num_negatives = candidates.negative_BLS.shape[-1]

    def compacted(x_NX):
        return jnp.asarray(x_NX).at[index_N].get(mode="fill", fill_value=0)

    hidden_ND = hidden_BLD.astype(jnp.float32).reshape(-1, hidden_BLD.shape[-1])
    positions = binary.Positions(
        target_N=compacted(target_BL.reshape(-1)),
        weight_N=compacted(weight_BL.reshape(-1)),
        negative_NS=compacted(candidates.negative_BLS.reshape(-1, num_negatives)),
        count=count,
    )
    loss_sum = binary.loss_sum(
        compacted(hidden_ND), table_VD, positions, jnp.float32(beta)
    )
    return loss_sum / (1 + num_negatives), weight_BL.sum(dtype=jnp.float32)


def gbce_beta(num_negatives: int, num_candidates: int, calibration: float) -> float:
    """beta = a (t (1 - 1/a) + 1/a), a = S / num_candidates the sampling rate.

    t = 0 gives 1 (plain BCE), t = 1 gives a, whose scores are calibrated.

    Source: Petrov & Macdonald, "gSASRec", RecSys 2023, equation 16.

    >>> gbce_beta(1, 100, 0.0), round(gbce_beta(1, 100, 1.0), 6)
    (1.0, 0.01)
    """
    rate = num_negatives / num_candidates
    return calibration * (rate - 1) + 1
