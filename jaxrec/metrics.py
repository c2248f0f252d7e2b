"""Ranking metrics: functions of one integer for each row, the rank of its target.

Rank 1 is the best place in the full catalogue; a rank beyond the cut-off k is a miss.
With one target a row, hit rate is recall, and mrr is mean average precision. A metric
returns one value a row, so that sums, bootstraps and paired comparisons are the
caller's; its mean over a large number of rows is `means` of the `sums` of chunks.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.errors import InputError

Metric = Callable[[jax.Array, int], jax.Array]


def hit_rate(rank_N: jax.Array, k: int) -> jax.Array:
    """Whether the target is among the first k: 1 if rank <= k, else 0.

    >>> hit_rate(jnp.array([1, 10, 11]), 10).tolist()
    [1.0, 1.0, 0.0]

    Args:
      rank_N: int [N], any shape, 1 is best.
      k: cut-off, >= 1; beyond the size of the catalogue it cuts nothing.

    Returns:
      float32 of the shape of rank_N, 0 or 1.
    """
    return (jnp.asarray(rank_N) <= k).astype(jnp.float32)


def ndcg(rank_N: jax.Array, k: int) -> jax.Array:
    """Normalised discounted cumulative gain: 1 / log2(rank + 1) if rank <= k, else 0.

    With one relevant item the ideal gain is 1, so nothing is left to divide by.

    >>> ndcg(jnp.array([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]

    Args:
      rank_N: int [N], any shape, 1 is best.
      k: cut-off, >= 1; beyond the size of the catalogue it cuts nothing.

    Returns:
      float32 of the shape of rank_N, in [0, 1].
    """
    rank_N = jnp.asarray(rank_N)
    return hit_rate(rank_N, k) / jnp.log2(rank_N.astype(jnp.float32) + 1)


def mrr(rank_N: jax.Array, k: int) -> jax.Array:
    """Reciprocal rank: 1 / rank if rank <= k, else 0.

    >>> mrr(jnp.array([1, 4, 11]), 10).tolist()
    [1.0, 0.25, 0.0]

    Args:
      rank_N: int [N], any shape, 1 is best.
      k: cut-off, >= 1; the size of the catalogue gives the reciprocal rank uncut.

    Returns:
      float32 of the shape of rank_N, in [0, 1].
    """
    rank_N = jnp.asarray(rank_N)
    return hit_rate(rank_N, k) / rank_N.astype(jnp.float32)


METRICS: dict[str, Metric] = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}

# A rank that no cut-off reaches, and that float32 holds.
_NEVER = 2**30


def uncut(rank_N: Any, num_items: int) -> np.ndarray:
    """The ranks, those past the catalogue so far down that no cut-off reaches them.

    Rank num_items + 1 is a miss (`ranking`): hr@100 among 60 items must not count it.

    >>> uncut([1, 60, 61], 60).tolist()
    [1, 60, 1073741824]
    """
    rank_N = np.asarray(rank_N)
    return np.where(rank_N > num_items, _NEVER, rank_N).astype(np.int32)


def parse(name: str) -> tuple[Metric, int]:
    """The metric and the cut-off that a name such as "ndcg@10" stands for.

    >>> parse("hr@100") == (hit_rate, 100)
    True

    Raises:
      InputError: the name is not metric@k with a known metric and k >= 1.
    """
    metric, _, k = name.partition("@")
    if metric in METRICS and k.isascii() and k.isdecimal() and int(k) >= 1:
        return METRICS[metric], int(k)
    if metric in METRICS:
        hint = f"Give {metric} a cut-off, as in {metric}@10."
    else:
        near = difflib.get_close_matches(metric.lower(), METRICS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}@{k or 10}?" if near else "Choose one of these."
    raise InputError(
        f"a metric must be one of {', '.join(f'{known}@k' for known in METRICS)} with "
        f"an integer k >= 1: got {name!r}. {hint}"
    )


def sums(
    rank_N: jax.Array, weight_N: jax.Array | None, names: Sequence[str]
) -> dict[str, jax.Array]:
    """Weighted sums of metrics over rows, and under "weight" the sum of the weights.

    Sums of parts add up to the sum of the whole, whether parts are devices (psum) or
    chunks of rows (means).

    Args:
      rank_N: int [N], 1 is best; anything where the weight is 0.
      weight_N: float32 [N], 0 for a padding row; None gives each row 1.
      names: such as ("ndcg@10", "hr@10").

    Returns:
      float32 scalars by name. Keep N below 2^24, where float32 stops to count by ones.

    Raises:
      InputError: a name is not a metric's, or the shapes differ.
    """
    rank_N = jnp.asarray(rank_N)
    weight_N = jnp.ones(rank_N.shape) if weight_N is None else jnp.asarray(weight_N)
    if rank_N.shape != weight_N.shape:
        raise InputError(
            "weights must have the shape of the ranks, one for each row: got "
            f"{weight_N.shape} for ranks {rank_N.shape}. Pad both alike."
        )
    weight_N = weight_N.astype(jnp.float32)
    totals = {"weight": jnp.sum(weight_N)}
    for name in names:
        metric_fn, k = parse(name)
        # Where, because the metric of a padding row's rank may be infinite.
        value_N = jnp.where(weight_N == 0, 0, metric_fn(rank_N, k))
        totals[name] = jnp.sum(value_N * weight_N)
    return totals


def means(parts: Iterable[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Means of metrics over the rows of all parts: total sum / total weight.

    The parts are added on the host in float64 and divided once, so that 10^7 rows keep
    the accuracy of a chunk.

    >>> means([sums(jnp.array([1, 11]), None, ("mrr@10",))])
    {'mrr@10': 0.5}

    Args:
      parts: at least one result of sums, all with the same names.

    Returns:
      Fractions in [0, 1], by name.

    Raises:
      InputError: the weights sum to 0, so there is no mean, or the names differ.
    """
    on_host = jax.device_get(list(parts))
    names = list(on_host[0]) if on_host else []
    if any(part.keys() != set(names) for part in on_host):
        raise InputError(
            f"every part must have the metrics of the first, {', '.join(names)}: one "
            "has others. Take the sums of all parts with the same names."
        )
    totals = {name: math.fsum(part[name] for part in on_host) for name in names}
    weight = totals.pop("weight", 0.0)
    if not weight > 0:
        raise InputError(
            f"metrics need at least one row of positive weight: got weight {weight}. "
            "Check that the split holds rows of this part."
        )
    return {name: total / weight for name, total in totals.items()}
