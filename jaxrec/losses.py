"""Losses of hidden states against the item table, in nats.

One contract for all:

    loss(hidden, table_VD, target_BL, weight_BL, candidates) -> (sum, weight)

`hidden` are the states of [B, L] positions, as an array or as `Packed`.
`sum` is the weighted sum over positions and `weight` the sum of weights, both float32
scalars: whoever holds every shard of a batch divides once. Positions of weight 0 cost
nothing and have zero gradient; the weights themselves are constants. The score of item
v is <hidden, table[v]>, computed in float32 whatever the encoder's dtype, if no
`score_dtype` says bfloat16 (recent GPUs multiply float32 in TF32, which is JAX's
default there). Gradients are made with the loss, for reverse mode; JAX may refuse to
differentiate them again where they are a loop over as many chunks as have a target.
`candidates` is what the target competes with:

    Catalogue   every allowed item, less some of each sequence's own   (ce, sampled_ce)
    Shared      S drawn items, shared by the positions of a sequence,
                or by those of several sequences                       (sampled_ce)
    Hands       S drawn items a sequence, all of one shuffle           (sampled_ce)
    Separate    S drawn items a position                               (bce, gbce)

No loss stores scores of size [B, L, V] or gathers [B, S, D] or [B, L, S, D] at once.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import binary, hands, indices, sampled_softmax, softmax
from jaxrec.hands import Hands

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
      or more for none. None if all compete.
    reach_B2: int32, the first place in its set that competes with a sequence, and the
      one after the last. None if all do.
    """

    negative_GS: Array
    dropped_BX: Array | None = None
    reach_B2: Array | None = None


class Separate(NamedTuple):
    """negative_BLS: int32, S items for each position."""

    negative_BLS: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth
class Packed:
    """Hidden states of [B, L] positions, left where the encoder's rows have them.

    So a loss takes those that it needs, once, and makes nothing as wide as a state for
    the padding of a batch.

    hidden_RTD: float, any dtype.
    place_BL: int32, where a position's state is in the flattened rows; distinct, or R T
      (out of range) for a position without a state, which must have no weight either.
    is_dense: whether nearly all places of the rows have a weight, as a next item's do
      and hidden items' do not. On a GPU `ce` then goes through all of them, and the
      host need not wait to be told how many there are. The other losses do not ask.
    """

    hidden_RTD: Array
    place_BL: Array
    is_dense: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def most(self) -> int:
        """Positions that have a state, at the most."""
        num_rows, row_length, _ = self.hidden_RTD.shape
        return min(self.place_BL.size, num_rows * row_length)

    def states(self, index_N: Array) -> Array:
        """Of the flat positions, float32 [N, D]; 0 where out of range."""
        num_rows, row_length, width = self.hidden_RTD.shape
        hidden_MD = jnp.asarray(self.hidden_RTD).reshape(num_rows * row_length, width)
        place_N = (
            jnp.asarray(self.place_BL)
            .reshape(-1)
            .at[index_N]
            .get(mode="fill", fill_value=len(hidden_MD))
        )
        return indices.take_rows(hidden_MD, place_N).astype(jnp.float32)


class _Targets(NamedTuple):
    """The N positions that may have a weight, those that do first.

    index_N: int32, where in B * L; B * L after the first `count`.
    target_N, weight_N, sequence_N: 0, 0 and any sequence after the first `count`.
    is_dense: of `Packed`.
    """

    count: Array
    index_N: Array
    hidden_ND: Array
    target_N: Array
    weight_N: Array
    sequence_N: Array
    is_dense: bool


def _float32(*arrays: Array) -> tuple[Array, ...]:
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def _targets(hidden: Array | Packed, target_BL: Array, weight_BL: Array) -> _Targets:
    """The states of the positions with a weight, and what else is known of them."""
    packed = _packed(hidden, weight_BL.shape)
    assert packed.most > 0, f"no states: of shape {packed.hidden_RTD.shape}"
    index_N, count = compact(weight_BL, packed.most)

    def compacted(x_BL):
        x_M = jnp.asarray(x_BL).reshape(-1)
        return x_M.at[index_N].get(mode="fill", fill_value=0)

    return _Targets(
        count,
        index_N,
        packed.states(index_N),
        compacted(target_BL),
        compacted(weight_BL),
        jnp.minimum(index_N, weight_BL.size - 1) // weight_BL.shape[1],
        packed.is_dense,
    )


def _packed(hidden: Array | Packed, shape: tuple[int, ...]) -> Packed:
    """The states of [B, L] positions that may not be packed yet."""
    assert math.prod(shape) > 0, f"no positions: weights of shape {shape}"
    if isinstance(hidden, Packed):
        return hidden
    place_M = jnp.arange(math.prod(shape), dtype=jnp.int32)
    return Packed(jnp.asarray(hidden), place_M.reshape(shape))


def compact(weight_BL: Array, most: int) -> tuple[Array, Array]:
    """The flat indices of positions with a weight, first, and their number.

    Args:
      most: N; of more positions than these the last ones are left out.

    Returns:
      index_N int32, filled up with B * L, and the count, int32.
    """
    has_weight_M = weight_BL.reshape(-1) > 0
    rank_M = jnp.cumsum(has_weight_M, dtype=jnp.int32)
    place_M = jnp.where(has_weight_M, rank_M - 1, most)
    return indices.inverse(place_M, most), jnp.minimum(rank_M[-1], most)


def ce(
    hidden: Array | Packed,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Catalogue,
    *,
    dtype: str = "float32",
    score_dtype: str = "float32",
) -> tuple[Array, Array]:
    """Full softmax cross-entropy, scores in memory for some positions at a time.

    sum_n w_n (logsumexp_{v in C_n} s_nv - s_n,target), s = hidden table^T, where C_n is
    the allowed items less the excluded ones of n's sequence, and always the target.

    Only positions with a weight are computed; how is told in `softmax`.

    Args:
      hidden: float [B, L, D], any dtype, cast to float32; or such states `Packed`.
      table_VD: float, cast to float32.
      target_BL: int32, row of the table; ignored where the weight is 0.
      weight_BL: float32; a constant, without a gradient.
      candidates: see `Catalogue`.
      dtype, score_dtype: of what the matmuls of the gradients and that of the scores
        multiply, "float32" or "bfloat16"; see `softmax.loss_sum`.

    Returns:
      (sum, weight), float32 scalars; sum is in nats.

    >>> import jax.numpy as jnp
    >>> same = jnp.zeros((1, 2, 4))  # equal scores: log of the number of candidates
    >>> loss, weight = ce(same, jnp.ones((9, 4)), jnp.ones((1, 2), jnp.int32),
    ...                   jnp.ones((1, 2)), Catalogue(jnp.arange(9) > 0))
    >>> round(float(loss / weight), 4), round(float(jnp.log(8)), 4)
    (2.0794, 2.0794)
    """
    table_VD, weight_BL = _float32(table_VD, weight_BL)
    allowed_V, excluded_BX = jax.tree.map(jnp.asarray, candidates)
    at = _targets(hidden, target_BL, weight_BL)
    loss_sum = softmax.loss_sum(
        at.hidden_ND,
        table_VD,
        softmax.Positions(at.target_N, at.weight_N, at.sequence_N, at.count),
        allowed_V,
        excluded_BX,
        dtype=dtype,
        score_dtype=score_dtype,
        is_dense=at.is_dense,
    )
    return loss_sum, weight_BL.sum(dtype=jnp.float32)


def sampled_ce(
    hidden: Array | Packed,
    table_VD: Array,
    target_BL: Array,
    weight_BL: Array,
    candidates: Shared | Hands | Catalogue,
    *,
    dtype: str = "float32",
    score_dtype: str = "float32",
) -> tuple[Array, Array]:
    """Softmax cross-entropy of the target against S sampled negatives.

    sum_n w_n (logsumexp(s_n,target, s_n,j for j in the negatives) - s_n,target),
    without a correction for the sampling (logQ), as in the paper. Negatives shared by
    many positions make their scores one [positions, D] x [D, S] matmul, and those that
    are dealt are gathered for several sequences at a time.

    When S is most of the catalogue it is cheaper to leave the other items out of the
    whole: candidates that come as a `Catalogue` less the items not drawn are the same
    loss, and `ce` computes it.

    Args, Returns: as in `ce`.

    Source: Klenitskiy & Vasilev, RecSys 2023, section 3.2.
    """
    if isinstance(candidates, Catalogue):
        dtypes = {"dtype": dtype, "score_dtype": score_dtype}
        return ce(hidden, table_VD, target_BL, weight_BL, candidates, **dtypes)

    table_VD, weight_BL = _float32(table_VD, weight_BL)
    if isinstance(candidates, Hands):
        # Sequences in the order of their hands, so that those of a set are together.
        order_B = jnp.asarray(candidates.sequence_B)
        packed = _packed(hidden, weight_BL.shape)
        place_BL = jnp.asarray(packed.place_BL)[order_B]
        hidden = dataclasses.replace(packed, place_BL=place_BL)
        target_BL, weight_BL = jnp.asarray(target_BL)[order_B], weight_BL[order_B]
        candidates = _unions(candidates, packed.most)
    at = _targets(hidden, target_BL, weight_BL)
    sets = _sets(at, weight_BL, candidates)
    loss_sum = sampled_softmax.loss_sum(
        at.hidden_ND, table_VD, sets, dtype=dtype, score_dtype=score_dtype
    )
    return loss_sum, weight_BL.sum(dtype=jnp.float32)


def _unions(dealt: Hands, num_positions: int) -> Shared:
    """The items of as many neighbouring hands at a time as `hands.together` says."""
    item_A, start_B, end_B, dropped_BX = map(
        jnp.asarray, (dealt.item_A, dealt.start_B, dealt.end_B, dealt.dropped_BX)
    )
    sizes = len(start_B), len(item_A), dealt.longest
    size = hands.together(*sizes, num_positions)
    num_places = hands.span(size, *sizes)
    first_G = start_B[::size]
    # A set may be longer than the pool, and have items twice; no hand does.
    place_GS = first_G[:, None] + jnp.arange(num_places, dtype=jnp.int32)[None]
    first_B1 = jnp.repeat(first_G, size)[:, None]
    return Shared(
        item_A[place_GS % len(item_A)],
        jnp.where(dropped_BX < 0, num_places, dropped_BX - first_B1),
        jnp.stack([start_B, end_B], axis=1) - first_B1,
    )


def _sets(at: _Targets, weight_BL: Array, candidates: Shared) -> sampled_softmax.Sets:
    """Positions are in the order of their sequences, so those of a set are together."""
    num_sets, num_sequences = len(candidates.negative_GS), len(weight_BL)
    assert num_sequences % num_sets == 0, "sets that are shared unevenly"
    assert candidates.negative_GS.shape[1] > 0, "no negatives"
    of_set = num_sequences // num_sets
    has_weight_GM = weight_BL.reshape(num_sets, -1) > 0
    count_G = has_weight_GM.sum(axis=1, dtype=jnp.int32)

    def of_sets(x_BX: Array | None) -> Array | None:
        return None if x_BX is None else jnp.asarray(x_BX).reshape(num_sets, of_set, -1)

    return sampled_softmax.Sets(
        jnp.cumsum(count_G) - count_G,
        count_G,
        jnp.asarray(candidates.negative_GS),
        at.target_N,
        at.weight_N,
        at.sequence_N % of_set,
        of_sets(candidates.dropped_BX),
        of_sets(candidates.reach_B2),
    )


def bce(
    hidden: Array | Packed,
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
    return gbce(hidden, table_VD, target_BL, weight_BL, candidates, beta=1.0)


def gbce(
    hidden: Array | Packed,
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
    table_VD, weight_BL = _float32(table_VD, weight_BL)
    at = _targets(hidden, target_BL, weight_BL)
    num_negatives = candidates.negative_BLS.shape[-1]
    assert num_negatives > 0, "no negatives"
    negative_MS = jnp.asarray(candidates.negative_BLS).reshape(-1, num_negatives)
    negative_NS = negative_MS.at[at.index_N].get(mode="fill", fill_value=0)
    positions = binary.Positions(at.target_N, at.weight_N, negative_NS, at.count)
    loss_sum = binary.loss_sum(at.hidden_ND, table_VD, positions, jnp.float32(beta))
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
